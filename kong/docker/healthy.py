"""Healthy: Kong's port is open, and both plugin servers answer a question. Until then Kong answers 500 by itself.

An argument is a URL that has to answer 200 too: Kong's http://127.0.0.1:8100/status/ready, where an ingress controller
gives it its configuration. Exit status 0 or 1, and one line that says what is missing. Standard library only: it runs
every few seconds.
"""

import os
import socket
import sys

TIMEOUT_S = 2.0
SERVERS = ("token-quota", "billing-events")
# MessagePack RPC: [0, 1, "plugin.Ping", [0]]. No server knows it, and one that is alive says so: [1, 1, "…", nil].
QUESTION = b"\x94\x00\x01\xabplugin.Ping\x91\x00"
ANSWER = b"\x94\x01\x01"


def ask(path: str) -> None:
    """One plugin server.

    Raises:
        OSError: it does not answer.
    """
    with socket.socket(socket.AF_UNIX) as server:
        server.settimeout(TIMEOUT_S)
        server.connect(path)
        server.sendall(QUESTION)
        got = b""
        while len(got) < len(ANSWER):
            more = server.recv(64)
            if not more:
                raise OSError("it closed the connection")
            got += more
        if not got.startswith(ANSWER):
            raise OSError(f"it answers {got[:16]!r}")


def proxy_port(listen: str) -> int | None:
    """Of the first address in Kong's proxy_listen. None: it listens nowhere."""
    address = listen.partition(",")[0].split()[0]
    return None if address == "off" else int(address.rpartition(":")[2])


def main(urls: list[str]) -> int:
    prefix = os.environ.get("KONG_PREFIX", "/usr/local/kong").rstrip("/")
    what = "Kong's proxy"
    try:
        port = proxy_port(os.environ.get("KONG_PROXY_LISTEN", "0.0.0.0:8000"))
        if port is not None:
            socket.create_connection(("127.0.0.1", port), TIMEOUT_S).close()
        for what in SERVERS:
            ask(f"{prefix}/{what}.sock")
        for what in urls:
            from urllib.request import urlopen

            urlopen(what, timeout=TIMEOUT_S).close()  # noqa: S310 - the operator's own; anything but 200 is an OSError
    except OSError as error:
        sys.stdout.write(f"{what}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

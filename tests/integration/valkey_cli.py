"""Stands in for valkey-cli, which no wheel brings: `-h HOST -p PORT COMMAND…`, one element of the answer a line.

On a bare socket, because it is run many times and importing a client takes longer than asking.
"""

import os
import socket
import sys
from typing import BinaryIO


def main(argv: list[str]) -> int:
    _, host, _, port, *command = argv  # -h HOST -p PORT …
    try:
        with socket.create_connection((host, int(port)), 2) as server, server.makefile("rwb") as stream:
            if password := os.environ.get("VALKEYCLI_AUTH"):
                send(stream, ["AUTH", password])
                read(stream)
            send(stream, command)
            lines = read(stream)
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


def send(stream: BinaryIO, command: list[str]) -> None:
    parts = [f"${len(part.encode())}\r\n{part}\r\n" for part in command]
    stream.write(f"*{len(parts)}\r\n{''.join(parts)}".encode())
    stream.flush()


def read(stream: BinaryIO) -> list[str]:
    head = stream.readline().decode().rstrip("\r\n")
    if not head:
        raise ConnectionResetError("the server closed the connection")
    kind, rest = head[0], head[1:]
    if kind == "*":
        return [line for _ in range(int(rest)) for line in read(stream)]
    if kind == "$":
        return [stream.read(int(rest) + 2)[:-2].decode()]
    return [rest]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

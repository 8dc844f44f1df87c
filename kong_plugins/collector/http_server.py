"""uvicorn in a thread of its own, on a socket that is bound before anything else starts."""

from __future__ import annotations

import socket
import threading
from typing import Any

from kong_plugins.collector.access import TOKEN_ENV, Tokens, is_loopback

CLOSE_S = 5


class ListenError(ValueError):
    """The address cannot be listened on. The message says what to do."""


def bind(listen: str, tokens: Tokens) -> socket.socket:
    """``listen``: HOST:PORT, port 0 for any free one, IPv6 in brackets.

    Raises:
        ListenError: not an address, in use, or open to others without a token.
    """
    host, colon, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ListenError(f"--listen takes HOST:PORT, 127.0.0.1:3000 say, not {listen!r}")
    if not is_loopback(host) and not tokens:
        raise ListenError(
            f"{host} can be reached by others: give a token with --token-file or {TOKEN_ENV}, or listen on 127.0.0.1"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, int(port)))
    except OSError as error:
        sock.close()
        raise ListenError(f"cannot listen on {listen}: {error.strerror}; choose another with --listen") from error
    return sock


class HttpServer:
    """Serves ``app`` on ``sock`` from :meth:`start` to :meth:`stop`."""

    def __init__(self, app: Any, sock: socket.socket) -> None:
        import uvicorn

        from kong_plugins.collector.http_protocol import PromptProtocol

        config = uvicorn.Config(
            app,
            http=PromptProtocol,
            ws="none",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=CLOSE_S,
            lifespan="off",
        )
        self._server = uvicorn.Server(config)
        self._sock = sock
        self._thread = threading.Thread(target=self._server.run, args=([sock],), name="http", daemon=True)

    def start(self) -> None:
        self._sock.listen(1024)  # from here on a client waits rather than being turned away
        self._thread.start()

    def stop(self) -> None:
        """Requests under way are answered first."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(CLOSE_S + 2)
        self._sock.close()

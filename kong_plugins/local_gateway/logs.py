"""The gateway's error log, in the form of nginx's with Kong's additions."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from kong_plugins.local_gateway.headers import text

if TYPE_CHECKING:
    from kong_plugins.local_gateway.exchange import Exchange

_LEVELS = {
    "debug": 10,
    "info": 20,
    "notice": 25,
    "warn": 30,
    "error": 40,
    "err": 40,
    "crit": 50,
    "alert": 50,
    "emerg": 50,
}
logging.addLevelName(25, "NOTICE")


class Log:
    """Lines as ``[level] pid#0: [kong] text, client: …, server: kong, request: "…", host: "…", request_id: "…"``.

    The request is without its query: a key may be in it.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def write(self, level: str, message: str, exchange: Exchange | None = None) -> None:
        """``level`` is one of Kong's names; control characters of a message are escaped."""
        number = _LEVELS.get(level, 40)
        if not self._logger.isEnabledFor(number):
            return
        line = f"[{level}] {os.getpid()}#0: [kong] {message}"
        if exchange is not None:
            request = f"{exchange.method} {text(exchange.raw_path)} HTTP/{exchange.http_version:g}"
            line += f', client: {exchange.client[0]}, server: kong, request: "{request}", host: "{exchange.host}"'
            line += f', request_id: "{exchange.id}"'
        self._logger.log(number, "%s", line.encode("unicode_escape" if not line.isprintable() else "utf-8").decode())

    def access(self, exchange: Exchange) -> None:
        """One line per request, without its query: a key may be in it."""
        if self._logger.isEnabledFor(20):
            self._logger.info(
                '%s - "%s %s HTTP/%g" %d %d %dms kong_request_id: "%s"',
                exchange.client[0],
                exchange.method,
                exchange.raw_path.decode("ascii", "backslashreplace"),
                exchange.http_version,
                exchange.status,
                exchange.bytes_sent,
                exchange.latencies.request,
                exchange.id,
            )

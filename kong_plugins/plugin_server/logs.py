"""Logging: one line a record, ``[level] text``, on stderr and, if asked for, in a file.

Kong writes a plugin server's stderr to its own log at *info*, which is off by default. So what concerns one request
goes to Kong over the wire instead (``kong.log.err``, or the error text of the log phase), where it shows at *error*
with the request's context and without any configuration; ``--log-file`` keeps the server's own lines for good.
"""

from __future__ import annotations

import logging
import logging.handlers
import sys
import time
from pathlib import Path

log = logging.getLogger("kong_plugins.plugin_server")


# Names that clients choose are in these lines: none may begin another line, or tell a terminal anything.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
_CONTROLS |= {0x0A: "\\n", 0x0D: "\\r", 0x09: "\t", 0x2028: "\\u2028", 0x2029: "\\u2029"}


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        record.levelname = record.levelname.lower()
        return super().format(record).translate(_CONTROLS)


def configure(level: int, file: Path | None) -> None:
    """Send every logger's records of ``level`` and up to stderr and to ``file``, which may be rotated underneath."""
    stderr = logging.StreamHandler(sys.stderr)
    stderr.setFormatter(_OneLine("[%(levelname)s] %(message)s"))
    handlers: list[logging.Handler] = [stderr]
    if file is not None:
        to_file = logging.handlers.WatchedFileHandler(file, encoding="utf-8", errors="backslashreplace")
        lines = _OneLine("%(asctime)s [%(levelname)s] %(process)d %(message)s", datefmt="%Y-%m-%dT%H:%M:%SZ")
        lines.converter = time.gmtime
        to_file.setFormatter(lines)
        handlers.append(to_file)
    logging.basicConfig(level=level, handlers=handlers, force=True)
    logging.raiseExceptions = False  # a closed stderr (Kong gone) must not stop an event

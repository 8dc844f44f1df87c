"""Passwords and tokens of sinks: from a file or the environment, never from a URL, which ends up in logs and names."""

from __future__ import annotations

import os
from pathlib import Path

from kong_plugins.application.ports import SinkUnavailable


class Secret:
    """Read anew each time it is needed, so that it can be changed while we run. It never shows itself."""

    def __init__(self, variable: str, file: str | None = None) -> None:
        """``file``: its path; without one the environment's ``variable``, which may be unset."""
        self._variable = variable
        self._file = file

    def __repr__(self) -> str:
        return f"Secret(from {self._file or f'${self._variable}'})"

    def read(self) -> str | None:
        """None: there is none.

        Raises:
            SinkUnavailable: the file cannot be read, or is empty.
        """
        if self._file is None:
            return os.environ.get(self._variable) or None
        try:
            text = Path(self._file).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SinkUnavailable(f"cannot read the secret in {self._file}: {error}") from None
        if not text:
            raise SinkUnavailable(f"the secret in {self._file} is empty")
        return text

"""Refusals that are the client's to fix."""

from __future__ import annotations


class BadRequest(Exception):  # noqa: N818 - named as its status line is
    """A request that cannot be metered as it stands, or that no engine should be asked to answer.

    ``status`` is 400, 413 or 415; ``code`` is stable and for programs; ``message`` says what to send instead and never
    repeats the client's text; ``param`` is the offending field (``messages[2].content``), or None.
    """

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param


class CountUnavailable(Exception):  # noqa: N818 - a state, not a fault: the bound stands
    """No exact token count can be had, now or at all; decide by the bound. The message says why and what would help."""

"""kong-pdk's PDK object, bound to whichever event is running: ``kong.ctx.shared.get("x")`` is one call to Kong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kong_pdk.exception import PDKException
from kong_pdk.pdk import FakeClasses, non_return_methods

__all__ = ["TERMINAL_METHODS", "EventAbandoned", "EventExit", "PDKException", "Pdk"]

TERMINAL_METHODS = frozenset(non_return_methods)
_SENT_AS_THEY_ARE = (str, int, list, dict)


class EventExit(BaseException):
    """Unwinds a plugin after ``kong.response.exit``: Kong has ended the request, nothing of the plugin may follow."""


class EventAbandoned(BaseException):
    """Unwinds a plugin whose event nobody waits for any more. Every later PDK call of the event raises it again."""


class Pdk(FakeClasses):  # type: ignore[misc]  # kong-pdk has no types
    """A name under ``kong``; calling it calls Kong. One tree serves every event of a process, so names are made once.

    Raises:
        PDKException: (on a call) outside an event's own greenlet, or with an argument that cannot be sent.
    """

    def __init__(self, prefix: str, call: Callable[[str, tuple[Any, ...]], Any]) -> None:
        super().__init__(prefix, call)
        self._logs = prefix == "kong.log" or prefix.startswith("kong.log.")

    def __call__(self, *args: Any) -> Any:
        if self._logs:
            # As kong-pdk does it: whatever is logged arrives, as text if need be.
            args = tuple(a if type(a) in _SENT_AS_THEY_ARE else str(a) for a in args)
        return self.call(self.prefix, args)

    def __getattr__(self, name: str) -> Pdk:
        if name.startswith("__"):
            raise AttributeError(name)
        child = Pdk(f"{self.prefix}.{name}", self.call)
        self.__dict__[name] = child
        return child

    def __str__(self) -> str:
        return str(self.prefix)

"""What can be told to go wrong, from the command line or at run time through ``POST /sim/faults``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from typing import Any


class DieHow(StrEnum):
    """How an answer dies mid-way."""

    ERROR_EVENT = "error_event"  # an error event, then [DONE]; a plain answer becomes a 500. The engine lives on
    ENGINE = "engine"  # the same for every running request, and the engine stays dead until /sim/reset
    EOF = "eof"  # the connection ends without the last chunk, as after SIGKILL
    RESET = "reset"  # the connection is reset


@dataclass(frozen=True, slots=True)
class Faults:
    """Faults that a request takes on when it arrives. Times in milliseconds, counts in generated tokens.

    ``token_delay_ms`` replaces the server's own for everybody (all sequences share one step). ``requests``: how many
    requests the faults apply to before they clear themselves (None: until changed).
    """

    first_token_delay_ms: float = 0.0
    token_delay_ms: float | None = None
    die_after_tokens: int | None = None
    die_how: DieHow = DieHow.ERROR_EVENT
    hang_after_tokens: int | None = None
    status: int | None = None
    no_usage: bool = False
    requests: int | None = None

    def __post_init__(self) -> None:
        for name in ("first_token_delay_ms", "token_delay_ms", "die_after_tokens", "hang_after_tokens"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} is at least 0, not {value}")
        if self.status is not None and not 400 <= self.status <= 599:
            raise ValueError(f"status is an error status (400 to 599), not {self.status}")
        if self.requests is not None and self.requests < 1:
            raise ValueError(f"requests is at least 1, not {self.requests}")

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


_TYPES: Mapping[str, tuple[type, ...]] = {
    "first_token_delay_ms": (int, float),
    "token_delay_ms": (int, float, type(None)),
    "die_after_tokens": (int, type(None)),
    "die_how": (str,),
    "hang_after_tokens": (int, type(None)),
    "status": (int, type(None)),
    "no_usage": (bool,),
    "requests": (int, type(None)),
}
NO_FAULTS = Faults()


def changed(faults: Faults, change: object) -> Faults:
    """``faults`` with the fields of a JSON object replaced.

    Raises:
        ValueError: not an object, an unknown field, or a value that the field cannot have.
    """
    if not isinstance(change, dict):
        raise ValueError("faults are a JSON object")
    known = {field.name for field in fields(Faults)}
    for name, value in change.items():
        if name not in known:
            raise ValueError(f"unknown fault {name!r}; known: {', '.join(sorted(known))}")
        if not isinstance(value, _TYPES[name]) or (isinstance(value, bool) and bool not in _TYPES[name]):
            raise ValueError(f"{name} cannot be {value!r}")
    if "die_how" in change:
        change = {**change, "die_how": DieHow(change["die_how"])}
    return replace(faults, **change)

"""What a check finds, and what a rule is: a small function with a name, over a file or over one way through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Generic, TypeVar

from kong_plugins.adapters.deck_check.source import Path

if TYPE_CHECKING:
    from kong_plugins.adapters.deck_check.entities import Deck
    from kong_plugins.adapters.deck_check.ways import Way

_Over = TypeVar("_Over")


class Severity(StrEnum):
    """``error``: it cannot work, or meters wrong. ``warning``: it works, not as most people want."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Problem:
    """A rule's finding: where, and what to do."""

    path: Path
    message: str


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem with its place in a file."""

    rule: str
    severity: Severity
    file: str
    line: int
    message: str


@dataclass(frozen=True, slots=True)
class Rule(Generic[_Over]):
    """``why``: the first line of its documentation."""

    name: str
    severity: Severity
    why: str
    check: Callable[[_Over], Iterator[Problem]]


DECK_RULES: list[Rule[Deck]] = []
WAY_RULES: list[Rule[Way]] = []


def deck_rule(name: str, severity: Severity = Severity.ERROR) -> Callable[[Callable[[Deck], Iterator[Problem]]], None]:
    """Makes a function a rule over the whole file."""

    def add(check: Callable[[Deck], Iterator[Problem]]) -> None:
        DECK_RULES.append(Rule(name, severity, _why(check), check))

    return add


def way_rule(name: str, severity: Severity = Severity.ERROR) -> Callable[[Callable[[Way], Iterator[Problem]]], None]:
    """Makes a function a rule over what a request of one consumer meets on one route."""

    def add(check: Callable[[Way], Iterator[Problem]]) -> None:
        WAY_RULES.append(Rule(name, severity, _why(check), check))

    return add


def _why(check: Callable[..., object]) -> str:
    return (check.__doc__ or "").strip().partition("\n")[0]

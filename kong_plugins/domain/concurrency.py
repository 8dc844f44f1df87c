"""Slots: how many requests of a tenant an engine works on at the same time, and when the next one has its turn.

A slot is part of a hold and is taken and given back with it: by its settlement, by a hold that lapses or is emptied.
Beside that it ends by a clock of its own, sooner than the hold's: a budget can do without the tokens of a crashed
request for an hour, a tenant with four slots cannot do without one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

SLOTS_MAX = 100_000

UNMEASURED_US = 1_000_000  # what a refused client is told to wait while nothing has ended yet
REMEMBERED = 10_000  # tenants whose pace is known; one forgotten too early is measured anew
_WEIGHT = 8  # of the mean so far, against one more duration


@dataclass(frozen=True, slots=True)
class Slots:
    """What a hold takes one of. ``key`` identifies the slots within the tenant and never holds the limit, so that an
    edited limit applies to what is open. ``ttl_us``: when one that nobody gives back is free again.

    Raises:
        ValueError: no slot at all, or none for any time.
    """

    key: str
    limit: int
    ttl_us: int

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= SLOTS_MAX:
            raise ValueError(f"{self.key!r} has 1 to {SLOTS_MAX} slots, not {self.limit}")
        if self.ttl_us < 1:
            raise ValueError(f"a slot is taken for at least a microsecond, not {self.ttl_us}")


@dataclass(frozen=True, slots=True)
class SlotState:
    """``taken``: right after the decision, so with this request's own where it was admitted. ``short``: none was free,
    and the request was refused for it."""

    key: str
    limit: int
    taken: int
    short: bool = False

    @property
    def remaining(self) -> int:
        return max(0, self.limit - self.taken)


def slot_states(slots: Iterable[Slots], found: Iterable[int], admitted: bool) -> tuple[SlotState, ...]:
    """``found``: how many were taken before."""
    return tuple(
        SlotState(each.key, each.limit, taken + admitted, short=taken >= each.limit)
        for each, taken in zip(slots, found, strict=True)
    )


@dataclass(slots=True)
class _Drain:
    mean_us: float
    turn_us: float = 0.0


class Pace:
    """How fast slots come free, by what their requests took, and whose turn it would be.

    With ``limit`` requests open that take ``mean`` each, one ends every ``mean / limit``. Every refused request is
    told a turn of its own, one such step after the one before: clients that come back as told do not meet.
    """

    def __init__(self) -> None:
        self._drains: OrderedDict[tuple[str, str], _Drain] = OrderedDict()

    def ended(self, tenant: str, key: str, took_us: int) -> None:
        """A request that had a slot is over."""
        drain = self._drains.get((tenant, key))
        if drain is None:
            self._drains[tenant, key] = _Drain(max(1, took_us))
            if len(self._drains) > REMEMBERED:
                self._drains.popitem(last=False)
            return
        drain.mean_us += (max(1, took_us) - drain.mean_us) / _WEIGHT
        self._drains.move_to_end((tenant, key))

    def turn_us(self, tenant: str, state: SlotState, now_us: int, patience_us: int) -> int:
        """How long a refused request shall wait, at most ``patience_us``: then it is asked to come back anyway, as
        those before it may never."""
        drain = self._drains.get((tenant, state.key))
        if drain is None:
            return min(UNMEASURED_US, patience_us)
        step_us = drain.mean_us / state.limit
        # What is taken beyond an edited limit has to end first.
        first_us = now_us + step_us * max(0, state.taken - state.limit)
        drain.turn_us = min(max(drain.turn_us, first_us) + step_us, now_us + patience_us)
        return max(1, round(drain.turn_us - now_us))

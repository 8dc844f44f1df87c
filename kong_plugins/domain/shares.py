"""An engine's places, shared by all its tenants: who may have the next one when few are left.

While more than a tenth of the places are free anybody has one. The last tenth is for tenants that hold less than
another one does, each by its weight, so whoever holds the most is refused first: its share shrinks as its requests end,
until all that want more hold alike (max-min fairness). Nobody's demand has to be known for that, only what each holds;
and a tenant that comes anew finds a place at once, however hard another one asks.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from kong_plugins.domain.concurrency import REMEMBERED, UNMEASURED_US

PLACES_MAX = 100_000
WEIGHT_MAX = 1_000
KEPT_PERCENT = 10

# A place that its gateway process no longer vouches for is free again: a killed one's are within half a minute.
LEASE_US = 30_000_000
RENEW_S = 10.0

ENGINES_REMEMBERED = 1_000
_WEIGHT = 8  # of the mean so far, against one more duration


@dataclass(frozen=True, slots=True)
class EngineShare:
    """What a request takes a place of. ``key`` names the engine; ``places`` are of all tenants together, and like the
    tenant's ``weight`` no part of it: edited ones apply to what is open.

    Raises:
        ValueError: no place at all, or no weight.
    """

    key: str
    places: int
    weight: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.places <= PLACES_MAX:
            raise ValueError(f"{self.key!r} has 1 to {PLACES_MAX} places, not {self.places}")
        if not 1 <= self.weight <= WEIGHT_MAX:
            raise ValueError(f"a tenant's weight on {self.key!r} is 1 to {WEIGHT_MAX}, not {self.weight}")

    @property
    def kept(self) -> int:
        """How many are kept for those that hold less than others."""
        return -(-self.places * KEPT_PERCENT // 100)


@dataclass(frozen=True, slots=True)
class PlaceState:
    """The decision. ``taken`` by all tenants and ``mine``: right after it, with this request's own where it has one."""

    admitted: bool
    places: int
    taken: int
    mine: int
    now_us: int

    @property
    def full(self) -> bool:
        """Refused, and nobody would have been let in. Else who was refused holds more than its share."""
        return self.taken >= self.places


def may_enter(share: EngineShare, taken: int, mine: int, most_of_others: float) -> bool:
    """``taken`` by all and ``mine`` so far; ``most_of_others``: places by weight of the tenant that holds the most so
    counted, this one apart."""
    if taken >= share.places:
        return False
    return taken < share.places - share.kept or mine == 0 or mine / share.weight < most_of_others


@dataclass(slots=True)
class _Drain:
    mean_us: float = UNMEASURED_US
    measured: bool = False
    turns_us: OrderedDict[str, float] = field(default_factory=OrderedDict)


class EnginePace:
    """How fast an engine's places come free, by what its requests took, and when a refused tenant has its turn.

    One mean for all of an engine's tenants: a tenant known by its slowest request alone would ask more seldom than the
    others and never get its share. Each refused request of a tenant is told a turn of its own, one step after the one
    before: clients that come back as told do not meet.
    """

    def __init__(self) -> None:
        self._drains: OrderedDict[str, _Drain] = OrderedDict()

    def ended(self, key: str, took_us: int) -> None:
        """A request has given its place back, after so long."""
        drain = self._drain(key)
        if drain.measured:
            drain.mean_us += (max(1, took_us) - drain.mean_us) / _WEIGHT
        else:
            drain.mean_us, drain.measured = max(1, took_us), True

    def turn_us(self, key: str, tenant: str, state: PlaceState, patience_us: int) -> int:
        """How long a refused request shall wait, at most ``patience_us``. A full engine frees its places one after
        another; a tenant beyond its share has to wait for those that it holds itself. Until a request has ended each
        is taken to need a second."""
        drain = self._drain(key)
        step_us = drain.mean_us / max(1, state.places if state.full else state.mine)
        turn_us = min(max(drain.turns_us.get(tenant, 0.0), state.now_us) + step_us, state.now_us + patience_us)
        drain.turns_us[tenant] = turn_us
        drain.turns_us.move_to_end(tenant)
        if len(drain.turns_us) > REMEMBERED:
            drain.turns_us.popitem(last=False)
        return max(1, round(turn_us - state.now_us))

    def _drain(self, key: str) -> _Drain:
        drain = self._drains.setdefault(key, _Drain())
        self._drains.move_to_end(key)
        if len(self._drains) > ENGINES_REMEMBERED:
            self._drains.popitem(last=False)
        return drain

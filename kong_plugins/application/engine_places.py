"""An engine's places beside admission: asked for at the same time as the hold, vouched for, and given back."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic

from kong_plugins.application.admit import CROWDED_PAUSES_S, Admission, Ask, Decided, Held
from kong_plugins.application.ports import Background, EnginePlaces, LedgerUnavailable
from kong_plugins.domain.planning import PlannedLine
from kong_plugins.domain.shares import EnginePace, EngineShare, PlaceState

_log = logging.getLogger(__name__)

# How long an engine that was nearly full counts as that: its place is asked for before anything is held.
SCARCE_S = 1.0

Request = tuple[str, str]  # tenant and hold id
Begin = Callable[[Callable[[], PlaceState | None]], Callable[[], PlaceState | None]]


@dataclass(frozen=True, slots=True)
class _Taken:
    since_s: float
    until_s: float


class OpenPlaces:
    """The places of this process's requests, in one store. What is dropped from ``leaving`` is free a lease later.

    ``pace`` is told how long each was taken. ``clock``: seconds.
    """

    def __init__(
        self, store: EnginePlaces, leaving: Background, pace: EnginePace, clock: Callable[[], float] = monotonic
    ) -> None:
        self._store = store
        self._leaving = leaving
        self._pace = pace
        self._clock = clock
        self._taken: defaultdict[str, dict[Request, _Taken]] = defaultdict(dict)
        self._left: defaultdict[str, list[Request]] = defaultdict(list)
        self._scarce_until_s: dict[str, float] = {}

    def scarce(self, key: str) -> bool:
        """Whether the engine was nearly full a moment ago."""
        return self._clock() < self._scarce_until_s.get(key, 0.0)

    def enter(self, share: EngineShare, tenant: str, hold_id: str, most_us: int) -> PlaceState | None:
        """Taken until :meth:`leave`, and for ``most_us`` at most. None: the store is out of reach, and a request is not
        refused for that: what it costs is held elsewhere, and the engine has a queue of its own."""
        try:
            state = self._store.enter(share, tenant, hold_id)
        except LedgerUnavailable as error:
            _log.warning("%s runs without a place on %s: %s", hold_id, share.key, error)
            self.leave(share.key, tenant, hold_id)  # it may have taken effect
            return None
        if state.taken >= share.places - 2 * share.kept:
            self._scarce_until_s[share.key] = self._clock() + SCARCE_S
        if state.admitted:
            now_s = self._clock()
            self._taken[share.key].setdefault((tenant, hold_id), _Taken(now_s, now_s + most_us / 1e6))
        return state

    def ended(self, key: str, tenant: str, hold_id: str) -> None:
        """The engine is done with a request."""
        if (taken := self._taken[key].get((tenant, hold_id))) is not None:
            self._pace.ended(key, round(1e6 * (self._clock() - taken.since_s)))
        self.leave(key, tenant, hold_id)

    def leave(self, key: str, tenant: str, hold_id: str) -> None:
        """In the background, many at a time. Also for a request that another process let in."""
        self._taken[key].pop((tenant, hold_id), None)
        self._left[key].append((tenant, hold_id))
        if len(self._left[key]) == 1 and not self._leaving.submit(lambda: self._give_back(key)):
            del self._left[key]

    def renew(self) -> None:
        """To be called every ``RENEW_S``."""
        now_s = self._clock()
        for key, taken in list(self._taken.items()):
            for request in [request for request, each in taken.items() if each.until_s <= now_s]:
                del taken[request]
            if not taken:
                del self._taken[key]
                continue
            try:
                gone = self._store.renew(key, tuple(taken))
            except LedgerUnavailable as error:
                _log.warning("%d places on %s not renewed: %s", len(taken), key, error)
                continue
            for request in gone:
                taken.pop(request, None)

    def _give_back(self, key: str) -> None:
        requests = self._left.pop(key, [])
        try:
            self._store.leave(key, requests)
        except LedgerUnavailable as error:
            _log.warning("%d places on %s are free only when their lease is over: %s", len(requests), key, error)


@dataclass(frozen=True, slots=True)
class Full:
    """Refused, and nothing is held: the engine is full, or the tenant holds more of it than its share."""

    share: EngineShare
    state: PlaceState


class SharedEngine:
    """Admission to an engine that may have only so many places for all (``share``; None: it has any number).

    While there is room, place and hold are asked for at the same time: one round trip, and two scripts as they may be
    on two nodes of a Cluster. Near the end of it the place comes first: a refusal then costs one script, and holds
    nothing. A request that was refused its place when its hold was made (a burst) has its hold emptied.

    ``places``: None where no engine is shared. ``begin`` starts a call and gives what waits for its end.
    """

    def __init__(
        self,
        admission: Admission,
        places: OpenPlaces | None,
        begin: Begin,
        pause: Callable[[float], None],
        most_us: int,
    ) -> None:
        self._admission = admission
        self._places = places
        self._begin = begin
        self._pause = pause
        self._most_us = most_us

    def admit(self, ask: Ask, share: EngineShare | None) -> Decided | Full:
        """
        Raises:
            LedgerUnavailable: as ``Admission.admit``; no place is taken then.
        """
        places = self._places
        if places is None or share is None:
            return self._admission.admit(ask)

        def enter() -> PlaceState | None:
            return places.enter(share, ask.tenant, ask.hold_id, self._most_us)

        if places.scarce(share.key):
            state = self._when_free(enter)
            if state is not None and not state.admitted:
                return Full(share, state)
            return self._admit(ask, share, lambda: state)
        return self._admit(ask, share, self._begin(enter))

    def forsake(self, share: EngineShare | None, tenant: str, hold_id: str, planned: Sequence[PlannedLine]) -> None:
        """Undo an admission in the background, as ``Admission.forsake``."""
        self._admission.forsake(tenant, hold_id, planned)
        if self._places is not None and share is not None:
            self._places.leave(share.key, tenant, hold_id)

    def ended(self, share: EngineShare | None, tenant: str, hold_id: str) -> None:
        """The engine is done with a request."""
        if self._places is not None and share is not None:
            self._places.ended(share.key, tenant, hold_id)

    def _admit(self, ask: Ask, share: EngineShare, entered: Callable[[], PlaceState | None]) -> Decided | Full:
        held = False
        try:
            decided = self._admission.admit(ask)
            held = isinstance(decided, Held)
        finally:
            state = entered()
            if self._places is not None and state is not None and state.admitted and not held:
                self._places.leave(share.key, ask.tenant, ask.hold_id)
        if state is not None and not state.admitted and isinstance(decided, Held):
            self._admission.forsake(ask.tenant, ask.hold_id, decided.planned)
            return Full(share, state)
        return decided

    def _when_free(self, enter: Callable[[], PlaceState | None]) -> PlaceState | None:
        """Looks once more: who asks as soon as it is answered is there before its last place is given back."""
        state = enter()
        for seconds in CROWDED_PAUSES_S:
            if state is None or state.admitted:
                break
            self._pause(seconds)
            state = enter()
        return state

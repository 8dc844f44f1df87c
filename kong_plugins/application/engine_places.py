"""An engine's places beside admission: asked for at the same time as the hold, vouched for, and given back."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from kong_plugins.application.admit import CROWDED_PAUSES_S, Admission, Ask, Decided, Held
from kong_plugins.application.ports import Background, EnginePlaces, LedgerUnavailable
from kong_plugins.domain.shares import EngineShare, PlaceState

_log = logging.getLogger(__name__)

# How long an engine that was nearly full counts as that: its place is asked for before anything is held.
SCARCE_S = 1.0

Request = tuple[str, str]  # tenant and hold id
Begin = Callable[[Callable[[], PlaceState | None]], Callable[[], PlaceState | None]]


class OpenPlaces:
    """The places of this process's requests, in one store. What is dropped from ``leaving`` is free a lease later.

    ``clock``: seconds.
    """

    def __init__(self, store: EnginePlaces, leaving: Background, clock: Callable[[], float] = monotonic) -> None:
        self._store = store
        self._leaving = leaving
        self._clock = clock
        self._until_s: defaultdict[str, dict[Request, float]] = defaultdict(dict)
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
            self._until_s[share.key][tenant, hold_id] = self._clock() + most_us / 1e6
        return state

    def leave(self, key: str, tenant: str, hold_id: str) -> None:
        """In the background, many at a time. Also for a request that another process let in."""
        self._until_s[key].pop((tenant, hold_id), None)
        self._left[key].append((tenant, hold_id))
        if len(self._left[key]) == 1 and not self._leaving.submit(lambda: self._give_back(key)):
            del self._left[key]

    def renew(self) -> None:
        """To be called every ``RENEW_S``."""
        now_s = self._clock()
        for key, until_s in list(self._until_s.items()):
            for request in [request for request, end_s in until_s.items() if end_s <= now_s]:
                del until_s[request]
            if not until_s:
                del self._until_s[key]
                continue
            try:
                gone = self._store.renew(key, tuple(until_s))
            except LedgerUnavailable as error:
                _log.warning("%d places on %s not renewed: %s", len(until_s), key, error)
                continue
            for request in gone:
                until_s.pop(request, None)

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
    """Admission to an engine that has only so many places for all.

    While there is room, place and hold are asked for at the same time: one round trip, and two scripts as they may be
    on two nodes of a Cluster. Near the end of it the place comes first: a refusal then costs one script, and holds
    nothing. A request that was refused its place when its hold was made (a burst) has its hold emptied.

    ``begin`` starts a call and gives what waits for its end.
    """

    def __init__(
        self, admission: Admission, places: OpenPlaces, begin: Begin, pause: Callable[[float], None], most_us: int
    ) -> None:
        self._admission = admission
        self._places = places
        self._begin = begin
        self._pause = pause
        self._most_us = most_us

    def admit(self, ask: Ask, share: EngineShare) -> Decided | Full:
        """
        Raises:
            LedgerUnavailable: as ``Admission.admit``; no place is taken then.
        """
        if self._places.scarce(share.key):
            state = self._enter_when_free(ask, share)
            if state is not None and not state.admitted:
                return Full(share, state)
            return self._admit(ask, share, lambda: state)
        return self._admit(ask, share, self._begin(lambda: self._enter(ask, share)))

    def _admit(self, ask: Ask, share: EngineShare, entered: Callable[[], PlaceState | None]) -> Decided | Full:
        held = False
        try:
            decided = self._admission.admit(ask)
            held = isinstance(decided, Held)
        finally:
            state = entered()
            if state is not None and state.admitted and not held:
                self._places.leave(share.key, ask.tenant, ask.hold_id)
        if state is not None and not state.admitted and isinstance(decided, Held):
            self._admission.forsake(ask.tenant, ask.hold_id, decided.planned)
            return Full(share, state)
        return decided

    def _enter(self, ask: Ask, share: EngineShare) -> PlaceState | None:
        return self._places.enter(share, ask.tenant, ask.hold_id, self._most_us)

    def _enter_when_free(self, ask: Ask, share: EngineShare) -> PlaceState | None:
        """Looks once more: who asks as soon as it is answered is there before its last place is given back."""
        state = self._enter(ask, share)
        for seconds in CROWDED_PAUSES_S:
            if state is None or state.admitted:
                break
            self._pause(seconds)
            state = self._enter(ask, share)
        return state

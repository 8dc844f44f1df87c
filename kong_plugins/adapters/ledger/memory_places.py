"""Engines' places in memory: the model the scripts are held to, and for simulations. They end with their process."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kong_plugins.domain.shares import LEASE_US, EngineShare, PlaceState, may_enter


@dataclass(slots=True)
class _Engine:
    until_us: dict[tuple[str, str], int] = field(default_factory=dict)  # by request
    weights: dict[str, int] = field(default_factory=dict)  # by tenant

    def held(self) -> Counter[str]:
        return Counter(tenant for tenant, _ in self.until_us)


class MemoryPlaces:
    """``EnginePlaces`` of one process. ``clock`` gives microseconds since the epoch."""

    def __init__(self, clock: Callable[[], int], *, lease_us: int = LEASE_US) -> None:
        self._clock = clock
        self._lease_us = lease_us
        self._lock = threading.Lock()
        self._engines: defaultdict[str, _Engine] = defaultdict(_Engine)

    def close(self) -> None:
        """Nothing is open."""

    def enter(self, share: EngineShare, tenant: str, hold_id: str) -> PlaceState:
        with self._lock:
            now_us = self._clock()
            engine = self._engines[share.key]
            for request in [request for request, until_us in engine.until_us.items() if until_us <= now_us]:
                del engine.until_us[request]
            held = engine.held()
            taken, mine = held.total(), held[tenant]
            if (tenant, hold_id) not in engine.until_us:
                others = (count / engine.weights[each] for each, count in held.items() if each != tenant)
                if not may_enter(share, taken, mine, max(others, default=0.0)):
                    return PlaceState(False, share.places, taken, mine, now_us)
                taken, mine = taken + 1, mine + 1
                engine.weights[tenant] = share.weight
            engine.until_us[tenant, hold_id] = now_us + self._lease_us
            return PlaceState(True, share.places, taken, mine, now_us)

    def leave(self, key: str, requests: Sequence[tuple[str, str]]) -> int:
        with self._lock:
            return sum(self._engines[key].until_us.pop(request, None) is not None for request in requests)

    def renew(self, key: str, requests: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
        with self._lock:
            now_us, taken = self._clock(), self._engines[key].until_us
            gone = tuple(request for request in requests if taken.get(request, 0) <= now_us)
            taken.update(dict.fromkeys(set(requests) - set(gone), now_us + self._lease_us))
            return gone

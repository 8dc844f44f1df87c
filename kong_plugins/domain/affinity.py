"""Affinity: requests with the same beginning go where it is cached, unless too many are there already."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

RANKS_MAX = 1024


def prefix_key(salt: str, model: str, opening: Sequence[bytes], bytes_max: int) -> bytes:
    """16 bytes, the same in every process: of who shares the cache, of the model and of what begins the prompt, of
    which ``bytes_max`` bytes count."""
    state = blake2b(digest_size=16, person=b"affinity")
    for part in (salt.encode(), model.encode("utf-8", "surrogatepass")):
        state.update(len(part).to_bytes(8, "big") + part)
    for part in opening:
        head = part[:bytes_max]
        bytes_max -= len(head)
        state.update(len(head).to_bytes(8, "big") + head)
    return state.digest()


def preferred(key: bytes, ranks: int) -> tuple[int, ...]:
    """Every rank, in the order in which a key goes to them: keys spread evenly, and with one rank more or less only
    those move that must (rendezvous hashing)."""
    scores = [(blake2b(key + rank.to_bytes(4, "big"), digest_size=8).digest(), rank) for rank in range(ranks)]
    return tuple(rank for _, rank in sorted(scores, reverse=True))


@dataclass(frozen=True, slots=True)
class _Open:
    engine: str
    rank: int
    until_us: int


class OpenByRank:
    """How many requests this process has open on each rank of each engine, and where the next one goes.

    A request goes to the first rank in its key's order that has less than ``overload_percent`` of an even share, so a
    beginning that everybody sends spills over to its second rank, third rank and so on, always in the same order.
    """

    def __init__(self) -> None:
        self._load: Counter[tuple[str, int]] = Counter()
        self._open: OrderedDict[str, _Open] = OrderedDict()

    def enter(
        self, hold_id: str, engine: str, key: bytes, ranks: int, *, overload_percent: int, now_us: int, ttl_us: int
    ) -> int:
        """The rank for a request. It counts there until it leaves, or ``ttl_us`` is over."""
        while self._open and next(iter(self._open.values())).until_us <= now_us:
            self.leave(next(iter(self._open)))
        self.leave(hold_id)
        total = 1 + sum(self._load[engine, rank] for rank in range(ranks))
        most = -(-overload_percent * total // (100 * ranks))
        rank = next(rank for rank in preferred(key, ranks) if self._load[engine, rank] < most)
        self._open[hold_id] = _Open(engine, rank, now_us + ttl_us)
        self._load[engine, rank] += 1
        return rank

    def leave(self, hold_id: str) -> None:
        """The request is over; one that was never there changes nothing."""
        gone = self._open.pop(hold_id, None)
        if gone is not None:
            self._load[gone.engine, gone.rank] -= 1
            if not self._load[gone.engine, gone.rank]:
                del self._load[gone.engine, gone.rank]

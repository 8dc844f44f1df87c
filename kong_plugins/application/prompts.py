"""Prompts of requests under way, kept so that a request whose usage nobody saw can still be counted."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock

LOWERED_MAX = 100_000  # requests under way; one beyond it is charged at its first bound if nobody saw what it used
ENDED_MAX = 10_000  # a hold is tightened within moments, if at all
BYTES_MAX = 64 * 2**20  # 10,000 requests of 4 kB under way; over it the oldest are forgotten and end without a count.


class PromptsUnderWay:
    """Remembers how to count a request's prompt from admission to its end, in at most ``bytes_max``."""

    def __init__(self, bytes_max: int = BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._counts: OrderedDict[str, tuple[int, Callable[[], int]]] = OrderedDict()
        self._lowered: OrderedDict[str, int] = OrderedDict()
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._lock = Lock()

    def remember(self, hold_id: str, size: int, count: Callable[[], int]) -> None:
        """``count`` keeps about ``size`` bytes alive."""
        with self._lock:
            self._forget(hold_id)
            self._counts[hold_id] = size, count
            self._bytes += size
            while self._bytes > self._bytes_max:
                self._forget(next(iter(self._counts)))

    def take(self, hold_id: str) -> Callable[[], int] | None:
        """The way to count this prompt, once. Its request has ended: what it is charged is being decided."""
        return self.end(hold_id, 0)[1]

    def end(self, hold_id: str, prompt_bound: int) -> tuple[int, Callable[[], int] | None]:
        """As ``take``; first the prompt tokens that are held for it, where it was admitted with ``prompt_bound``."""
        with self._lock:
            held = min(prompt_bound, self._lowered.pop(hold_id, prompt_bound))
            self._ended[hold_id] = None
            if len(self._ended) > ENDED_MAX:
                self._ended.popitem(last=False)
            return held, self._forget(hold_id)

    def lower(self, hold_id: str, prompt: int) -> bool:
        """Its hold is about to be tightened to so many prompt tokens: unseen, it is never charged more than that. False
        when its request has ended, and the hold is to be left as it is."""
        with self._lock:
            if hold_id in self._ended:
                return False
            self._lowered[hold_id] = prompt
            if len(self._lowered) > LOWERED_MAX:
                self._lowered.popitem(last=False)
            return True

    def _forget(self, hold_id: str) -> Callable[[], int] | None:
        size, count = self._counts.pop(hold_id, (0, None))
        self._bytes -= size
        return count

    @property
    def bytes_held(self) -> int:
        return self._bytes

"""What the plugin instances of one process share: ledger connections, queues, tokenizers, prompts under way.

Kong makes an instance for each configured row and for each reload; none of them may open connections of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import gevent

from kong_plugins.adapters.background import GreenletQueue
from kong_plugins.adapters.ledger import connect_ledger
from kong_plugins.adapters.sweeper import Sweeper
from kong_plugins.adapters.tokenizers import ModelTokenCounter, OffLoopCounter
from kong_plugins.application.ports import Ledger
from kong_plugins.application.prompts import PromptsUnderWay
from kong_plugins.domain.errors import CountUnavailable

_log = logging.getLogger(__name__)

SETTLE_CAPACITY = 20_000  # some 1 kB each; at 300 requests/s a store may be away for a minute before any is lost
COUNT_CAPACITY = 500  # of 128 kB of text at most; their prompts stay where they are bounded
RELEASE_CAPACITY = 20_000  # some 0.5 kB each: the requests of a minute without a store
RECORD_CAPACITY = 1_000  # refused requests come as fast as a client can ask: none may take a settlement's place
TIGHTEN_CAPACITY = 256  # only ever helps while budgets are scarce: late is as good as never
DRAIN_S = 5.0

Connect = Callable[[str, float], Ledger]


def _connect(url: str, timeout_s: float) -> Ledger:
    return connect_ledger(url, timeout_s=timeout_s)


class ProcessParts:
    """Shared by every instance that has joined; the last one to leave ends them, and drains what is not yet settled."""

    def __init__(self, connect: Connect = _connect) -> None:
        self._connect = connect
        self._members = 0
        self._open()

    def _open(self) -> None:
        self._ledgers: dict[tuple[str, float], Ledger] = {}
        self._sweepers: list[Sweeper] = []
        self._counters: dict[tuple[tuple[str, str], ...], OffLoopCounter] = {}
        self.prompts = PromptsUnderWay()
        self.settles = GreenletQueue("settle", capacity=SETTLE_CAPACITY)
        self.counts = GreenletQueue("count", capacity=COUNT_CAPACITY)
        self.releases = GreenletQueue("release", capacity=RELEASE_CAPACITY)
        self.records = GreenletQueue("record", capacity=RECORD_CAPACITY)
        self.tightens = GreenletQueue("tighten", capacity=TIGHTEN_CAPACITY)

    def join(self) -> None:
        """Before taking any part: they are of those who have joined."""
        self._members += 1

    def leave(self) -> None:
        """Waits up to ``DRAIN_S`` for settlements under way when nobody else is left."""
        self._members -= 1
        if self._members > 0:
            return
        ledgers, sweepers, counters = self._ledgers, self._sweepers, self._counters
        counts, settles, others = self.counts, self.settles, (self.tightens, self.releases, self.records)
        self._open()  # whoever joins while these drain has its own
        for queue in (counts, settles):  # in this order: what is counted may have to wait for the ledger
            if not queue.close(DRAIN_S):
                _log.error("%d settlements were still under way after %s s", len(queue), DRAIN_S)
        for queue in others:
            queue.close(DRAIN_S)
        for counter in counters.values():
            counter.close()
        for sweeper in sweepers:
            sweeper.stop()
        for ledger in ledgers.values():
            close = getattr(ledger, "close", None)
            if close is not None:
                close()

    def ledger(self, url: str, timeout_s: float) -> Ledger:
        """One for each store; connecting happens at its first operation (a Cluster: now).

        Raises:
            ValueError: not a ledger's URL.
            LedgerUnavailable: no node of a Cluster answered.
        """
        key = (url, timeout_s)
        if key not in self._ledgers:
            self._ledgers[key] = self._connect(url, timeout_s)
            self._sweepers.append(Sweeper(self._ledgers[key]))
            self._sweepers[-1].start()
        return self._ledgers[key]

    def counter(self, tokenizers: Mapping[str, str], models: Sequence[str] = ()) -> OffLoopCounter:
        """Counts by the given tokenizers (model or glob to tokenizer) and by well-known model names. Builds the given
        ones beforehand, off the loop: most of a second each; those of ``models`` meanwhile, and nobody waits for them.

        Raises:
            CountUnavailable: one of them is not here.
        """
        key = tuple(tokenizers.items())
        if key not in self._counters:
            counter = ModelTokenCounter(tokenizers)
            unavailable = gevent.get_hub().threadpool.apply(_warm, (counter, tuple(tokenizers.values())))
            if unavailable is not None:
                raise unavailable
            self._counters[key] = OffLoopCounter(counter)
        self._counters[key].prepare(*models)
        return self._counters[key]


def _warm(counter: ModelTokenCounter, models: Sequence[str]) -> CountUnavailable | None:
    """Returned, because a thread pool prints what its threads raise."""
    try:
        counter.warm(*models)
    except CountUnavailable as error:
        return error
    return None


@cache
def process_parts() -> ProcessParts:
    """This process's own."""
    return ProcessParts()

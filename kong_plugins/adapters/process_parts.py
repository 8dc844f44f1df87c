"""What the plugin instances of one process share: ledger connections, queues, spool, tokenizers, prompts under way.

Kong makes an instance for each configured row and for each reload; none of them may open connections of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import gevent
from gevent.lock import RLock

from kong_plugins.adapters.background import Every, GreenletQueue, Later
from kong_plugins.adapters.ledger import connect_ledger, connect_places
from kong_plugins.adapters.plugin_metrics import MetricsServer, Observed, serve_metrics
from kong_plugins.adapters.spool import DurableSpool, SpoolLimits, ledger_address, spool_bytes_max, spool_directory
from kong_plugins.adapters.sweeper import Sweeper
from kong_plugins.adapters.tokenizers import ModelTokenCounter, OffLoopCounter
from kong_plugins.adapters.without_ledger import WithoutLedger
from kong_plugins.application.admit import AdmissionCounts
from kong_plugins.application.engine_places import OpenPlaces
from kong_plugins.application.leasing import LeasePolicy
from kong_plugins.application.outage import Outage, StoreOutage
from kong_plugins.application.ports import EnginePlaces, Ledger
from kong_plugins.application.posting import Poster
from kong_plugins.application.prompts import PromptsUnderWay
from kong_plugins.domain.affinity import OpenByRank
from kong_plugins.domain.concurrency import Pace
from kong_plugins.domain.errors import CountUnavailable
from kong_plugins.domain.shares import RENEW_S, EnginePace

_log = logging.getLogger(__name__)

COUNT_CAPACITY = 500  # of 128 kB of text at most; their prompts stay where they are bounded
RELEASE_CAPACITY = 20_000  # some 0.5 kB each: the requests of a minute without a store
RECORD_CAPACITY = 1_000  # refused requests come as fast as a client can ask: none may take a settlement's place
LEAVE_CAPACITY = 1_000  # engines: a task gives back all of one engine's places that wait
TIGHTEN_CAPACITY = 256  # only ever helps while budgets are scarce: late is as good as never
DRAIN_S = 5.0
LATER_S = 1.0  # a second chance for what the other plugin's log phase does within milliseconds, or not at all
RESUME_S = 30.0  # how soon what an ended process left in the spool is found by one that goes on

Connect = Callable[[str, float], Ledger]
ConnectPlaces = Callable[[str, float], EnginePlaces]
_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(slots=True)
class _Way:
    """Into one ledger: what posts, what it spools to, and who replays."""

    poster: Poster
    spool: DurableSpool
    queue: GreenletQueue
    resuming: Every


@dataclass(slots=True)
class _Places:
    """Engines' places in one store, and who vouches for those that are taken."""

    store: EnginePlaces
    open: OpenPlaces
    renewing: Every


def _connect(url: str, timeout_s: float) -> Ledger:
    return connect_ledger(url, timeout_s=timeout_s)


def _connect_places(url: str, timeout_s: float) -> EnginePlaces:
    return connect_places(url, timeout_s=timeout_s)


def _one_at_a_time(
    make: Callable[Concatenate[ProcessParts, _P], _T],
) -> Callable[Concatenate[ProcessParts, _P], _T]:
    """Making a part may wait, and the rows of a process start all at once: without this each would make its own (a
    vocabulary is 70 MB), and all but the last one's would be nobody's."""

    @wraps(make)
    def alone(parts: ProcessParts, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        with parts.making:
            return make(parts, *args, **kwargs)

    return alone


class ProcessParts:
    """Shared by every instance that has joined; the last one to leave ends them, drains what is not yet settled, and
    leaves in the spool what cannot be."""

    def __init__(
        self,
        connect: Connect = _connect,
        spool_dir: Path | None = None,
        connect_places: ConnectPlaces = _connect_places,
    ) -> None:
        """``spool_dir``: that of :func:`spool_directory` where there is none."""
        self._connect = connect
        self._connect_places = connect_places
        self._spool_dir = spool_dir
        self._members = 0
        self._metrics: MetricsServer | None = None
        self.making = RLock()
        self._open()

    def _open(self) -> None:
        self._ways: dict[str, _Way] = {}
        self._ledgers: dict[tuple[str, float], Ledger] = {}
        self._away: dict[str, WithoutLedger] = {}
        self._places: dict[tuple[str, float], _Places] = {}
        self._sweepers: list[Sweeper] = []
        self._counters: dict[tuple[tuple[str, str], ...], OffLoopCounter] = {}
        self.prompts = PromptsUnderWay()
        self.pace = Pace()
        self.engine_pace = EnginePace()
        self.ranks = OpenByRank()
        self.counts = GreenletQueue("count", capacity=COUNT_CAPACITY)
        self.releases = GreenletQueue("release", capacity=RELEASE_CAPACITY)
        self.records = GreenletQueue("record", capacity=RECORD_CAPACITY)
        self.leaves = GreenletQueue("leave", capacity=LEAVE_CAPACITY)
        self.tightens = GreenletQueue("tighten", capacity=TIGHTEN_CAPACITY)
        self.later = Later(LATER_S)

    def join(self) -> None:
        """Before taking any part: they are of those who have joined."""
        self._members += 1

    def leave(self) -> None:
        """Waits up to ``DRAIN_S`` for settlements under way when nobody else is left."""
        self._members -= 1
        if self._members > 0:
            return
        ledgers, sweepers, counters, ways = self._ledgers, self._sweepers, self._counters, self._ways
        without = list(self._away.values())
        counts, others, later = self.counts, (self.tightens, self.releases, self.records, self.leaves), self.later
        places = self._places
        self._open()  # whoever joins while these drain has its own
        later.flush()
        if not counts.close(DRAIN_S):
            _log.error("%d settlements were still being counted after %s s", len(counts), DRAIN_S)
        for queue in others:
            queue.close(DRAIN_S)
        for away in without:
            away.stop()
        for way in ways.values():  # last: what is counted or recorded may have gone to the spool
            way.resuming.stop()
            way.queue.close(DRAIN_S)
            way.poster.close()
            if left := way.spool.depth:
                _log.warning("%d postings wait in the spool for the next process", left)
            way.spool.close()
        for counter in counters.values():
            counter.close()
        for sweeper in sweepers:
            sweeper.stop()
        for each in places.values():
            each.renewing.stop()
        for store in (*ledgers.values(), *(each.store for each in places.values())):
            close = getattr(store, "close", None)
            if close is not None:
                close()

    @_one_at_a_time
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

    @_one_at_a_time
    def places(self, url: str, timeout_s: float) -> OpenPlaces:
        """Engines' places in a store; vouched for until the last instance leaves. Errors as ``ledger``."""
        key = (url, timeout_s)
        if key not in self._places:
            store = self._connect_places(url, timeout_s)
            opened = OpenPlaces(store, self.leaves, self.engine_pace)
            self._places[key] = _Places(store, opened, Every(RENEW_S, opened.renew))
            self._places[key].renewing.start()
        return self._places[key].open

    @_one_at_a_time
    def poster(self, url: str, timeout_s: float) -> Poster:
        """One for each store. What earlier processes left in its spool is replayed from now on.

        Raises:
            ValueError: not a ledger's URL.
            LedgerUnavailable: no node of a Cluster answered.
            SpoolUnavailable: there is no directory for the spool, or its settings are wrong.
        """
        address = ledger_address(url)
        way = self._ways.get(address)
        if way is None:
            directory = self._spool_dir or spool_directory()
            spool = DurableSpool(directory, address, limits=SpoolLimits(size=spool_bytes_max()))
            queue = GreenletQueue("replay", capacity=1)
            poster = Poster(self.ledger(url, timeout_s), spool, queue)
            way = self._ways[address] = _Way(poster, spool, queue, Every(RESUME_S, poster.resume))
            poster.resume()
            way.resuming.start()
            if self._metrics is None:
                self._metrics = serve_metrics(self._observe)
        return way.poster

    @_one_at_a_time
    def outage(
        self, url: str, timeout_s: float, mode: StoreOutage, policy: LeasePolicy
    ) -> tuple[Outage, AdmissionCounts]:
        """What admits without the ledger, one for each store, mode and policy; and its store's counts. Raises as
        ``ledger``."""
        address = ledger_address(url)
        if address not in self._away:
            self._away[address] = WithoutLedger(self.ledger(url, timeout_s))
        away = self._away[address]
        return away.mode(mode, policy), away.counts

    def _observe(self) -> list[Observed]:
        return [
            Observed(address, way.poster, way.spool, self._away.get(address)) for address, way in self._ways.items()
        ]

    def replayed(self, timeout_s: float | None = None) -> bool:
        """Wait until nothing is left to replay. False when ``timeout_s`` ran out."""
        return all(way.queue.join(timeout_s) for way in self._ways.values())

    @_one_at_a_time
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

"""Who takes part: the way to the store with what happens on it, a plugin server's spool, and both kinds of server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kong_plugins.adapters.spool_file import SpoolFile
from kong_plugins.adapters.spool_postings import decode, encode
from kong_plugins.application.admit import Admission, AdmissionPolicy, Ask, Denied, Held
from kong_plugins.application.ports import LedgerUnavailable, Posting, Spooled, SpoolUnavailable
from kong_plugins.application.posting import Poster, name_of
from kong_plugins.application.prompts import PromptsUnderWay
from kong_plugins.application.settle import NO_ANSWER, Answer, Settling, UnknownUsage, UnknownUsagePolicy
from kong_plugins.domain.attempts import Earlier
from kong_plugins.domain.errors import CountUnavailable
from kong_plugins.domain.events import Admitted, Ending
from kong_plugins.domain.holds import HoldOutcome, HoldRequest, Outcome, Registration, Settlement, SettleOutcome
from kong_plugins.domain.leases import LeaseOutcome, LeaseRequest
from tests.simulation.kernel import Killed, Process, SimBackground
from tests.simulation.without_store import WithoutStore

if TYPE_CHECKING:
    from tests.simulation.world import World

TIMEOUT_US = 500_000
FORGOTTEN_US = 30_000_000
LATE_US = 20_000_000  # a store that stalls may read what nobody waits for any more


class Wire:
    """A process' way to the store. Every call lets the others run before and after its effect."""

    def __init__(self, world: World, process: Process, node: str) -> None:
        self._world = world
        self._process = process
        self._ledger = world.store_ledger(node)
        self.cut_until_us = 0

    def call(self, operation: str, *args: Any) -> Any:
        kernel, faults = self._world.kernel, self._world.faults
        kernel.sleep(kernel.random.randrange(100, 800))
        if kernel.now_us < self.cut_until_us:
            kernel.sleep(TIMEOUT_US)
            raise LedgerUnavailable("no way to the store")
        if faults.hit("killed before the call"):
            self._die()
        if faults.hit("slow") or (operation in LEASING and faults.hit("lease slow")):
            kernel.sleep(kernel.random.randrange(10_000, TIMEOUT_US))
        if faults.hit("request lost"):
            kernel.sleep(TIMEOUT_US)
            raise LedgerUnavailable("no answer in time")
        if faults.hit("delivered late") or (operation in LEASING and faults.hit("lease delivered late")):
            self._later(operation, args)
            kernel.sleep(TIMEOUT_US)
            raise LedgerUnavailable("no answer in time")
        answer = self._world.apply(operation, args, self._ledger, self._process)
        if faults.hit("delivered twice") or (operation in LEASING and faults.hit("lease delivered twice")):
            self._later(operation, args)
        if faults.hit("killed after the effect"):
            self._die()
        if faults.hit("reply lost"):
            kernel.sleep(TIMEOUT_US)
            raise LedgerUnavailable("no answer in time")
        if operation in LEASING and faults.hit("lease slow"):
            kernel.sleep(kernel.random.randrange(10_000, TIMEOUT_US))
        kernel.sleep(kernel.random.randrange(100, 800))
        return answer

    def _later(self, operation: str, args: tuple[Any, ...]) -> None:
        sent_us = self._world.kernel.now_us

        def deliver() -> None:
            if self._world.kernel.now_us - sent_us > FORGOTTEN_US:
                return  # asleep or leapt over: no connection lasts so long
            try:
                self._world.apply(operation, args, self._ledger, self._process)
            except LedgerUnavailable:
                self._world.kernel.note("late and lost", operation)

        if operation in LEDGER:
            longest_us = LATE_US if operation in LEASING else 2_000_000
            random = self._world.kernel.random
            self._world.nature.spawn(deliver, random.randrange(random.choice([2_000_000, longest_us])))

    def _die(self) -> None:
        if self._process is self._world.nature:
            raise LedgerUnavailable("an operator's command was broken off")
        self._world.killed(self._process)
        raise Killed

    def hold(self, request: HoldRequest) -> HoldOutcome:
        leased = self._world.watch.leased
        try:
            outcome: HoldOutcome = self.call("hold", request)
        except LedgerUnavailable:
            leased.answered(request.hold_id, None)
            raise
        leased.answered(request.hold_id, outcome.admitted)
        return outcome

    def lease(self, request: LeaseRequest) -> LeaseOutcome:
        return self.call("lease", request)

    def register(self, registration: Registration) -> bool:
        return self.call("register", registration)

    def settle(self, settlement: Settlement) -> SettleOutcome:
        return self.call("settle", settlement)

    def tighten(self, tenant: str, hold_id: str, amounts: Sequence[tuple[str, int]]) -> bool:
        return self.call("tighten", tenant, hold_id, amounts)

    def record(self, tenant: str, event_id: str, event: bytes) -> bool:
        return self.call("record", tenant, event_id, event)


LEASING = frozenset({"lease", "register"})
LEDGER = LEASING | frozenset({"hold", "settle", "tighten", "record", "grant", "reset", "expire_partition"})


class FileSpool:
    """``Spool`` over one real file, for a process of one thread. The file stays when the process is killed."""

    def __init__(self, world: World, path: Path) -> None:
        self._world = world
        self._file = SpoolFile(path, "simulated")

    @property
    def waiting(self) -> int:
        return self._file.sums.waiting

    @property
    def depth(self) -> int:
        return self._file.sums.waiting + self._file.sums.deferred

    @property
    def rows(self) -> int:
        return self._file.sums.rows

    def append(self, posting: Posting) -> None:
        if self._world.faults.hit("spool full"):
            self._world.lost(posting)
            raise SpoolUnavailable("no room")
        self._world.kernel.sleep(50)
        self._file.append([(name_of(posting), self._now_ms(), encode(posting))])
        self._world.watch.counts.spooled += 1
        if isinstance(posting, Settlement):
            self._world.watch.promised[posting.hold_id] = None

    def oldest(self, count: int) -> tuple[Spooled, ...]:
        return self._spooled(self._file.oldest(count))

    def due(self, count: int) -> tuple[Spooled, ...]:
        return self._spooled(self._file.oldest(count, self._now_ms()))

    def remove(self, entries: Sequence[Spooled]) -> None:
        self._world.kernel.sleep(50)
        self._file.remove([each.position[1] for each in entries])

    def defer(self, entry: Spooled, reason: str, seconds: float | None) -> None:
        self._file.defer(entry.position[1], reason, None if seconds is None else self._now_ms() + round(seconds * 1000))

    def retry_all(self) -> None:
        self._file.retry_all()

    def adopt(self) -> None:
        """Its file is its own."""

    def close(self) -> None:
        self._file.close()

    def _now_ms(self) -> int:
        return self._world.kernel.now_us // 1000

    @staticmethod
    def _spooled(rows: Sequence[Any]) -> tuple[Spooled, ...]:
        return tuple(Spooled((0, row.seq), decode(row.posting), row.failures) for row in rows)


class PluginServer:
    """A process of one plugin: the parts it has in memory, its spool's file beside them."""

    def __init__(self, world: World, name: str, node: str, path: Path) -> None:
        self.process = Process(world.kernel, name)
        self.wire = Wire(world, self.process, node)
        self.spool = FileSpool(world, path)
        self._backgrounds: list[SimBackground] = []
        self.poster = Poster(self.wire, self.spool, self.background())
        self.poster.resume()
        self.process.spawn(self._resume_now_and_then, 5_000_000)

    def background(self) -> SimBackground:
        made = SimBackground(self.process, (LedgerUnavailable,))
        self._backgrounds.append(made)
        return made

    @property
    def idle(self) -> bool:
        return not self.spool.rows and not any(map(len, self._backgrounds))

    def end(self) -> None:
        self.spool.close()

    def _resume_now_and_then(self) -> None:
        while True:
            self.poster.resume()
            self.process.kernel.sleep(5_000_000)


class QuotaServer(PluginServer):
    """token-quota's: decides, and settles every request, also those of unknown usage."""

    def __init__(self, world: World, name: str, node: str, path: Path, charge: UnknownUsage) -> None:
        super().__init__(world, name, node, path)
        self.prompts = PromptsUnderWay()
        self.without = WithoutStore(world, self.process, self.wire, node)
        policy = AdmissionPolicy(world.ttl_us, patience_us=60_000_000, clamp_min=4)
        self.admission = Admission(
            self.wire,
            self.background(),
            self.background(),
            policy,
            lambda s: world.kernel.sleep(round(s * 1e6)),
            lowered=self.prompts.lower,
            outage=self.without.outage,
        )
        self._settling = Settling(
            self.poster, UnknownUsagePolicy(charge, self.prompts, world.count_text), self.background()
        )
        self._world = world
        self._records = self.background()

    @property
    def idle(self) -> bool:
        return super().idle and self.without.idle

    def access(self, ask: Ask, prompt: int) -> Held | Denied | Earlier:
        """
        Raises:
            LedgerUnavailable: no decision was made.
        """
        decided = self.admission.admit(ask)
        if isinstance(decided, Held):
            if self._world.faults.hit("decision not taken"):
                self.admission.forsake(ask.tenant, ask.hold_id, decided.planned)
                raise LedgerUnavailable("Kong did not wait so long")
            self.prompts.remember(ask.hold_id, prompt, lambda: self._count(prompt))
        return decided

    def denied(self, tenant: str, event_id: str, event: bytes) -> None:
        self._records.submit(lambda: self.wire.record(tenant, event_id, event) and None)

    def log(self, admitted: Admitted, ending: Ending, answer: Answer) -> None:
        retriable = admitted.retriable and ending.outcome() is Outcome.COMPLETED
        self._settling.settle(admitted, ending, answer if retriable else NO_ANSWER)

    def _count(self, prompt: int) -> int:
        if self._world.faults.hit("tokenizer cannot count"):
            raise CountUnavailable("not now")
        return prompt


class BillingServer(PluginServer):
    """billing-events': settles what has known usage, whoever else does."""

    def __init__(self, world: World, name: str, node: str, path: Path) -> None:
        super().__init__(world, name, node, path)
        self._settling = Settling(self.poster)

    def log(self, admitted: Admitted, ending: Ending, answer: Answer) -> None:
        self._settling.settle(admitted, ending, NO_ANSWER)

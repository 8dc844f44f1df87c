"""The world: tenants and their budgets, two gateways, a store, an engine, a collector with its sink, and what befalls
them. It runs in epochs: trouble, then rest, then an audit in which everything has to add up."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kong_plugins.application import admit, leasing
from kong_plugins.application.ports import LedgerUnavailable, Posting
from kong_plugins.application.reconcile_ledger import Posting as Posted
from kong_plugins.application.reconcile_scrapes import Scrape
from kong_plugins.application.settle import UnknownUsage
from kong_plugins.domain.budgets import Budget, Mode
from kong_plugins.domain.holds import Line, Registration, Settlement, SettleOutcome, SettleStatus
from kong_plugins.domain.partitions import partition_of
from kong_plugins.domain.planning import BudgetRule, Counts, plan, weights_of
from kong_plugins.domain.pricing import Price
from kong_plugins.domain.rating import PriceEntry, PriceList, Rate
from kong_plugins.domain.usage import NO_USAGE
from kong_plugins.domain.windows import FixedWindow, RollingWindow, TokenBucket, Unit
from tests.simulation.account import check
from tests.simulation.audit import audit
from tests.simulation.collecting import Books, Collector
from tests.simulation.faults import Faults
from tests.simulation.invariants import Watch
from tests.simulation.kernel import Kernel, Process, Violation
from tests.simulation.nature import Nature
from tests.simulation.parties import LEDGER, BillingServer, PluginServer, QuotaServer
from tests.simulation.traffic import MODEL, Clients, Engine, Gateway, Logical

SECOND = 1_000_000
START_US = 2_216_160_000 * SECOND  # 2040-03-23: far enough away that a real store forgets nothing by its own clock
GRACE_US = 120 * SECOND
TERMINAL_US = 600 * SECOND
TTL_US = 60 * SECOND
DEFERRED_MAX_US = 700 * SECOND  # what the ledger took errors at is tried again
REST_STEPS = 50_000
EPOCH = 10_000
IDLE_S = 8.0  # without a request: then a lease is given back
LIMITS = {"grace_us": GRACE_US, "terminal_us": TERMINAL_US, "answers_bytes": 40_000}


@dataclass
class Tenant:
    """``rules`` change while requests run; names stay."""

    name: str
    rules: list[BudgetRule]


def tenants() -> dict[str, Tenant]:
    """Two of them share a partition. Only the first few partitions are used: a real store's are all asked each time."""
    names = [_named(number, partition) for number, partition in enumerate((0, 1, 1))]
    found = {}
    for number, name in enumerate(names):
        prices = {MODEL: Price(550_000, 140_000, 2_190_000, request=3).weights()}
        cached = weights_of(Counts.CACHED_WEIGHTED, 25)
        found[name] = Tenant(
            name,
            [
                BudgetRule(Budget("daily", 60_000, FixedWindow(Unit.DAY, "Europe/Berlin"))),
                BudgetRule(Budget("hourly", 9_000, FixedWindow(Unit.HOUR, "Asia/Kolkata"))),
                BudgetRule(Budget("month", 150_000, FixedWindow(Unit.MONTH, "America/New_York", 31), cached)),
                BudgetRule(Budget("minute", 2_500, FixedWindow(Unit.MINUTE))),
                BudgetRule(Budget("rolling", 5_000 + 500 * number, RollingWindow(60))),
                BudgetRule(Budget("bucket", 6_000, TokenBucket(60), weights_of(Counts.COMPLETION))),
                BudgetRule(Budget("cost", 90, FixedWindow(Unit.MINUTE), mode=Mode.SOFT), Counts.COST, prices),
            ],
        )
    return found


class World:
    def __init__(
        self,
        seed: int,
        store: Any,
        directory: Path,
        *,
        without: frozenset[str] = frozenset(),
        books: Books | None = None,
        about: str | None = None,
    ) -> None:
        self.kernel = kernel = Kernel(seed, START_US, about)
        self.faults = Faults(kernel, without)
        self.watch = Watch(TERMINAL_US, TTL_US + GRACE_US, lambda: kernel.now_us)
        self.ttl_us = TTL_US
        self.tenants = tenants()
        self.partitions = list(dict.fromkeys(map(partition_of, self.tenants)))
        self.directory = directory
        self.store = store
        self.store_skew_us = 0
        self.consumers: dict[str, Process] = {}
        self.collectors = 0
        self.lives = 0  # of processes that leased
        self.silent_until_us: Counter[str] = Counter()
        self.store_up = True
        self.node_skew_us = {"gw1": 0, "gw2": 0}
        self.clocks_jumped = False
        self.lost_postings: dict[str, None] = {}
        self.resting = False
        self.logical: dict[tuple[str, str, str], list[Logical]] = {}
        self.scrapes: list[Scrape] = []
        self.prices = PriceList("EUR", {MODEL: (_price(1, 0),), "other": (_price(1, 0),)})
        self.epochs = 0
        self.operations: Counter[str] = Counter()
        self.began_us = self.counted_since_us = kernel.now_us
        self.postings: list[Posted] = []
        store.begin(self.store_now, LIMITS, self.partitions)
        # The one clock that the application layer reads by itself, and a time that is long here.
        self._as_it_was = (admit.monotonic, leasing.IDLE_S)
        admit.monotonic, leasing.IDLE_S = kernel.monotonic, IDLE_S
        self.nature = Process(kernel, "nature")
        self.engine = Engine(self, 0)
        self.gateways = [Gateway(self, name) for name in self.node_skew_us]
        for gateway in self.gateways:
            self.start_quota(gateway)
            self.start_billing(gateway)
        self.books = books or Books()
        self.books.world = self
        self.collector = Collector(self, 0)
        self.clients = Clients(self, 30)
        Nature(self)

    # What happens at the store.

    def store_now(self) -> int:
        return self.kernel.now_us + self.store_skew_us

    def store_ledger(self, node: str) -> Any:
        return self.store.ledger_for(lambda: self.kernel.now_us + self.node_skew_us.get(node, 0))

    def quiet_ledger(self) -> Any:
        """For an audit, where nothing goes wrong."""
        return self.store_ledger("audit")

    def apply(self, operation: str, args: tuple[Any, ...], ledger: Any, process: Process) -> Any:
        """One operation takes effect, and everything is looked at. ``process`` asked for it."""
        if not self.store_up:
            raise LedgerUnavailable("the store is down")
        self.operations[operation] += 1
        self.store.tick()
        run: Callable[..., Any] = getattr(ledger if operation in LEDGER else self.store, operation)
        watch, refusal = self.watch, None
        known = operation == "register" and self.store.knows(args[0].request.tenant, args[0].request.hold_id)
        try:
            answer = run(*args)
        except LedgerUnavailable as error:  # of the store's, after it looked
            answer, refusal = None, error
        now_us = self.store.now_us(ledger)
        cause: tuple[str | None, str | None] = (None, None)
        match operation:
            case "hold":
                watch.leased.asked(args[0], process)
                watch.hold(args[0], answer, now_us)
                self._note(operation, args[0].hold_id, answer.admitted, answer.repeated, answer.earlier)
            case "lease":
                watch.leased.lease(args[0], answer, now_us)
                self._note(operation, args[0].lease_id, args[0].turn, answer and [each.amount for each in answer.lines])
            case "register":
                watch.leased.register(args[0], answer, known, now_us)
                self._note(operation, args[0].request.hold_id, args[0].lease_id, answer, known)
            case "settle":
                self._settled(args[0], answer, now_us)
                if answer.status is SettleStatus.POSTED:
                    cause = (args[0].hold_id, answer.reversed_id)
                self._note(operation, args[0].hold_id, answer.status, answer.posted, answer.reversed_id)
            case "tighten":
                watch.tighten(args[1], args[2], answer, now_us)
                self._note(operation, args[1], answer)
            case "record":
                watch.record(args[1], answer, now_us)
                cause = (args[1] if answer else None, None)
                self._note(operation, args[1], answer)
            case "grant" | "reset":
                line: Line = args[1]
                amount = args[2] if operation == "grant" else None
                watch.grant(args[0], line.key, line.window, amount, args[-1], now_us)
                self._note(operation, args[-1], amount)
            case "expire_partition":
                watch.swept(args[0], now_us)
                watch.leased.end(args[0], now_us)
            case "trim" | "acknowledge" | "commands" | "retry_dead":
                self.store.look(operation, args, answer, watch)
        if operation in LEDGER:
            tenant = "" if operation == "expire_partition" else _tenant(args[0])
            partition = partition_of(tenant) if tenant else args[0]
            watch.events(partition, self.store.news(partition, watch), cause, now_us, GRACE_US)
            if tenant:
                self._compare(tenant, ledger)
        if refusal is not None:
            raise refusal
        return answer

    def _settled(self, settlement: Settlement, answer: SettleOutcome, now_us: int) -> None:
        self.watch.settle(settlement, answer, now_us)

    def _compare(self, tenant: str, ledger: Any) -> None:
        planned = plan(self.tenants[tenant].rules, MODEL, {}, NO_USAGE)
        states = ledger.peek(tenant, [each.line for each in planned])
        now_us = self.store.now_us(ledger)
        self.watch.swept(partition_of(tenant), now_us)
        self.watch.events(
            partition_of(tenant), self.store.news(partition_of(tenant), self.watch), (None, None), now_us, GRACE_US
        )
        names = [each.rule.budget.name for each in planned]
        windows = [each.rule.budget.window for each in planned]
        self.watch.counters(tenant, names, windows, states, now_us)

    def _note(self, *what: Any) -> None:
        self.kernel.note(*what)

    # Who is there.

    def start_quota(self, gateway: Gateway) -> None:
        charge = list(UnknownUsage)[len(gateway.name) % 3] if gateway.name != "gw2" else UnknownUsage.HOLD
        path = self.directory / f"{gateway.name}-quota.db"
        gateway.quota = QuotaServer(self, f"{gateway.name} token-quota", gateway.name, path, charge)

    def start_billing(self, gateway: Gateway) -> None:
        path = self.directory / f"{gateway.name}-billing.db"
        gateway.billing = BillingServer(self, f"{gateway.name} billing-events", gateway.name, path)

    def servers(self) -> list[PluginServer]:
        return [server for gateway in self.gateways for server in (gateway.quota, gateway.billing)]

    def killed(self, process: Process) -> None:
        """It is gone, and somebody starts it again after a while."""
        if not process.alive:
            return
        self.kernel.note("killed", process.name)
        self.kernel.kill(process)
        self.nature.spawn(lambda: self._restart(process), self.kernel.random.randrange(50_000, 5_000_000))

    def _restart(self, process: Process) -> None:
        for gateway in self.gateways:
            if gateway.quota.process is process:
                self.watch.token_quota_restarted = True
                gateway.quota.end()
                self.start_quota(gateway)
            elif gateway.billing.process is process:
                gateway.billing.end()
                self.start_billing(gateway)
            elif gateway.kong is process:
                gateway.kong = Process(self.kernel, process.name)
        if self.collector.process is process:
            self.collector = Collector(self, self.next_collector())
        elif self.engine.process is process:
            self.engine = Engine(self, self.engine.life + 1)
        self.kernel.note("started", process.name)

    def next_collector(self) -> int:
        self.collectors += 1
        while len(self.consumers) > 50:
            del self.consumers[next(iter(self.consumers))]
        return self.collectors

    def count_text(self, model: str, text: str) -> int:
        return len(text) // 4

    def lost(self, posting: Posting) -> None:
        """Neither ledger nor spool took it: its event stands in a log."""
        self.lost_postings[posting.hold_id if isinstance(posting, Settlement) else posting.event_id] = None

    def fail_over(self, copied: bytes, durable: bytes) -> None:
        """What the replica had not got is gone, also where somebody was told of it."""
        self.store.restore(copied)
        self.watch.failed_over(pickle.loads(durable))
        kept = {each.event_id for partition in self.partitions for each in self.store.outbox(partition)}
        kept.update(each[3].event_id for each in self.store.dead)
        gone = [each for each in self.watch.undelivered if each not in kept]
        for event_id in gone:
            self.watch.undelivered.pop(event_id, None)
        self.watch.counts.lost_events += sum(each not in self.watch.sunk for each in gone)

    # Trouble and rest.

    def run(self, steps: int, say: Callable[[str], None] = lambda _: None) -> None:
        """About so many steps: the last epoch comes to rest.

        Raises:
            Violation: a promise did not hold.
        """
        while self.kernel.steps < steps:
            self.faults.steady = self.epochs % 8 >= 3
            until = min(steps, self.kernel.steps + EPOCH)
            self.kernel.run(lambda until=until: self.kernel.steps >= until)
            self.rest()
            self.epochs += 1
            say(f"{self.kernel.steps:,} steps, {self.watch.counts.operations:,} operations, trace {self.kernel.digest}")

    def rest(self) -> None:
        """No more trouble and no more requests; then everything has to come to its end."""
        kernel = self.kernel
        self.resting = self.faults.healed = True
        bound = kernel.steps + REST_STEPS
        if self.store_skew_us:
            self.store_skew_us, self.clocks_jumped = 0, True  # somebody sets it right
        calm_us = kernel.now_us + 20 * SECOND
        kernel.run(lambda: kernel.now_us >= calm_us or kernel.steps >= bound)
        durable = self.watch.durable
        unended = [each.lapses_us for each in durable.holds.values() if each.state in {"open", "lapsed"}]
        unended += [each.ends_us for each in durable.leases.values()]
        # A store's clock that went back makes holds last longer.
        longest_us = max([0, *(each - self.store_now() for each in unended)])
        kernel.now_us += longest_us + GRACE_US + DEFERRED_MAX_US

        def at_rest() -> bool:
            check(kernel.steps < bound, "it does not come to rest", self._waiting())
            return kernel.steps % 10 == 0 and not self._waiting()

        kernel.run(at_rest)
        self.scrapes.append(self.engine.scrape())
        audit(self)
        self.watch.counts.audits += 1
        self.resting = self.faults.healed = False

    def _waiting(self) -> list[str]:
        for server in self.servers():
            if server.process.alive and server.spool.rows and not server.spool.depth:
                server.spool.retry_all()  # what was set aside is an operator's to replay
        found = [server.process.name for server in self.servers() if not server.process.alive or not server.idle]
        found += [each.kong.name for each in self.gateways if not each.kong.alive or each.kong.tasks]
        found += ["clients"] * bool(self.clients.busy)
        found += [] if self.collector.process.alive and self.store.drained() else ["outbox"]
        found += ["not trimmed"] * any(self.store.outbox(partition) for partition in self.partitions)
        found += (
            ["holds"] if any(each.state in {"open", "lapsed"} for each in self.watch.durable.holds.values()) else []
        )
        return found + ["leases"] * bool(self.watch.durable.leases)

    def change_price(self) -> None:
        """From now on tokens cost something else."""
        entry = _price(self.kernel.random.randint(1, 5), self.kernel.now_us // 1000)
        if self.prices.models[MODEL][-1].from_ms < entry.from_ms:
            self.prices = PriceList("EUR", {**self.prices.models, MODEL: (*self.prices.models[MODEL], entry)})

    def edit(self, tenant: Tenant, index: int, limit: int) -> None:
        rule = tenant.rules[index]
        tenant.rules = list(tenant.rules)
        tenant.rules[index] = replace(rule, budget=replace(rule.budget, limit=limit))

    def close(self) -> None:
        admit.monotonic, leasing.IDLE_S = self._as_it_was
        for server in self.servers():
            server.end()
        self.books.close()
        self.store.close()


def _named(number: int, partition: int) -> str:
    return next(name for each in range(100_000) if partition_of(name := f"tenant-{number}{each}") == partition)


def _price(factor: int, from_ms: int) -> PriceEntry:
    return PriceEntry(MODEL, str(from_ms), from_ms, Rate(550_000 * factor, 140_000, 2_190_000 * factor, 2_190_000, 7))


def _tenant(first: Any) -> str:
    if isinstance(first, Registration):
        first = first.request
    return first if isinstance(first, str) else first.tenant


__all__ = ["GRACE_US", "LIMITS", "Tenant", "Violation", "World", "tenants"]

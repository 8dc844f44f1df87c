"""What befalls everybody, what operators do meanwhile, and what goes on by the clock: sweeps and scrapes."""

from __future__ import annotations

import pickle
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from kong_plugins.application.ports import LedgerUnavailable, Recording
from kong_plugins.domain.events import AdjustmentKind, adjustment_event, adjustment_id
from kong_plugins.domain.planning import plan
from kong_plugins.domain.usage import NO_USAGE
from kong_plugins.domain.windows import FixedWindow, TokenBucket
from tests.simulation.collecting import Collector
from tests.simulation.parties import Wire

if TYPE_CHECKING:
    from tests.simulation.world import World

SECOND = 1_000_000
SCRAPE_US = 15 * SECOND

# Clocks change in Berlin and New York, months end, a leap day is over, a year ends; beyond the last one a day does.
EDGES_US = sorted(
    int(datetime(*each, tzinfo=UTC).timestamp()) * SECOND
    for each in (
        (2040, 3, 25, 1), (2040, 3, 31, 4), (2040, 4, 30, 18, 30), (2040, 5, 31, 22), (2040, 10, 28, 1),
        (2040, 11, 4, 6), (2040, 12, 31, 23), (2041, 2, 28, 23), (2041, 3, 10, 7), (2041, 3, 31, 1), (2044, 2, 29, 0),
    )
)  # fmt: skip


class Nature:
    def __init__(self, world: World) -> None:
        self._world = world
        self._grants = 0
        self._failing_over = False
        self._operator = Wire(world, world.nature, "operator")
        for run in (self._befall, self._sweep, self._scrape, self._tidy):
            world.nature.spawn(run)

    def _befall(self) -> None:
        world = self._world
        while True:
            world.kernel.sleep(world.kernel.random.randrange(SECOND // 20, 3 * SECOND // 2))
            kind = world.faults.draw()
            if kind is None or not world.store_up or (kind == "ledger fails over" and not world.store.fails_over):
                continue
            world.faults.happened(kind)
            world.nature.spawn(lambda kind=kind: self._happen(kind))

    def _sweep(self) -> None:
        world = self._world
        while True:
            world.kernel.sleep(30 * SECOND)
            for partition in world.partitions:
                self._try("expire_partition", partition)

    def _scrape(self) -> None:
        world = self._world
        while True:
            world.kernel.sleep(SCRAPE_US)
            if world.engine.process.alive:
                world.scrapes.append(world.engine.scrape())

    def _tidy(self) -> None:
        """While the world rests, operators see to what was left to them."""
        while True:
            self._world.kernel.sleep(20 * SECOND)
            if self._world.resting:
                self._try("retry_dead")

    def _try(self, operation: str, *args: object) -> None:
        try:
            self._operator.call(operation, *args)
        except LedgerUnavailable:
            self._world.kernel.note("operator gave up", operation)

    def _happen(self, kind: str) -> None:
        world, random = self._world, self._world.kernel.random
        gateway = random.choice(world.gateways)
        match kind:
            case "partition":
                server = random.choice([*world.servers(), world.collector])
                server.wire.cut_until_us = world.kernel.now_us + random.randrange(SECOND // 2, 40 * SECOND)
            case "node cut off":  # until it is too late for what was admitted first
                cut_us = world.kernel.now_us + random.randrange(60, 500) * SECOND
                gateway.quota.wire.cut_until_us = gateway.billing.wire.cut_until_us = cut_us
            case "token-quota stopped":
                gateway.quota.process.stopped_until_us = world.kernel.now_us + random.randrange(
                    SECOND // 2, 20 * SECOND
                )
            case "tenant silent":
                tenant = random.choice(list(world.tenants))
                world.silent_until_us[tenant] = world.kernel.now_us + random.randrange(SECOND, 20 * SECOND)
            case "tenant in a rush":
                if random.random() < 0.5:  # over the end of a minute
                    world.kernel.sleep(60 * SECOND - world.store_now() % (60 * SECOND) - random.randrange(SECOND))
                world.clients.rush(random.choice(list(world.tenants)), random.randrange(5, 40))
            case "ledger restarts":
                world.store_up = False
                world.store.restart()
                world.kernel.sleep(random.randrange(SECOND // 10, 30 * SECOND))
                world.store_up = True
            case "ledger fails over":
                if self._failing_over:
                    return
                self._failing_over = True
                copied, durable = world.store.copy(), pickle.dumps(world.watch.durable)
                world.kernel.sleep(random.randrange(1_000, SECOND))
                world.fail_over(copied, durable)
                self._failing_over = False
            case "token-quota killed":
                world.killed(gateway.quota.process)
            case "billing-events killed":
                world.killed(gateway.billing.process)
            case "gateway killed":
                world.killed(gateway.kong)
            case "engine killed":
                world.scrapes.append(world.engine.scrape())
                world.killed(world.engine.process)
            case "collector killed":
                world.killed(world.collector.process)
            case "collector stopped":
                world.collector.stopping = True
            case "collector overtaken":
                self._overtake()
            case "ledger's clock back":
                self._set_store(random.choice([-1, -30, -400, -4000]) * SECOND)
            case "ledger's clock ahead":
                self._set_store(random.choice([1, 30, 400, 4000]) * SECOND)
            case "gateway's clock off":
                world.node_skew_us[gateway.name] = random.randrange(-SECOND // 2, SECOND // 2)
            case "time leaps to an edge":
                world.clocks_jumped = True
                edges = [each for each in EDGES_US if each > world.kernel.now_us + 5 * SECOND]
                day = (world.kernel.now_us // (86_400 * SECOND) + 1) * 86_400 * SECOND
                # By steps of less than the month for which a store keeps what nobody sweeps.
                edge_us = min((edges[0] if edges else day) - 3 * SECOND, world.kernel.now_us + 20 * 86_400 * SECOND)
                world.kernel.now_us = max(world.kernel.now_us, edge_us)
            case "everybody asleep":
                world.clocks_jumped = True
                world.kernel.now_us += random.choice([20, 100, 1000]) * SECOND
            case _:
                self._operate(kind)

    def _operate(self, kind: str) -> None:
        world, random = self._world, self._world.kernel.random
        tenant = random.choice(list(world.tenants.values()))
        index = random.randrange(len(tenant.rules))
        match kind:
            case "limit edited":
                budget = tenant.rules[index].budget
                world.edit(tenant, index, max(50, budget.limit * random.choice([50, 90, 110, 180]) // 100))
            case "grant" | "reset":
                planned = plan(tenant.rules, "r1", {}, NO_USAGE)[index]
                if kind == "grant" and not isinstance(planned.line.window, FixedWindow | TokenBucket):
                    return  # a grant stays a slice longer than the window is long, which the plain sum here is not told
                self._grants += 1
                grant_id = f"g{self._grants}"
                about = (random.randint(-100, 2_000),) if kind == "grant" else ()
                for _ in range(random.choice([1, 1, 3])):  # an operator's command, run again
                    self._try(kind, tenant.name, replace(planned.line, amount=0), *about, "because", grant_id)
                    world.kernel.sleep(random.randrange(2 * SECOND))
            case "prices changed":
                world.change_price()
            case "sink down":
                world.books.away_until_us = world.kernel.now_us + random.randrange(SECOND, 60 * SECOND)
            case "dead letters retried":
                self._try("retry_dead")
            case "event of no hold":
                world.clients.unmetered_event()
            case "credit":
                self._grants += 1
                event_id = adjustment_id(f"a{self._grants}")
                event = adjustment_event(
                    event_id=event_id,
                    source="operator",
                    time_ms=world.kernel.now_us // 1000,
                    tenant=tenant.name,
                    kind=AdjustmentKind.CREDIT,
                    amount=random.randint(-5_000_000, 5_000_000),
                    currency="EUR",
                    account="goodwill",
                    reason="because",
                )
                server = random.choice(world.gateways).billing
                if server.process.alive:
                    server.process.spawn(lambda: server.poster.record(Recording(tenant.name, event_id, event)))

    def _overtake(self) -> None:
        """It hears of nobody for a while, and another takes its place; what it still does comes on top."""
        world, old = self._world, self._world.collector
        if not old.process.alive:
            return
        old.wire.cut_until_us = world.kernel.now_us + world.kernel.random.randrange(31, 60) * SECOND
        world.collector = Collector(world, world.next_collector())
        world.kernel.sleep(90 * SECOND)
        if old.process.alive:
            world.kernel.kill(old.process)

    def _set_store(self, by_us: int) -> None:
        self._world.store_skew_us += by_us
        self._world.clocks_jumped = True

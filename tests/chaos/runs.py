"""Many faults in one stack, then one look at the books."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from kong_plugins.adapters.ledger import connect_ledger
from kong_plugins.adapters.ledger.audit import connect_audit
from kong_plugins.application.ports import LedgerUnavailable
from tests.chaos.checks import Findings, check
from tests.chaos.clients import Clients, Look, Seen, Watch
from tests.chaos.faults import OF_NODES, Fault, Kind, inflict, plan
from tests.chaos.hosts import Network, why_no_hosts
from tests.chaos.ledgers import OneLedger, SentinelLedger
from tests.chaos.places import Here
from tests.chaos.world import World, WorldOptions
from tests.integration.sentinel_nodes import Nodes

QUIET_S = 25.0  # a spool is replayed within seconds of its ledger's return
QUIET_FOR_S = 6.0


@dataclass(frozen=True)
class Inflicted:
    """When a fault was there, epoch seconds. ``well_at``: when a fresh request was served again; None: not looked."""

    fault: Fault
    began: float
    ended: float
    well_at: float | None = None


@dataclass
class Outcome:
    inflicted: list[Inflicted] = field(default_factory=list)
    seen: Seen = field(default_factory=Seen)
    findings: Findings = field(default_factory=Findings)

    @property
    def kinds(self) -> Counter[str]:
        return Counter(each.fault.kind.value for each in self.inflicted)


def run(
    directory: Path,
    faults: Sequence[Fault],
    seed: int,
    options: WorldOptions,
    say: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """The faults one after another, under load; then the books are checked. All of one world: with a network or nodes,
    or with neither."""
    outcome = Outcome()
    kinds = {fault.kind for fault in faults}
    with ExitStack() as resources:
        network: Network | None = None
        if kinds & set(OF_NODES):
            if not why_no_hosts():
                network = Network(["node0", "node1", "node2", "engine"], resources)
                resources.enter_context(network.entered())
            places = [network.hosts[f"node{node}"] if network else Here() for node in range(3)]
            (directory / "nodes").mkdir()
            ledger: SentinelLedger | OneLedger = SentinelLedger(Nodes(directory / "nodes", places))
        else:
            ledger = OneLedger(directory / "ledger", options.appendfsync)
        engine = network.hosts["engine"] if network else Here()
        world = World(directory, resources, ledger, engine, options)
        watch = _watch(world, resources)
        clients = Clients(world.stack.url, {name: world.keys[name] for name in (*options.rich, *options.poor)}, seed)
        outcome.seen = clients.seen
        problems: list[str] = []
        clients.start()
        try:
            for fault in faults:
                time.sleep(fault.pause_s)
                outcome.inflicted.append(_inflict(world, fault, network, problems))
                asked, last = len(clients.seen.asked), outcome.inflicted[-1]
                forgot = sum(less for at, _, less in watch.drops if at >= last.began)
                forgot_text = f", {forgot:,} tokens forgotten" if forgot else ""
                well = f", well again after {last.well_at - last.ended:.1f} s" if last.well_at else ""
                say(f"{fault.number:>4}  {fault}{well}{forgot_text}; {asked:,} requests so far")
            problems += _recover(world, "the last of all")[1]
        finally:
            clients.stop()
            watch.stop()
        _wait_until_quiet(world)
        world.drain()
        outcome.findings = check(world, clients.seen, outcome.inflicted, watch)
        outcome.findings.problems[:0] = problems
    return outcome


def _inflict(world: World, fault: Fault, network: Network | None, problems: list[str]) -> Inflicted:
    began = time.time()
    inflict(world, fault, network)
    ended = time.time()
    world.restore()
    if not fault.rest:
        return Inflicted(fault, began, ended)
    well_at, amiss = _recover(world, f"{fault.number}, {fault}")
    problems += amiss
    return Inflicted(fault, began, ended, well_at)


def _recover(world: World, after: str) -> tuple[float, list[str]]:
    """Everything serves again by itself. Returns when, and what does not."""
    deadline = time.monotonic() + world.options.recovers_s
    while True:
        amiss = world.serves() or ("" if world.ledger.settled() else "its ledger is not whole")
        amiss = amiss or ("" if world.collector_ready() else "its collector is not ready")
        if not amiss:
            return time.time(), []
        if time.monotonic() > deadline:
            late = f"not well {world.options.recovers_s:.0f} s after fault {after}"
            return time.time(), [f"{late}: {amiss}; gone: {world.gone()}"]
        time.sleep(0.1)


def _watch(world: World, resources: ExitStack) -> Watch:
    ledger = connect_ledger(world.ledger.url)
    resources.callback(ledger.close)

    def look() -> Look:
        poor = [balance.state for tenant in world.options.poor for balance in ledger.balances(tenant)]
        rich = [(tenant, each.state) for tenant in world.options.rich for each in ledger.balances(tenant)]
        return Look(
            {state.reset_us: state.committed + state.held for state in poor},
            {tenant: state.committed for tenant, state in rich if state.key == "monthly"},
        )

    return Watch(look)


def _wait_until_quiet(world: World) -> None:
    """Until holds no longer end, and the spool, if any, had its time."""
    audit = connect_audit(world.ledger.url)
    deadline, before, since = time.monotonic() + QUIET_S, -1, time.monotonic()
    while time.monotonic() < deadline:
        try:
            now = sum(1 for _ in audit.open_holds())
        except LedgerUnavailable:
            now = -1
        if now == 0:
            break
        if now != before:
            before, since = now, time.monotonic()
        elif time.monotonic() - since > QUIET_FOR_S:
            break
        time.sleep(0.1)
    audit.close()


def planned(seed: int, runs: int, kinds: Sequence[Kind]) -> list[list[Fault]]:
    """A plan, by world: faults of one Valkey on this host, then those of nodes."""
    faults = plan(seed, runs, kinds)
    by_world = [[f for f in faults if f.kind not in OF_NODES], [f for f in faults if f.kind in OF_NODES]]
    return [each for each in by_world if each]

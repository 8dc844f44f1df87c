"""Many kills in one stack, then one look at the books."""

from __future__ import annotations

import random
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import httpx2 as httpx
import pytest

from kong_plugins.adapters.ledger import connect_ledger
from kong_plugins.adapters.ledger.audit import connect_audit
from kong_plugins.application.ports import LedgerUnavailable
from tests.chaos.checks import Findings, check
from tests.chaos.clients import GENERATING, Clients, Seen
from tests.chaos.killing import Killable, Victim

TENANTS = ("kilo", "lima")
QUIET_S = 20.0  # a spool is replayed within seconds of its ledger's return
NOTES_EVERY = 5  # the engine's stand-in remembers its last thousand requests


@dataclass
class Outcome:
    kills: Counter[str] = field(default_factory=Counter)
    generated: set[str] = field(default_factory=set)
    seen: Seen = field(default_factory=Seen)
    findings: Findings = field(default_factory=Findings)


@contextmanager
def killable_stack(directory: Path, appendfsync: Literal["everysec", "always"], collector: str) -> Iterator[Killable]:
    with ExitStack() as resources:
        monkeypatch = resources.enter_context(pytest.MonkeyPatch.context())
        for tenant in TENANTS:
            monkeypatch.setenv(f"DECK_{tenant.upper()}_KEY", f"sk-{uuid.uuid4().hex}")
        monkeypatch.setenv("TOKEN_QUOTA_SPOOL_DIR", str(directory / "spool"))
        yield Killable(directory, resources, TENANTS, appendfsync, collector)


def kill_and_check(
    directory: Path,
    runs: int,
    seed: int,
    *,
    appendfsync: Literal["everysec", "always"] = "everysec",
    say: Callable[[str], None] = lambda _: None,
    only: Victim | None = None,
    collector: str = "kong_plugins.cli",
) -> Outcome:
    """``runs`` kills at times and of processes that the seed decides, under load; then the books are checked.
    ``collector``: the module that the collector is run as."""
    choose, outcome = random.Random(seed), Outcome()
    with killable_stack(directory, appendfsync, collector) as killable:
        keys = {tenant: killable.stack.keys[f"DECK_{tenant.upper()}_KEY"] for tenant in TENANTS}
        clients = Clients(killable.stack.url, keys, seed)
        outcome.seen = clients.seen
        clients.start()
        try:
            for run in range(1, runs + 1):
                time.sleep(choose.uniform(0.05, 0.6))
                victim = only or choose.choice(list(Victim))
                outcome.kills[victim.value] += 1
                killable.kill(victim)
                time.sleep(choose.choice((0.0, 0.0, choose.uniform(0.0, 0.5))))
                killable.restore()
                if run % NOTES_EVERY == 0:
                    outcome.generated |= _ran(killable)
                    say(f"{run} of {runs} kills, {len(outcome.generated):,} requests on the engine")
        finally:
            clients.stop()
        _wait_until_quiet(killable)
        outcome.generated |= _ran(killable)
        killable.drain()
        outcome.findings = check(killable, outcome.generated, clients.seen)
    return outcome


def _ran(killable: Killable) -> set[str]:
    """Ids of the requests that the engine generated for."""
    notes = httpx.get(f"{killable.stack.engine_root}/sim/requests", timeout=10).json()["requests"]
    return {
        dict(map(tuple, note["headers"]))["x-request-id"]
        for note in notes
        if note["path"] in GENERATING and note["size"]
    }


def _wait_until_quiet(killable: Killable) -> None:
    """Until holds no longer end, and the spool, if any, had its time."""
    ledger = connect_ledger(killable.stack.ledger_url)
    audit = connect_audit(killable.stack.ledger_url)
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
        elif time.monotonic() - since > QUIET_S / 4:
            break
        time.sleep(0.1)
    audit.close()
    ledger.close()

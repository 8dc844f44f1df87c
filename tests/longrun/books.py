"""The books after the run: every request once, as its client saw it, and as the engine counted."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Set
from dataclasses import dataclass, field
from typing import Any

from kong_plugins.adapters.books import open_books
from kong_plugins.adapters.ledger import connect_ledger
from kong_plugins.adapters.ledger.audit import connect_audit
from tests.longrun.stage import Stage
from tests.longrun.tenants import POOR, POOR_LIMIT
from tests.longrun.traffic import Seen

QUIET_S = 30.0
SHOWN = 5


@dataclass
class Findings:
    """``problems`` is empty when the books are right."""

    problems: list[str] = field(default_factory=list)
    events: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    billed: tuple[int, int] = (0, 0)  # net of reversals
    engine: tuple[int, int] = (0, 0)
    explained: Counter[str] = field(default_factory=Counter)  # by reconcile: why the engine counted otherwise
    not_compared: list[str] = field(default_factory=list)


def overshoot(stage: Stage) -> list[str]:
    """Balances of the poor tenant's hard budget that are over its limit now."""
    ledger = connect_ledger(stage.ledger.url, timeout_s=60.0)
    states = [balance.state for balance in ledger.balances(POOR)]
    ledger.close()
    return [
        f"{POOR} has {state.committed} committed and {state.held} held of {POOR_LIMIT}"
        for state in states
        if state.committed + state.held > POOR_LIMIT
    ]


def wait_until_settled(stage: Stage) -> list[str]:
    """Ids of holds that are still open after all requests ended."""
    audit = connect_audit(stage.ledger.url, timeout_s=60.0)
    deadline = time.monotonic() + QUIET_S
    while (left := [hold.hold_id for hold in audit.open_holds()]) and time.monotonic() < deadline:
        time.sleep(0.5)
    audit.close()
    return left


def check(stage: Stage, generated: Set[str], seen: Seen, days: Set[str]) -> Findings:
    """``generated``: ids of the requests that reached the engine; ``days``: on which there were any (UTC)."""
    findings = Findings()
    with open_books(stage.books, read_only=True) as books:
        columns = "id, kind, prompt, completion, outcome"
        rows: list[tuple[Any, ...]] = books.execute(f"SELECT {columns} FROM events").fetchall()
    requests = {row[0]: row for row in rows if row[1] == "request"}
    findings.events, findings.outcomes = len(rows), Counter(row[4] or row[1] for row in rows)
    findings.billed = (sum(row[2] for row in rows), sum(row[3] for row in rows))
    problems = findings.problems
    problems += [f"{id_} ran on the engine: no event" for id_ in sorted(generated - requests.keys())[:SHOWN]]
    billed = {id_ for id_, row in requests.items() if row[2] + row[3]}
    problems += [f"{id_} never ran on the engine and is billed" for id_ in sorted(billed - generated)[:SHOWN]]
    for id_, usage in seen.usage.items():
        row = requests.get(id_)
        if row is None or (row[2], row[3]) != usage:
            problems.append(f"{id_} is billed {row and row[2:4]}, its client saw {usage}")
    del problems[4 * SHOWN :]
    for day in sorted(days):
        _reconcile(findings, stage, day)
    return findings


def _reconcile(findings: Findings, stage: Stage, day: str) -> None:
    status, found = stage.reconcile(day)
    if not found["engines"] or not found["counters"]:
        findings.problems.append(f"reconcile compared nothing of {day}")
    for engine in found["engines"]:
        counted = engine["engine"]
        findings.engine = (findings.engine[0] + counted["prompt"], findings.engine[1] + counted["completion"])
        findings.explained.update(each["kind"] for each in engine["explanations"])
    findings.not_compared += found["missing"]
    if status == 1:
        amiss = [each for side in ("engines", "counters") for each in found[side] if each["unexplained"]]
        findings.problems.append(f"reconcile exits 1 for {day}: {str(amiss)[:1000]}")

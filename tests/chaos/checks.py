"""What must be true of the books whatever was killed, and the first things that are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from kong_plugins.adapters.books import open_books
from kong_plugins.adapters.event_records import read_event
from kong_plugins.adapters.ledger import connect_ledger
from kong_plugins.adapters.ledger.audit import connect_audit
from kong_plugins.adapters.sinks.jsonl_sink import read_jsonl
from tests.chaos.clients import Seen
from tests.chaos.killing import Killable
from tests.chaos.receiver import read_received


@dataclass
class Findings:
    """``problems`` is empty when the books are right; the rest is for people."""

    problems: list[str] = field(default_factory=list)
    events: int = 0
    unsettled: int = 0
    unposted: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    billed: int = 0
    explained: Counter[str] = field(default_factory=Counter)  # by reconcile: why the engine counted otherwise


def check(killable: Killable, generated: Iterable[str], seen: Seen) -> Findings:
    """``generated``: ids of the requests that reached the engine."""
    findings = Findings()
    with open_books(killable.books, read_only=True) as books:
        columns = "id, kind, tenant, prompt, completion, outcome, status, posted"
        rows: list[tuple[Any, ...]] = books.execute(f"SELECT {columns} FROM events").fetchall()
    requests = {row[0]: row for row in rows if row[1] == "request"}
    findings.events, findings.outcomes = len(requests), Counter(row[5] for row in requests.values())
    findings.billed = sum(row[3] + row[4] for row in rows)
    audit = connect_audit(killable.stack.ledger_url)
    unsettled = {hold.hold_id for hold in audit.open_holds()}
    audit.close()
    findings.unsettled = len(unsettled & set(generated))
    _each_request_once(findings, requests, unsettled, set(generated))
    _as_clients_saw(findings, requests, unsettled, seen)
    _sinks_agree(findings, rows, killable)
    _counters_agree(findings, rows, killable)
    _reconciles(findings, unsettled, killable)
    return findings


def _each_request_once(
    findings: Findings, requests: dict[str, tuple[Any, ...]], unsettled: set[str], generated: set[str]
) -> None:
    """A request that the engine ran has its event, or a hold that will become one; never both, never neither."""
    for lost in sorted(generated - requests.keys() - unsettled)[:5]:
        findings.problems.append(f"{lost} ran on the engine: no event, no hold")
    for both in sorted(requests.keys() & unsettled)[:5]:
        findings.problems.append(f"{both} has its event, and its hold is open still")
    for id_, row in requests.items():
        if id_ not in generated and row[3] + row[4]:
            findings.problems.append(f"{id_} never ran on the engine and is billed {row[3]}+{row[4]}")


def _as_clients_saw(findings: Findings, requests: dict[str, tuple[Any, ...]], unsettled: set[str], seen: Seen) -> None:
    """A whole answer's usage is what is billed for it, where it is settled."""
    for id_, (prompt, completion) in seen.usage.items():
        row = requests.get(id_)
        if row is None:
            if id_ not in unsettled:
                findings.problems.append(f"{id_} was answered whole: no event, no hold")
        elif (row[3], row[4]) != (prompt, completion):
            findings.problems.append(f"{id_} is billed {row[3]}+{row[4]}, its client saw {prompt}+{completion}")


def _sinks_agree(findings: Findings, rows: list[tuple[Any, ...]], killable: Killable) -> None:
    ids = Counter(row[0] for row in rows)
    others = {
        "lines": Counter(read_event(entry.event).id for entry in read_jsonl(killable.lines)),
        "receiver": Counter(str(event["id"]) for event in read_received(killable.received)),
    }
    for name, found in others.items():
        if found != ids:
            findings.problems.append(f"books and {name} differ: {sorted((found - ids) | (ids - found))[:5]}")


def _counters_agree(findings: Findings, rows: list[tuple[Any, ...]], killable: Killable) -> None:
    """What events say was posted is what the ledger's counters have, and nothing is held but what is unsettled."""
    posted: Counter[tuple[str, str]] = Counter()
    for row in rows:
        findings.unposted += row[1] == "request" and not row[7] and row[3] + row[4] > 0
        for line, amount in (row[7] or {}).items():
            posted[row[2], line] += amount
    ledger = connect_ledger(killable.stack.ledger_url)
    for tenant in ledger.tenants():
        for balance in ledger.balances(tenant):
            key = (tenant, balance.state.key)
            if balance.state.committed != posted[key]:
                findings.problems.append(f"{key}: counter {balance.state.committed}, events posted {posted[key]}")
    ledger.close()


def _reconciles(findings: Findings, unsettled: set[str], killable: Killable) -> None:
    """`token-quota reconcile` explains every difference between books, counters and engine, and lists what is held."""
    status, found = killable.reconcile()
    for engine in found["engines"]:
        findings.explained.update(each["kind"] for each in engine["explanations"])
    if status:
        sides = ("engines", "counters")
        amiss = [each for side in sides for each in found[side] if any(_values(each["unexplained"]))]
        findings.problems.append(f"reconcile exits {status}: {found['missing']} {str(amiss)[:1000]}")
    if not found["engines"] or not found["counters"]:
        findings.problems.append("reconcile compared nothing")
    held = {hold["id"] for hold in found["holds"]}
    if held != unsettled:
        findings.problems.append(f"reconcile lists other holds: {sorted(held ^ unsettled)[:5]}")
    if len(found["unposted"]) != findings.unposted:
        findings.problems.append(f"reconcile lists {len(found['unposted'])} unposted, books have {findings.unposted}")


def _values(unexplained: int | dict[str, int]) -> list[int]:
    return [unexplained] if isinstance(unexplained, int) else list(unexplained.values())

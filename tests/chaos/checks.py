"""What must be true of the books whatever happened, and the first things that are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kong_plugins.adapters.books import open_books
from kong_plugins.adapters.event_records import read_event
from kong_plugins.adapters.ledger import connect_ledger
from kong_plugins.adapters.ledger.audit import OpenHold, connect_audit
from kong_plugins.adapters.sinks.jsonl_sink import read_jsonl
from kong_plugins.domain.events import CLIENT_CLOSED
from tests.chaos.clients import Seen, Watch
from tests.chaos.engine import CLIENT_HEADER, read_journal
from tests.chaos.fates import AFTER_S, REPLICATION_S, Event, Evidence, Fate, Felt
from tests.chaos.receiver import read_received
from tests.chaos.world import POOR_LIMIT, World

if TYPE_CHECKING:
    from tests.chaos.runs import Inflicted

MINUTE_MS = 60_000
_COLUMNS = (
    "id, kind, tenant, prompt, completion, outcome, evidence, posted, started_ms, epoch_ms(time), attributes, status"
)


@dataclass
class Findings:
    """``problems`` is empty when the books are right; the rest is for people."""

    problems: list[str] = field(default_factory=list)
    fates: list[Fate] = field(default_factory=list)
    ran: int = 0
    events: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    billed: int = 0
    generated: int = 0
    open: int = 0
    unposted: int = 0
    lost: int = 0  # by a failover: ran, and neither event nor hold is left
    halfway: int = 0  # events that one sink has and another lost in a failover
    rolled_back: int = 0  # tokens that events posted and a failover took off the counters again
    in_flight: int = 0  # tokens that the engine counted after the last that was seen
    assumed: int = 0  # billed by policy (the client left, nobody saw anything), and the engine never began
    unmetered: int = 0
    doubled: int = 0
    overshoot: int = 0
    looks: int = 0
    explained: Counter[str] = field(default_factory=Counter)  # by reconcile: why the engine counted otherwise


def check(world: World, seen: Seen, inflicted: Sequence[Inflicted], watch: Watch) -> Findings:
    findings = Findings(looks=watch.looks)
    with open_books(world.books, read_only=True) as books:
        rows: list[tuple[Any, ...]] = books.execute(f"SELECT {_COLUMNS} FROM events").fetchall()
    events = {row[0]: _event(row) for row in rows if row[1] == "request"}
    audit = connect_audit(world.ledger.url)
    holds = {hold.hold_id: hold for hold in audit.open_holds()}
    audit.close()
    felt = [Felt(each.fault, each.began - REPLICATION_S, each.well_at or each.ended + AFTER_S) for each in inflicted]
    evidence = Evidence(seen.asked, read_journal(world.journal), events, holds, felt)
    findings.ran, findings.events = len(evidence.ran), len(events)
    findings.outcomes = Counter(event.outcome for event in events.values())
    findings.billed = sum(row[3] + row[4] for row in rows)
    findings.generated = sum(sum(each.usage) for each in evidence.ran.values())
    findings.fates = evidence.fates()
    _each_request_once(findings, evidence)
    _holds_are_explained(findings, evidence)
    _unposted_are_explained(findings, evidence)
    _as_clients_saw(findings, evidence)
    _as_the_engine_ran(findings, evidence)
    _sinks_agree(findings, rows, evidence, world)
    _counters_agree(findings, evidence, world)
    _nobody_went_over(findings, evidence, world, watch)
    _reconciles(findings, holds, evidence, world)
    return findings


def _event(row: tuple[Any, ...]) -> Event:
    id_, _, tenant, prompt, completion, outcome, proof, posted, started_ms, ended_ms, attributes, status = row
    client, usage = (attributes or {}).get(CLIENT_HEADER, ""), (prompt, completion)
    return Event(id_, tenant, usage, outcome, proof, posted or {}, started_ms or 0, ended_ms, client, status or 0)


def _each_request_once(findings: Findings, evidence: Evidence) -> None:
    """A request that the engine ran has its event, or a hold that will become one; never both, never neither."""
    for id_, ran in sorted(evidence.ran.items()):
        if id_ in evidence.events or id_ in evidence.holds:
            continue
        if any(each.loses_holds for each in evidence.felt_by(id_)):
            findings.lost += 1
        elif ran.generated:
            findings.unmetered += 1
            findings.problems.append(f"{id_} ran on the engine: no event, no hold")
    both = evidence.events.keys() & evidence.holds.keys()
    for id_ in sorted(both):
        # Settled, delivered, and forgotten by a failover: its hold is the older state. It ends; the books know its id.
        if not any(each.loses_holds for each in evidence.felt_by(id_)):
            findings.doubled += 1
            findings.problems.append(f"{id_} has its event, and its hold is open still")
    for id_, event in evidence.events.items():
        if id_ in evidence.ran or not any(event.usage):
            continue
        if event.status == CLIENT_CLOSED and event.evidence in ("tokenized", "held"):
            findings.assumed += 1  # `unknown_usage`: what nobody saw the end of is charged as if it had run
        else:
            findings.doubled += 1
            findings.problems.append(f"{id_} never ran on the engine and is billed {event.usage}")


def _holds_are_explained(findings: Findings, evidence: Evidence) -> None:
    """A hold stays open where nobody could hear of its request's end, and for no other reason."""
    for id_, hold in evidence.holds.items():
        if id_ in evidence.events or not any(amount for _, amount in hold.amounts):
            continue
        findings.open += 1
        if not any(each.loses_settlements for each in evidence.felt_by(id_)):
            findings.problems.append(f"{id_}: its hold is open, and nothing that happened explains it")


def _unposted_are_explained(findings: Findings, evidence: Evidence) -> None:
    """An event without a posting is of a hold that the ledger had lost, and of nothing else."""
    for id_, event in evidence.events.items():
        if event.posted or not any(event.usage):
            continue
        findings.unposted += 1
        if not any(each.forgets_holds for each in evidence.felt_by(id_)):
            findings.problems.append(f"{id_} used {event.usage}, and its event is on no counter")


def _as_clients_saw(findings: Findings, evidence: Evidence) -> None:
    """A whole answer's usage is what is billed for it, where it is settled."""
    for asked in evidence.asked:
        if asked.usage is None or asked.request_id is None:
            continue
        event = evidence.events.get(asked.request_id)
        if event is None:
            if asked.request_id not in evidence.holds and asked.request_id not in evidence.ran:
                findings.problems.append(f"{asked.request_id} was answered whole: no event, no hold, not on the engine")
        elif event.usage != asked.usage and event.outcome != "expired":
            findings.problems.append(f"{asked.request_id} is billed {event.usage}, its client saw {asked.usage}")


def _as_the_engine_ran(findings: Findings, evidence: Evidence) -> None:
    """What was seen is billed to the token; of what was left or cut off, never more than was generated."""
    for id_, event in evidence.events.items():
        ran = evidence.ran.get(id_)
        if ran is None or event.outcome == "expired":
            continue
        (prompt, completion), generated = event.usage, ran.usage
        if event.evidence == "exact" and event.usage != generated and any(event.usage):
            findings.problems.append(f"{id_} is billed {event.usage} as exact, the engine's journal has {generated}")
        if event.evidence == "continuous" and (prompt != generated[0] or completion > generated[1]):
            findings.problems.append(f"{id_} is billed {event.usage} as seen, the engine's journal has {generated}")
        if event.evidence == "continuous":
            findings.in_flight += generated[1] - completion


def _sinks_agree(findings: Findings, rows: list[tuple[Any, ...]], evidence: Evidence, world: World) -> None:
    ids = Counter(row[0] for row in rows)
    doubled = [id_ for id_, count in ids.items() if count > 1]
    findings.doubled += len(doubled)
    if doubled:
        findings.problems.append(f"in the books twice: {doubled[:5]}")
    others = {
        "lines": Counter(read_event(entry.event).id for entry in read_jsonl(world.lines)),
        "receiver": Counter(str(event["id"]) for event in read_received(world.received)),
    }
    for name, found in others.items():
        missing, more = (ids - found).elements(), (found - ids).elements()
        # An event that a failover took out of the outbox before every sink had it.
        halfway = {id_ for id_ in (*missing, *more) if any(each.loses_holds for each in evidence.felt_by(id_))}
        findings.halfway += len(halfway)
        for word, differing in (("is without", ids - found), ("alone has", found - ids)):
            if unexplained := sorted(set(differing) - halfway):
                findings.problems.append(f"{name} {word} {len(unexplained)} events: {unexplained[:5]}")


def _counters_agree(findings: Findings, evidence: Evidence, world: World) -> None:
    """What events say was posted is what the ledger's counters have, less what a failover took back."""
    posted: Counter[tuple[str, str]] = Counter()
    doubtful: Counter[tuple[str, str]] = Counter()
    unposted: Counter[str] = Counter()
    for event in evidence.events.values():
        may_be_back = any(each.loses_holds for each in evidence.felt_by(event.id))
        if not event.posted and may_be_back:
            # A primary that was replaced and has not heard of it may say that it knows no such hold; the next one does.
            unposted[event.tenant] += sum(event.usage)
        for line, amount in event.posted.items():
            posted[event.tenant, line] += amount
            doubtful[event.tenant, line] += amount * may_be_back
    ledger = connect_ledger(world.ledger.url)
    for tenant in set(ledger.tenants()) - set(world.options.poor):  # theirs are of this minute only
        for balance in ledger.balances(tenant):
            key = (tenant, balance.state.key)
            less = posted[key] - balance.state.committed
            findings.rolled_back += max(0, less)
            if not -unposted[tenant] <= less <= doubtful[key]:
                findings.problems.append(
                    f"{key}: counter {balance.state.committed}, events posted {posted[key]},"
                    f" of which a failover may have taken {doubtful[key]}"
                )
    ledger.close()


def _nobody_went_over(findings: Findings, evidence: Evidence, world: World, watch: Watch) -> None:
    """By the ledger's own counters at every look, and by what the engine ran in each minute."""
    for ends, most in watch.most.items():
        if most > POOR_LIMIT:
            findings.overshoot += most - POOR_LIMIT
            findings.problems.append(f"{most} committed and held in the minute that ends at {ends}, of {POOR_LIMIT}")
    used: Counter[tuple[str, int]] = Counter()
    forgiven: Counter[tuple[str, int]] = Counter()
    for event in evidence.events.values():
        minute = event.started_ms // MINUTE_MS
        if event.tenant not in world.options.poor or minute != event.ended_ms // MINUTE_MS:
            continue  # which minute's budget it held is not to be told from outside
        used[event.tenant, minute] += sum(event.usage)
        if any(each.loses_holds for each in evidence.felt_by(event.id)):
            forgiven[event.tenant, minute] += sum(event.usage)
    for key, tokens in used.items():
        over = tokens - POOR_LIMIT
        findings.overshoot += max(0, over - forgiven[key])
        if over > forgiven[key]:
            findings.problems.append(f"{key[0]} used {tokens} of {POOR_LIMIT} in minute {key[1]}")


def _reconciles(findings: Findings, holds: dict[str, OpenHold], evidence: Evidence, world: World) -> None:
    """`token-quota reconcile` explains every difference between books, counters and engine, and lists what is held."""
    status, found = world.reconcile()
    for engine in found["engines"]:
        findings.explained.update(each["kind"] for each in engine["explanations"])
    # What failovers took is named by the checks before, and unexplained here, as it should be.
    sides = {"engines": not findings.lost, "counters": not findings.rolled_back}
    judged = [each for side, is_judged in sides.items() if is_judged for each in found[side]]
    amiss = [each for each in judged if any(_values(each["unexplained"]))]
    # Of a minute's budget there is no counter any more, and reconcile says so.
    missing = [each for each in found["missing"] if "no counter any more" not in each]
    if amiss or missing or (status == 1 and all(sides.values())):
        findings.problems.append(f"reconcile exits {status}: {found['missing']} {str(amiss)[:1000]}")
    if not found["engines"] or not found["counters"]:
        findings.problems.append("reconcile compared nothing")
    listed, unsettled = {hold["id"] for hold in found["holds"]}, holds.keys() - evidence.events.keys()
    if listed != unsettled:
        findings.problems.append(f"reconcile lists other holds: {sorted(listed ^ unsettled)[:5]}")
    if len(found["unposted"]) != findings.unposted:
        findings.problems.append(f"reconcile lists {len(found['unposted'])} unposted, books have {findings.unposted}")


def _values(unexplained: int | dict[str, int]) -> list[int]:
    return [unexplained] if isinstance(unexplained, int) else list(unexplained.values())

"""What happened to a request: as its client saw it, on the engine, to its hold, and in the books."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kong_plugins.adapters.ledger.audit import OpenHold
from tests.chaos.clients import Asked
from tests.chaos.engine import CLIENT_HEADER, Ran
from tests.chaos.faults import Fault, Kind
from tests.chaos.world import PLUGIN_TIMEOUT_S, PROBE

AFTER_S = 10.0  # a fault that nobody waited for the end of is felt for so long
LOG_PHASE_S = 5.0  # after its client has its answer
REPLICATION_S = 1.0  # what a replica may not have yet


@dataclass(frozen=True)
class Event:
    """A request's event in the books."""

    id: str
    tenant: str
    usage: tuple[int, int]
    outcome: str
    evidence: str
    posted: Mapping[str, int]
    started_ms: int
    ended_ms: int
    client: str
    status: int


@dataclass(frozen=True)
class Felt:
    """A fault and the time in which a request may have felt it, epoch seconds."""

    fault: Fault
    since: float
    until: float

    @property
    def loses_holds(self) -> bool:
        """The ledger itself may forget what it said: a failover, or a kill while its disk takes nothing."""
        if self.fault.kind in (Kind.FAILOVER, Kind.NETWORK):
            return not self.fault.target.startswith("engine") and self.fault.target != "primary leaves"
        return self.fault.kind is Kind.DISK and self.fault.target == "ledger, killed while full"

    @property
    def forgets_holds(self) -> bool:
        """With appendfsync everysec a killed Valkey may not have written what it said a moment before."""
        return self.loses_holds or (self.fault.kind is Kind.KILL and "ledger" in self.fault.target.split("+"))

    @property
    def loses_settlements(self) -> bool:
        """Nobody may have heard of a request's end: the gateway is gone, both plugin servers, or the only one that can
        tell what it used."""
        fault = self.fault
        if self.loses_holds or fault.also in ("token-quota", "billing-events"):
            return True
        hit = {"token-quota", "billing-events", "gateway"} & set(fault.target.split("+"))
        if fault.kind is Kind.STOP:
            return bool(hit - {"gateway"}) and fault.seconds > PLUGIN_TIMEOUT_S - 0.5
        return bool(hit) and fault.kind is not Kind.RESTART


@dataclass
class Fate:
    """``hold``: settled, expired, open (ends by its own clock), released (emptied, as its request was given up), lost
    (by the ledger), none. ``event``: its evidence, and whether it is posted."""

    client: str
    tenant: str
    said: str
    kind: str = ""
    id: str | None = None
    engine: str = "never ran"
    hold: str = "none"
    event: str = "none"
    engine_tokens: tuple[int, int] | None = None
    billed_tokens: tuple[int, int] | None = None
    faults: list[str] = field(default_factory=list)

    @property
    def ordinary(self) -> bool:
        if self.said == "429":
            return self.engine == "never ran" and self.hold == "none"
        whole = self.said == "200" or (self.said == "200, left" and self.kind == "left early")
        return whole and self.hold == "settled" and self.event in ("exact, posted", "continuous, posted")

    @property
    def summary(self) -> tuple[str, str, str, str]:
        return self.said, self.engine, self.hold, self.event


class Evidence:
    """Everything that is known of requests, by id and by their clients' names."""

    def __init__(
        self,
        asked: Sequence[Asked],
        ran: Mapping[str, Ran],
        events: Mapping[str, Event],
        holds: Mapping[str, OpenHold],
        felt: Sequence[Felt],
    ) -> None:
        self.asked, self.ran, self.events, self.holds, self._felt = asked, ran, events, holds, felt
        names: dict[str, set[str]] = {}
        for each in ran.values():
            names.setdefault(each.client, set()).add(each.id)
        for event in events.values():
            names.setdefault(event.client, set()).add(event.id)
        for hold in holds.values():
            names.setdefault(client_of(hold), set()).add(hold.hold_id)
        for one in asked:
            if one.request_id and one.request_id in (events.keys() | holds.keys() | ran.keys()):
                names.setdefault(one.name, set()).add(one.request_id)
        self._ids = names
        self._by_name = {each.name: each for each in asked}
        self._names = {id_: name for name, ids in names.items() for id_ in ids}

    def felt_by(self, id_: str) -> list[Felt]:
        """Faults that were there while a request of this id was, or its end was told of."""
        asked = self._by_name.get(self._names.get(id_, ""))
        if asked is None:
            event = self.events.get(id_)
            if event is None:
                return list(self._felt)  # nobody knows when
            return self._between(event.started_ms / 1000, event.ended_ms / 1000)
        return self._between(asked.began, asked.ended)

    def _between(self, began: float, ended: float) -> list[Felt]:
        return [each for each in self._felt if each.since <= ended + LOG_PHASE_S and began <= each.until]

    def fates(self) -> list[Fate]:
        """Of every request that a client sent, and of every id that no client of ours has."""
        found = []
        for asked in self.asked:
            ids: list[str | None] = [*sorted(self._ids.get(asked.name, ()))]
            for id_ in ids or [None]:
                fate = Fate(asked.name, asked.tenant, asked.said, asked.kind, id_ or asked.request_id)
                fate.faults = [str(each.fault) for each in self._between(asked.began, asked.ended)]
                found.append(self._told(fate, id_))
        for id_, name in sorted(self._names.items()):
            if name not in self._by_name and not name.startswith(PROBE):
                fate = Fate(name, "", "no client of ours", id=id_)
                fate.faults = [str(each.fault) for each in self.felt_by(id_)]
                found.append(self._told(fate, id_))
        return found

    def _told(self, fate: Fate, id_: str | None) -> Fate:
        ran, event, hold = self.ran.get(id_ or ""), self.events.get(id_ or ""), self.holds.get(id_ or "")
        if ran is not None:
            fate.engine = "ran" if ran.generated else "began"
            fate.engine_tokens = ran.usage
        if event is not None:
            fate.hold = "expired" if event.outcome == "expired" else "settled"
            fate.event = f"{event.evidence}, {'posted' if event.posted or not sum(event.usage) else 'unposted'}"
            fate.billed_tokens = event.usage
        elif hold is not None:
            fate.hold = "open" if any(amount for _, amount in hold.amounts) else "released"
        elif ran is not None:
            fate.hold = "lost"
        return fate


def client_of(hold: OpenHold) -> str:
    """From the event that its expiry would write."""
    if not hold.event:
        return ""
    return str(json.loads(hold.event)["data"].get("attributes", {}).get(CLIENT_HEADER, ""))


def write_report(path: Path, fates: Iterable[Fate]) -> None:
    """JSON Lines, one for each request that did not go the ordinary way."""
    with path.open("a", encoding="utf-8") as file:
        for fate in fates:
            if not fate.ordinary:
                file.write(json.dumps(asdict(fate), ensure_ascii=False) + "\n")


def table(fates: Iterable[Fate]) -> str:
    """How many of each fate, the ordinary ones in one line."""
    fates = list(fates)
    counts = Counter(fate.summary for fate in fates if not fate.ordinary)
    ordinary = sum(fate.ordinary for fate in fates)
    head = ("requests", "its client saw", "on the engine", "its hold", "its event")
    rows: list[tuple[Any, ...]] = [head, (f"{ordinary:,}", "what it asked for", "", "", "")]
    rows += [(f"{count:,}", *summary) for summary, count in sorted(counts.items())]
    widths = [max(len(str(row[at])) for row in rows) for at in range(len(head))]
    return "\n".join(
        "  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )

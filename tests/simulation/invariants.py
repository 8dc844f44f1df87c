"""What must hold after every step, kept beside the store in the plainest way: what was promised to whom, what became of
it, which events there are. It hears of each operation where it takes effect, also of those whose replies are lost."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from kong_plugins.adapters.ledger.layout import GRANT_US
from kong_plugins.application.ports import OutboxEntry
from kong_plugins.domain.budgets import Mode
from kong_plugins.domain.holds import HoldOutcome, HoldRequest, LineState, Settlement, SettleOutcome, SettleStatus
from kong_plugins.domain.partitions import partition_of
from kong_plugins.domain.usage import Evidence
from kong_plugins.domain.windows import FixedWindow, RollingWindow, window_at
from tests.simulation.kernel import Violation

Path = tuple[str, str, int]  # tenant, budget, start of its window


@dataclass(slots=True)
class Seen:
    """A hold. ``lines``: counter (None where its window moves), budget, weights, amount held."""

    tenant: str
    hold_id: str
    lines: list[list[Any]]
    lapses_us: int
    event: bytes
    made_us: int
    state: str = "open"
    ended_us: int = 0
    posted: tuple[tuple[str, int], ...] = ()
    tokens: int = 0
    counted: bool = True


@dataclass
class Durable:
    """All that a failover takes back with the store."""

    holds: dict[str, Seen] = field(default_factory=dict)
    open: dict[str, Seen] = field(default_factory=dict)
    counters: dict[Path, list[int]] = field(default_factory=dict)  # committed, held
    rolling: dict[tuple[str, str], deque[tuple[int, int, str]]] = field(default_factory=dict)
    moving_held: Counter[tuple[str, str]] = field(default_factory=Counter)
    tails: dict[int, str] = field(default_factory=dict)
    recorded: dict[str, int] = field(default_factory=dict)
    reversed: dict[str, int] = field(default_factory=dict)
    grants: dict[str, int] = field(default_factory=dict)
    latest_us: int = 0  # what the store's clock has come to


@dataclass
class Counts:
    """Of what was looked at, and of what no promise covers."""

    operations: int = 0
    holds: int = 0
    refused: int = 0
    postings: int = 0
    spooled: int = 0
    expired: int = 0
    recorded: int = 0
    reversals: int = 0
    late: int = 0  # settled after the hold lapsed
    late_units: int = 0
    over_held_units: int = 0  # of tightened holds that nobody saw the usage of, over all budgets
    lost_events: int = 0  # by failovers, before they were delivered
    windows_again: int = 0  # looks at windows that the store's clock went back into, after they were forgotten
    held_again: int = 0  # by a copy under way, when the store's clock had leapt over the memory of the end
    unknown: int = 0  # settled when the ledger knew nothing of the hold any more
    logical: int = 0
    retried: int = 0
    apart: int = 0
    runs: int = 0
    audits: int = 0
    engines: int = 0  # audits in which the engine's own counters were compared with the books
    windows: int = 0  # counters of an hour compared with the events of that hour


class Watch:
    """``budgets``: of each request, by its lines. ``appended``: every event there ever was, by id, as written."""

    def __init__(self, terminal_us: int, kept_us: int) -> None:
        self.durable = Durable()
        self.counts = Counts()
        self.appended: dict[str, list[bytes]] = {}
        self.undelivered: dict[str, None] = {}
        self.sunk: dict[str, bytes] = {}
        self.promised: dict[str, None] = {}  # settlements that somebody took, until the store heard of them
        self.heard: dict[str, None] = {}
        self.failovers = 0
        self.token_quota_restarted = self.clock_went_back = False
        self._terminal_us = terminal_us
        self._kept_us = kept_us
        self._names: dict[str, tuple[str, ...]] = {}
        self._events: dict[tuple[int, str], str] = {}  # partition and position

    def announce(self, hold_id: str, budgets: Sequence[str]) -> None:
        """Which budgets a request's lines are of, whatever keys they go by."""
        self._names[hold_id] = tuple(budgets)

    def hold(self, request: HoldRequest, outcome: HoldOutcome, now_us: int) -> None:
        self._tick(now_us)
        self._lapse(partition_of(request.tenant), now_us)
        if outcome.earlier is not None or outcome.repeated:
            return
        hard = [
            (line, state) for line, state in zip(request.lines, outcome.states, strict=True) if line.mode is Mode.HARD
        ]
        if not outcome.admitted:
            known = request.hold_id in self.durable.recorded
            short = any(line.amount + state.committed + state.held > line.limit for line, state in hard)
            check(known or short or bool(outcome.slots), "refused without a reason", request, outcome)
            self.counts.refused += 1
            return
        before = self.durable.holds.get(request.hold_id)
        if before is not None:  # a copy that came after the store's clock had leapt over the memory of its end
            check(self._forgotten(before.ended_us, before.state), "held twice", request)
            self.counts.held_again += 1
        for line, state in hard:
            check(state.committed + state.held <= line.limit, "overshot by its own account", line, state)
        lines: list[list[Any]] = []
        for line, name in zip(request.lines, self._names[request.hold_id], strict=True):
            path: Path | None = None
            if isinstance(line.window, FixedWindow):
                span = window_at(line.window, now_us)
                path = (request.tenant, name, span.start_us)
                counter = self.durable.counters.setdefault(path, [0, 0])
                counter[1] += line.amount
                full = counter[0] + counter[1]
                told = line.mode is not Mode.HARD or self._over(span.end_us)
                check(told or full <= line.limit, "overshot", name, counter, line)
            else:
                self.durable.moving_held[request.tenant, name] += line.amount
                if isinstance(line.window, RollingWindow) and line.mode is Mode.HARD and not self.clock_went_back:
                    used = self._used(request.tenant, name, now_us - line.window.length_s * 1_000_000)
                    full = used + self.durable.moving_held[request.tenant, name]
                    check(full <= line.limit, "overshot within the window's length", name, full, line)
            lines.append([path, name, line.weights, line.amount])
        lapses_us = now_us + request.ttl_us
        seen = Seen(request.tenant, request.hold_id, lines, lapses_us, request.expiry_event, now_us)
        self.durable.holds[request.hold_id] = self.durable.open[request.hold_id] = seen
        self.counts.holds += 1

    def settle(self, settlement: Settlement, outcome: SettleOutcome, now_us: int) -> None:
        self._tick(now_us)
        self.heard[settlement.hold_id] = None
        seen = self.durable.holds.get(settlement.hold_id)
        if outcome.status is SettleStatus.UNKNOWN:
            forgotten = seen is None or self._forgotten(seen.ended_us, seen.state)
            check(forgotten, "a hold was lost", settlement.hold_id, seen)
            self.counts.unknown += 1
            return
        check(
            seen is not None or settlement.hold_id in self.durable.recorded, "settled what was never held", settlement
        )
        if outcome.status is SettleStatus.REPEATED or seen is None:
            return
        check(seen.state in {"open", "lapsed"}, "two terminal postings", settlement.hold_id, seen)
        check(seen.tenant == settlement.tenant, "settled for another tenant", settlement, seen)
        amounts = [weights.amount(settlement.usage) for _, _, weights, _ in seen.lines]
        check([amount for _, amount in outcome.posted] == amounts, "posted other than used", settlement, outcome)
        if now_us >= seen.lapses_us and seen.state == "open":
            self._release(seen)
        late = seen.state == "lapsed"
        own = outcome.reversed_id == settlement.hold_id
        for (path, name, _, held), amount in zip(seen.lines, amounts, strict=True):
            used_us = min(now_us, seen.lapses_us)
            if path is not None:
                counter = self.durable.counters[path]
                counter[1] -= 0 if late else held
                counter[0] += 0 if own else amount
                if not late and not own and amount > held:
                    # Tightened, then charged at its first bound because nobody saw what it used, and the process that
                    # had tightened it is gone.
                    unseen = settlement.evidence is Evidence.HELD and self.token_quota_restarted
                    check(unseen, "a settlement took more than it held", settlement, held)
                    self.counts.over_held_units += amount - held
            else:
                if not late:
                    self.durable.moving_held[seen.tenant, name] -= held
                if not own:
                    spent = self.durable.rolling.setdefault((seen.tenant, name), deque())
                    spent.append((used_us, amount, settlement.hold_id))
            if late:
                self.counts.late_units += amount
        self.counts.late += late
        self.durable.open.pop(seen.hold_id, None)
        seen.state, seen.ended_us, seen.posted = "settled", now_us, outcome.posted
        seen.tokens, seen.counted = settlement.usage.total, not own
        if outcome.reversed_id is not None and not own:
            self._take_back(outcome.reversed_id)
        self.counts.postings += 1

    def tighten(self, hold_id: str, amounts: Iterable[tuple[str, int]], done: bool, now_us: int) -> None:
        self._tick(now_us)
        seen = self.durable.holds.get(hold_id)
        if seen is not None and seen.state == "open" and now_us >= seen.lapses_us:
            self._release(seen)
        if not done:
            return
        check(seen is not None and seen.state == "open", "tightened what is not open", hold_id, seen)
        assert seen is not None
        lower = [amount for _, amount in amounts]
        for line, amount in zip(seen.lines, lower, strict=True):
            less = max(0, line[3] - amount)
            line[3] -= less
            if line[0] is not None:
                self.durable.counters[line[0]][1] -= less
            else:
                self.durable.moving_held[seen.tenant, line[1]] -= less

    def grant(self, tenant: str, name: str, window: Any, amount: int | None, grant_id: str, now_us: int) -> None:  # noqa: PLR0917
        self._tick(now_us)
        self._lapse(partition_of(tenant), now_us)
        made_us = self.durable.grants.get(grant_id)
        if made_us is not None and self.durable.latest_us < made_us + GRANT_US:
            return
        self.durable.grants[grant_id] = now_us
        if isinstance(window, FixedWindow):
            counter = self.durable.counters.setdefault((tenant, name, window_at(window, now_us).start_us), [0, 0])
            counter[0] = 0 if amount is None else counter[0] - amount
        elif isinstance(window, RollingWindow) and amount is None:
            self.durable.rolling.pop((tenant, name), None)

    def record(self, event_id: str, new: bool, now_us: int) -> None:
        self._tick(now_us)
        asked = event_id in self._names or event_id.startswith(("u", "adjustment:"))
        check(asked, "an event of nothing that was asked", event_id)
        at_us = self.durable.recorded.get(event_id)
        seen = self.durable.holds.get(event_id)
        if new:
            known = (at_us is not None and not self._forgotten(at_us)) or (
                seen is not None and not self._forgotten(seen.ended_us, seen.state)
            )
            check(not known, "recorded twice", event_id)
            self.durable.recorded[event_id] = now_us
            self.counts.recorded += 1
        else:
            check(at_us is not None or seen is not None, "an event was refused as known", event_id)

    def swept(self, partition: int, now_us: int) -> None:
        self._tick(now_us)
        self._lapse(partition, now_us)

    def counters(
        self, tenant: str, names: Sequence[str], windows: Sequence[Any], states: Sequence[LineState], now_us: int
    ) -> None:
        """The store's own counters say the same."""
        for name, window, state in zip(names, windows, states, strict=True):
            if isinstance(window, FixedWindow):
                span = window_at(window, now_us)
                path = (tenant, name, span.start_us)
                if self._over(span.end_us):
                    self.durable.counters[path] = [state.committed, state.held]
                    self.counts.windows_again += 1
                    continue
                expected = self.durable.counters.get(path, [0, 0])
                check([state.committed, state.held] == expected, "a counter is off", path, expected, state)
            else:
                check(state.held >= 0, "less than nothing is held", tenant, name, state)

    def events(self, partition: int, entries: Sequence[OutboxEntry], cause: Any, now_us: int, grace_us: int) -> None:
        """What the last operation appended. ``cause``: the event id that it was about, and its outcome."""
        due, reversed_id = cause
        for entry in entries:
            self.durable.tails[partition] = entry.position
            self._events[partition, entry.position] = entry.event_id
            known = self.appended.setdefault(entry.event_id, [])
            if entry.event not in known:
                known.append(entry.event)
            self.undelivered[entry.event_id] = None
            if entry.event_id == due:
                due = None
                seen = self.durable.holds.get(entry.event_id)
                posted = seen.posted if seen is not None and seen.ended_us == now_us else ()
                check(entry.posted == posted, "an event says other postings", entry, posted)
            elif entry.event_id.startswith("reversal:"):
                self._reversal(entry, reversed_id)
                reversed_id = None
            else:
                self._expired(entry, now_us, grace_us)
        check(due is None, "a posting without its event", due)
        check(reversed_id is None, "a charge was taken back without an event", reversed_id)

    def again(self, partition: int, entries: Sequence[OutboxEntry]) -> None:
        """Dead letters that are back at the end."""
        for entry in entries:
            self.durable.tails[partition] = entry.position
            self._events[partition, entry.position] = entry.event_id
            check(entry.event in self.appended.get(entry.event_id, ()), "a letter that never was", entry)

    def position(self, partition: int, position: str) -> str | None:
        return self._events.get((partition, position))

    def sink_has(self, event_id: str, event: bytes) -> None:
        """Books hold no event that the ledger never had, and hold it as it was."""
        check(event in self.appended.get(event_id, ()), "the books have what the ledger never had", event_id)
        self.sunk.setdefault(event_id, event)
        self.undelivered.pop(event_id, None)

    def acknowledged(self, event_id: str) -> None:
        check(event_id in self.sunk, "acknowledged and not in the books", event_id)

    def trimmed(self, event_ids: Iterable[str], elsewhere: Iterable[str]) -> None:
        """``elsewhere``: dead letters, and what stands in the outbox once more."""
        letters = set(elsewhere)
        for event_id in event_ids:
            check(event_id in self.sunk or event_id in letters, "trimmed before it was delivered", event_id)

    def engine_runs(self, hold_id: str) -> None:
        """Nothing runs that was not held, unless a failover lost it."""
        self.counts.runs += 1
        check(hold_id in self.durable.holds or self.failovers > 0, "the engine runs what nobody held", hold_id)

    def failed_over(self, durable: Durable) -> None:
        """The store is back where the replica was."""
        before, self.durable = self.durable, durable
        self.durable.latest_us = max(before.latest_us, durable.latest_us)
        self.failovers += 1

    def forget(self, keep: Iterable[str] = ()) -> None:
        """After an audit: of what is over nothing more can come."""
        kept = set(keep)
        self.appended = {each: events for each, events in self.appended.items() if each in kept}
        self.sunk = {each: event for each, event in self.sunk.items() if each in kept}
        self.durable.holds = {each: seen for each, seen in self.durable.holds.items() if each in kept}
        self.durable.recorded.clear()
        self.durable.reversed.clear()
        self._names.clear()
        self.promised.clear()
        self.heard.clear()
        self._events.clear()
        self.failovers = 0
        self.token_quota_restarted = False

    def _tick(self, now_us: int) -> None:
        self.counts.operations += 1
        if now_us < self.durable.latest_us:
            self.clock_went_back = True
        self.durable.latest_us = max(self.durable.latest_us, now_us)

    def _over(self, end_us: int) -> bool:
        """The clock went back into a window that may have been forgotten, with all that could still settle in it."""
        return self.durable.latest_us >= end_us + self._kept_us

    def _forgotten(self, ended_us: int, state: str = "settled") -> bool:
        return state in {"settled", "expired"} and self.durable.latest_us >= ended_us + self._terminal_us

    def _lapse(self, partition: int, now_us: int) -> None:
        for seen in list(self.durable.open.values()):
            if now_us >= seen.lapses_us and partition_of(seen.tenant) == partition:
                self._release(seen)

    def _release(self, seen: Seen) -> None:
        for path, name, _, held in seen.lines:
            if path is not None:
                self.durable.counters[path][1] -= held
            else:
                self.durable.moving_held[seen.tenant, name] -= held
        seen.state = "lapsed"
        del self.durable.open[seen.hold_id]

    def _used(self, tenant: str, name: str, since_us: int) -> int:
        spent = self.durable.rolling.get((tenant, name), deque())
        while spent and spent[0][0] <= since_us - 3_600_000_000:
            spent.popleft()
        return sum(amount for used_us, amount, _ in spent if used_us > since_us)

    def _take_back(self, hold_id: str) -> None:
        seen = self.durable.holds.get(hold_id)
        check(seen is not None and seen.state == "settled", "took back what was not charged", hold_id, seen)
        assert seen is not None
        check(seen.counted, "took back twice", hold_id)
        seen.counted = False
        for (path, name, _, _), (_, amount) in zip(seen.lines, seen.posted, strict=True):
            if path is not None:
                self.durable.counters[path][0] -= amount
            elif (spent := self.durable.rolling.get((seen.tenant, name))) is not None:
                self.durable.rolling[seen.tenant, name] = deque(each for each in spent if each[2] != hold_id)

    def _reversal(self, entry: OutboxEntry, reversed_id: str | None) -> None:
        hold_id = entry.event_id.removeprefix("reversal:")
        check(reversed_id == hold_id, "a reversal that nobody asked for", entry, reversed_id)
        check(hold_id not in self.durable.reversed, "reversed twice", hold_id)
        self.durable.reversed[hold_id] = 1
        seen = self.durable.holds[hold_id]
        negative = tuple((line, -amount) for line, amount in seen.posted)
        check(entry.posted == negative, "a reversal of another amount", entry, seen.posted)
        taken, given = (json.loads(each)["data"] for each in (entry.event, self.appended[hold_id][0]))
        for name in ("tenant", "model", "prompt", "completion", "cached", "reasoning"):
            check(taken[name] == given[name], "a reversal of other tokens", entry.event, name)
        self.counts.reversals += 1

    def _expired(self, entry: OutboxEntry, now_us: int, grace_us: int) -> None:
        seen = self.durable.holds.get(entry.event_id)
        check(seen is not None and seen.state in {"open", "lapsed"}, "an event of nothing", entry, seen)
        assert seen is not None
        if seen.state == "open":
            self._release(seen)
        check(now_us >= seen.lapses_us + grace_us, "expired before its time", entry, seen, now_us)
        check(not entry.posted, "an expiry charges", entry)
        check(entry.event == seen.event, "an expiry writes another event", entry, seen.event)
        data = json.loads(entry.event)["data"]
        check(data["prompt"] == data["completion"] == 0, "an expiry bills", entry)
        seen.state, seen.ended_us = "expired", now_us
        self.counts.expired += 1


def check(holds: bool, promise: str, *about: Any) -> None:
    if not holds:
        raise Violation(f"{promise}: {' | '.join(map(repr, about))}")

"""What must hold after every step, kept beside the store in the plainest way: what was promised to whom, what became of
it, which events there are. It hears of each operation where it takes effect, also of those whose replies are lost."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from kong_plugins.adapters.ledger.layout import GRANT_US
from kong_plugins.application.ports import OutboxEntry
from kong_plugins.domain.budgets import Mode
from kong_plugins.domain.holds import (
    HoldOutcome,
    HoldRequest,
    LineState,
    Outcome,
    Settlement,
    SettleOutcome,
    SettleStatus,
)
from kong_plugins.domain.partitions import partition_of
from kong_plugins.domain.usage import Evidence
from kong_plugins.domain.windows import FixedWindow, RollingWindow, window_at
from tests.simulation.account import MOVES, Account, Durable, check
from tests.simulation.leased import Leased


class Watch(Account):
    """``names``: budgets of each request, by its lines. ``appended``: every event there ever was, by id, as written.
    ``leased``: the same for leases, and for requests that were admitted without the ledger."""

    def __init__(self, terminal_us: int, kept_us: int, true_us: Callable[[], int]) -> None:
        super().__init__(terminal_us, kept_us)
        self.leased = Leased(self, true_us)
        self.appended: dict[str, list[bytes]] = {}
        self.undelivered: dict[str, None] = {}
        self.sunk: dict[str, bytes] = {}
        self.promised: dict[str, None] = {}  # settlements that somebody took, until the store heard of them
        self.heard: dict[str, None] = {}
        self.token_quota_restarted = False
        self._events: dict[tuple[int, str], str] = {}  # partition and position

    def announce(self, hold_id: str, budgets: Sequence[str]) -> None:
        """Which budgets a request's lines are of, whatever keys they go by."""
        self.names[hold_id] = tuple(budgets)
        self.leased.announced(hold_id)

    def hold(self, request: HoldRequest, outcome: HoldOutcome, now_us: int) -> None:
        self.tick(now_us)
        self.lapse(partition_of(request.tenant), now_us)
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
            check(self.forgotten(before.ended_us, before.state), "held twice", request)
            self.counts.held_again += 1
        for line, state in hard:
            check(state.committed + state.held <= line.limit, "overshot by its own account", line, state)
        names = self.names[request.hold_id]
        paths = [self.path(request.tenant, n, ln.window, now_us) for ln, n in zip(request.lines, names, strict=True)]
        for line, path in zip(request.lines, paths, strict=True):
            self.held(path, line.amount)
            self.fits(path, line, now_us)
        self.keep(request, paths, now_us)
        self.counts.holds += 1

    def settle(self, settlement: Settlement, outcome: SettleOutcome, now_us: int) -> None:
        self.tick(now_us)
        self.heard[settlement.hold_id] = None
        seen = self.durable.holds.get(settlement.hold_id)
        if outcome.status is SettleStatus.UNKNOWN:
            forgotten = seen is None or self.forgotten(seen.ended_us, seen.state)
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
        amounts = [weights.amount(settlement.usage) for _, weights, _ in seen.lines]
        check([amount for _, amount in outcome.posted] == amounts, "posted other than used", settlement, outcome)
        if now_us >= seen.lapses_us and seen.state == "open":
            self.release(seen)
        late = seen.state == "lapsed"
        own = outcome.reversed_id == settlement.hold_id
        for (path, _, held), amount in zip(seen.lines, amounts, strict=True):
            used_us = min(now_us, seen.lapses_us)
            if not late:
                self.held(path, -held)
            if path[2] == MOVES:
                if not own:
                    self.durable.rolling.setdefault(path, deque()).append((used_us, amount, settlement.hold_id))
            else:
                self.durable.counters[path][0] += 0 if own else amount
                if not late and not own and amount > held:
                    # Tightened, then charged at its first bound because nobody saw what it used, and the process that
                    # had tightened it is gone.
                    unseen = settlement.evidence is Evidence.HELD and self.token_quota_restarted
                    check(unseen, "a settlement took more than it held", settlement, held)
                    self.counts.over_held_units += amount - held
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
        self.tick(now_us)
        seen = self.durable.holds.get(hold_id)
        if seen is not None and seen.state == "open" and now_us >= seen.lapses_us:
            self.release(seen)
        if not done:
            return
        check(seen is not None and seen.state == "open", "tightened what is not open", hold_id, seen)
        assert seen is not None
        lower = [amount for _, amount in amounts]
        for line, amount in zip(seen.lines, lower, strict=True):
            less = max(0, line[2] - amount)
            line[2] -= less
            self.held(line[0], -less)

    def grant(self, tenant: str, name: str, window: Any, amount: int | None, grant_id: str, now_us: int) -> None:  # noqa: PLR0917
        self.tick(now_us)
        self.lapse(partition_of(tenant), now_us)
        made_us = self.durable.grants.get(grant_id)
        if made_us is not None and self.durable.latest_us < made_us + GRANT_US:
            return
        self.durable.grants[grant_id] = now_us
        if isinstance(window, FixedWindow):
            counter = self.durable.counters.setdefault(self.path(tenant, name, window, now_us), [0, 0])
            counter[0] = 0 if amount is None else counter[0] - amount
        elif isinstance(window, RollingWindow) and amount is None:
            self.durable.rolling.pop(self.path(tenant, name, window, now_us), None)

    def record(self, event_id: str, new: bool, now_us: int) -> None:
        self.tick(now_us)
        asked = event_id in self.names or event_id.startswith(("u", "adjustment:"))
        check(asked, "an event of nothing that was asked", event_id)
        at_us = self.durable.recorded.get(event_id)
        seen = self.durable.holds.get(event_id)
        if new:
            known = (at_us is not None and not self.forgotten(at_us)) or (
                seen is not None and not self.forgotten(seen.ended_us, seen.state)
            )
            check(not known, "recorded twice", event_id)
            self.durable.recorded[event_id] = now_us
            self.counts.recorded += 1
        else:
            check(at_us is not None or seen is not None, "an event was refused as known", event_id)

    def swept(self, partition: int, now_us: int) -> None:
        self.tick(now_us)
        self.lapse(partition, now_us)

    def counters(
        self, tenant: str, names: Sequence[str], windows: Sequence[Any], states: Sequence[LineState], now_us: int
    ) -> None:
        """The store's own counters say the same."""
        for name, window, state in zip(names, windows, states, strict=True):
            path = self.path(tenant, name, window, now_us)
            expected = self.durable.counters.get(path, [0, 0])
            if not isinstance(window, FixedWindow):
                check(state.held == expected[1], "a counter holds something else", path, expected, state)
            elif self.over(window_at(window, now_us).end_us):
                self.durable.counters[path] = [state.committed, state.held]
                self.counts.windows_again += 1
            else:
                check([state.committed, state.held] == expected, "a counter is off", path, expected, state)

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
        """Nothing runs that was not held, unless a failover lost it, or was admitted without the ledger."""
        self.counts.runs += 1
        held = hold_id in self.durable.holds or hold_id in self.leased.unasked
        check(held or self.failovers > 0, "the engine runs what nobody held", hold_id)

    def failed_over(self, durable: Durable) -> None:
        """The store is back where the replica was."""
        before, self.durable = self.durable, durable
        self.durable.latest_us = max(before.latest_us, durable.latest_us)
        self.failovers += 1
        self.leased.failed_over(before)

    def forget(self, keep: Iterable[str] = ()) -> None:
        """After an audit: of what is over nothing more can come."""
        kept = set(keep)
        self.appended = {each: events for each, events in self.appended.items() if each in kept}
        self.sunk = {each: event for each, event in self.sunk.items() if each in kept}
        self.durable.holds = {each: seen for each, seen in self.durable.holds.items() if each in kept}
        self.durable.recorded.clear()
        self.durable.reversed.clear()
        self.names.clear()
        self.leased.forget()
        self.promised.clear()
        self.heard.clear()
        self._events.clear()
        self.failovers = 0
        self.token_quota_restarted = False

    def _take_back(self, hold_id: str) -> None:
        seen = self.durable.holds.get(hold_id)
        check(seen is not None and seen.state == "settled", "took back what was not charged", hold_id, seen)
        assert seen is not None
        check(seen.counted, "took back twice", hold_id)
        seen.counted = False
        for (path, _, _), (_, amount) in zip(seen.lines, seen.posted, strict=True):
            if path[2] != MOVES:
                self.durable.counters[path][0] -= amount
            elif (spent := self.durable.rolling.get(path)) is not None:
                self.durable.rolling[path] = deque(each for each in spent if each[2] != hold_id)

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
            self.release(seen)
        check(now_us >= seen.lapses_us + grace_us, "expired before its time", entry, seen, now_us)
        check(not entry.posted, "an expiry charges", entry)
        check(entry.event == seen.event, "an expiry writes another event", entry, seen.event)
        data = json.loads(entry.event)["data"]
        # The event of a settlement, of a request that the store first heard of by it, and then no more.
        settles = data["outcome"] != Outcome.EXPIRED and entry.event_id in self.leased.unasked
        check(settles or data["prompt"] == data["completion"] == 0, "an expiry bills", entry)
        self.counts.expired_usage += settles
        seen.state, seen.ended_us = "expired", now_us
        self.counts.expired += 1

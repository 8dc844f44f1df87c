"""The ledger in memory: the model the scripts are held to, and a ledger for simulations. It ends with its process."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush

from kong_plugins.adapters.ledger import layout
from kong_plugins.adapters.ledger.memory_attempts import Attempts, Charged, Logical, Posted, Try
from kong_plugins.adapters.ledger.memory_counters import Counters, apart, state_of
from kong_plugins.adapters.ledger.memory_leases import Leases
from kong_plugins.adapters.ledger.memory_slots import TakenSlots
from kong_plugins.application.ports import Balance, Grant, LedgerUnavailable, OutboxEntry
from kong_plugins.domain.budgets import Mode
from kong_plugins.domain.concurrency import slot_states
from kong_plugins.domain.counters import BucketCounter, FixedCounter
from kong_plugins.domain.events import reversal_id
from kong_plugins.domain.holds import (
    HoldOutcome,
    HoldRequest,
    HoldState,
    Line,
    LineState,
    Registration,
    Settlement,
    SettleOutcome,
    SettleStatus,
)
from kong_plugins.domain.leases import LeasedLine, LeaseOutcome, LeaseRequest
from kong_plugins.domain.partitions import PARTITIONS, partition_of


@dataclass(slots=True)
class _Hold:
    name: str
    partition: int
    state: HoldState
    outcome: HoldOutcome | None  # None: an event recorded without a hold
    lapses_us: int = 0
    ends_us: int = 0  # open: when its grace is over; ended: when it is forgotten
    lapsed: bool = False
    lines: list[tuple[str, Line, int]] = field(default_factory=list)  # counter, line, amount held now
    event: bytes = b""
    posted: tuple[tuple[str, int], ...] = ()
    tried: Try | None = None
    reversed_id: str | None = None
    slots: tuple[str, ...] = ()  # taken, while it is open


class MemoryLedger:
    """A ``Ledger`` of one process. ``clock`` gives microseconds since the epoch."""

    def __init__(
        self,
        clock: Callable[[], int],
        *,
        grace_us: int = layout.GRACE_US,
        terminal_us: int = layout.TERMINAL_US,
        answers_bytes: int = layout.ANSWERS_BYTES,
    ) -> None:
        self._clock = clock
        self._grace_us = grace_us
        self._terminal_us = terminal_us
        self._lock = threading.RLock()
        self._counters = Counters()
        self._holds: dict[str, _Hold] = {}
        self._due: defaultdict[int, list[tuple[int, str]]] = defaultdict(list)  # holds by when they lapse
        self._ending: defaultdict[int, list[tuple[int, str]]] = defaultdict(list)  # lapsed holds by when grace is over
        self._forgotten: list[tuple[int, str]] = []  # ended holds by when they are forgotten
        self._outbox: defaultdict[int, list[OutboxEntry]] = defaultdict(list)
        self._grants: defaultdict[str, list[Grant]] = defaultdict(list)
        self._grant_ids: dict[str, int] = {}
        self._attempts = Attempts(answers_bytes)
        self._slots = TakenSlots()
        self._leases = Leases()

    def time_us(self) -> int:
        return self._clock()

    def hold(self, request: HoldRequest) -> HoldOutcome:
        with self._lock:
            now_us = self._clock()
            self._sweep(partition_of(request.tenant), now_us)
            name = layout.member(request.tenant, request.hold_id)
            known = self._find(name, now_us)
            if known is not None and known.outcome is not None:
                return replace(known.outcome, repeated=True)
            logical = None
            if request.attempt is not None and known is None:
                logical, earlier = self._attempts.look(
                    request.tenant,
                    request.attempt,
                    now_us,
                    lambda held: self._end_by_clock(request.tenant, held, now_us),
                )
                if earlier is not None:
                    return HoldOutcome(False, (), now_us, earlier=earlier)
            slots = tuple(layout.slots_path(request.tenant, each.key) for each in request.slots)
            taken = [self._slots.count(path, now_us) for path in slots]
            if any(count >= each.limit for count, each in zip(taken, request.slots, strict=True)):
                return HoldOutcome(False, (), now_us, slots=slot_states(request.slots, taken, False))
            found = [self._counters.at(request.tenant, line, now_us) for line in request.lines]
            states = tuple(
                state_of(line, kept.counter, now_us) for line, (_, kept) in zip(request.lines, found, strict=True)
            )
            refuses = any(s.short and ln.mode is Mode.HARD for s, ln in zip(states, request.lines, strict=True))
            if refuses or known is not None:
                return HoldOutcome(False, states, now_us, slots=slot_states(request.slots, taken, False))
            after = []
            for line, state, (path, kept) in zip(request.lines, states, found, strict=True):
                kept.counter.held += line.amount
                kept.limit, kept.mode = line.limit, line.mode
                self._counters.keep(path, kept, layout.kept_us(request, self._grace_us), now_us)
                held = replace(state, held=kept.counter.held)
                after.append(
                    held if held.short else replace(held, reset_us=kept.counter.reset_us(now_us, line.limit, 0))
                )
            outcome = HoldOutcome(True, tuple(after), now_us, slots=slot_states(request.slots, taken, True))
            self._open(request, outcome, [path for path, _ in found], logical, now_us)
            for path, each in zip(slots, request.slots, strict=True):
                self._slots.take(path, request.hold_id, now_us + each.ttl_us)
            return outcome

    def _open(
        self, request: HoldRequest, outcome: HoldOutcome, paths: Sequence[str], logical: Logical | None, now_us: int
    ) -> None:
        """A new hold, whose amounts are on its lines' counters already."""
        name, partition = layout.member(request.tenant, request.hold_id), partition_of(request.tenant)
        lapses_us = now_us + request.ttl_us
        tried = None
        if request.attempt is not None:
            over_us = lapses_us + self._grace_us
            tried = self._attempts.begin(
                request.tenant, request.attempt, logical, request.hold_id, over_us=over_us, now_us=now_us
            )
        self._holds[name] = _Hold(
            name,
            partition,
            HoldState.OPEN,
            outcome,
            lapses_us,
            lapses_us + self._grace_us,
            lines=[(path, line, line.amount) for path, line in zip(paths, request.lines, strict=True)],
            event=request.expiry_event,
            tried=tried,
            slots=tuple(layout.slots_path(request.tenant, each.key) for each in request.slots),
        )
        heappush(self._due[partition], (lapses_us, name))

    def lease(self, request: LeaseRequest) -> LeaseOutcome:
        with self._lock:
            now_us, partition = self._clock(), partition_of(request.tenant)
            self._sweep(partition, now_us)
            self._end_leases(partition, now_us)
            member = layout.member(request.tenant, request.lease_id)
            lease = self._leases.find(member, partition)
            if request.turn < lease.turn:
                raise LedgerUnavailable(f"a later question about lease {request.lease_id} was answered before")
            # The same once more changes nothing: by now its node may have given away what another look would take back.
            again = request.turn == lease.turn
            had = dict(lease.amounts)
            if not again:
                lease.amounts, lease.turn, lease.ends_us = {}, request.turn, now_us + request.ttl_us
            leased = []
            for line in request.lines:
                path, kept = self._counters.at(request.tenant, line, now_us)
                counter, mine, hard = kept.counter, had.pop(path, 0), line.mode is Mode.HARD
                left = max(0, line.limit - counter.committed - counter.held + mine)
                wanted = left * request.percent // 100 if hard else 0
                amount = mine
                if not again:
                    amount = max(line.amount, wanted) if hard else 0
                    if amount > mine:
                        amount = min(amount, max(mine, left))
                    if amount != mine:
                        counter.held += amount - mine
                        kept.limit, kept.mode = line.limit, line.mode
                        self._counters.keep(path, kept, request.ttl_us, now_us)
                    if amount:
                        lease.amounts[path] = amount
                reset_us = counter.reset_us(now_us, line.limit, 0)
                state = LineState(line.key, line.limit, counter.committed, counter.held, reset_us)
                until_us = counter.span.end_us if isinstance(counter, FixedCounter) else None
                leased.append(LeasedLine(amount, wanted, until_us, state))
            if not again:
                self._counters.give_back(had)
                self._leases.keep(member, lease, now_us)
            return LeaseOutcome(tuple(leased), now_us)

    def register(self, registration: Registration) -> bool:
        with self._lock:
            now_us, request = self._clock(), registration.request
            partition = partition_of(request.tenant)
            if self._find(layout.member(request.tenant, request.hold_id), now_us) is not None:
                return True
            if abs(now_us - registration.at_us) > layout.register_within_us(self._terminal_us):
                return False
            self._end_leases(partition, now_us)
            lender = layout.member(request.tenant, registration.lease_id)
            lease = self._leases.find(lender, partition)
            paths, states = [], []
            for line in request.lines:
                path, kept = self._counters.at(request.tenant, line, now_us, registration.at_us)
                counter = kept.counter
                counter.held += line.amount - (lease.move(path, line.amount) if line.mode is Mode.HARD else 0)
                kept.limit, kept.mode = line.limit, line.mode
                self._counters.keep(path, kept, layout.kept_us(request, self._grace_us), now_us)
                reset_us = counter.reset_us(now_us, line.limit, 0)
                over = counter.committed + counter.held > line.limit
                states.append(LineState(line.key, line.limit, counter.committed, counter.held, reset_us, short=over))
                paths.append(path)
            self._leases.keep(lender, lease, now_us)
            self._open(replace(request, slots=()), HoldOutcome(True, tuple(states), now_us), paths, None, now_us)
            return True

    def _end_leases(self, partition: int, now_us: int) -> None:
        for lease in self._leases.over(partition, now_us):
            self._counters.give_back(lease.amounts)

    def settle(self, settlement: Settlement) -> SettleOutcome:
        with self._lock:
            now_us = self._clock()
            hold = self._find(layout.member(settlement.tenant, settlement.hold_id), now_us)
            if hold is None:
                return SettleOutcome(SettleStatus.UNKNOWN)
            self._advance(hold, now_us)
            stands = layout.standing(settlement)
            if hold.state is not HoldState.OPEN:
                if hold.tried is not None and hold.state is HoldState.SETTLED:
                    self._attempts.add(hold.tried, stands, now_us, settlement.answer)
                return SettleOutcome(SettleStatus.REPEATED, hold.posted, hold.reversed_id)
            posted = tuple((line.key, line.weights.amount(settlement.usage)) for _, line, _ in hold.lines)
            tokens = settlement.usage.total
            costs = tokens > 0 or any(amount for _, amount in posted)
            charged = None
            if hold.tried is not None and costs:
                charged = self._attempts.charged(hold.tried.logical, now_us)
            # What no event can take back from the books stays on the counters too.
            cheaper = charged is not None and charged.tokens > tokens and bool(settlement.reversal)
            replaced = charged is not None and charged.tokens <= tokens and bool(charged.reversal)
            mine = Charged(settlement.hold_id, tokens, settlement.reversal, [])
            for (path, line, held), (_, amount) in zip(hold.lines, posted, strict=True):
                kept = self._counters[path]
                kept.counter.advance(now_us, kept.limit)
                if not hold.lapsed:
                    kept.counter.held -= held
                used_us = min(now_us, hold.lapses_us)
                counts = not cheaper and kept.counter.post(amount, used_us, now_us)
                at_us = now_us if isinstance(kept.counter, BucketCounter) else used_us
                mine.lines.append(Posted(path if counts else None, line.key, amount, at_us, kept.limit))
                self._counters.keep(path, kept, 0, now_us)
            if cheaper:
                hold.reversed_id = settlement.hold_id
            elif replaced and charged is not None:
                hold.reversed_id = charged.hold_id
            self._end(hold, HoldState.SETTLED, settlement.event, posted, now_us)
            if hold.reversed_id is not None and charged is not None:
                self._reverse(hold.partition, mine if cheaper else charged, now_us)
            if hold.tried is not None:
                if costs and (charged is None or charged.tokens <= tokens):
                    self._attempts.charge(hold.tried, mine, now_us)
                self._attempts.conclude(hold.tried, stands, now_us, settlement.answer)
            return SettleOutcome(SettleStatus.POSTED, hold.posted, hold.reversed_id)

    def _reverse(self, partition: int, charged: Charged, now_us: int) -> None:
        """Take a charged attempt back: from the counters that still count it, and by an event."""
        for line in charged.lines:
            kept = self._counters.live(line.path, now_us)
            if line.path is None or kept is None:
                continue
            kept.counter.advance(now_us, kept.limit)
            kept.counter.take_back(line.amount, line.at_us, now_us, max(kept.limit, line.limit))
            self._counters.keep(line.path, kept, 0, now_us)
        posted = tuple((line.line_key, -line.amount) for line in charged.lines)
        self._append(partition, reversal_id(charged.hold_id), charged.reversal, posted)

    def tighten(self, tenant: str, hold_id: str, amounts: Sequence[tuple[str, int]]) -> bool:
        with self._lock:
            now_us = self._clock()
            hold = self._find(layout.member(tenant, hold_id), now_us)
            if hold is None:
                return False
            self._advance(hold, now_us)
            if hold.state is not HoldState.OPEN or hold.lapsed:
                return False
            lower = dict(amounts)
            for index, (path, line, held) in enumerate(hold.lines):
                amount = max(0, min(held, lower.get(line.key, held)))
                self._counters[path].counter.held -= held - amount
                hold.lines[index] = (path, line, amount)
            if not any(amount for _, _, amount in hold.lines):
                self._leave(hold)
                if hold.tried is not None:
                    self._attempts.conclude(hold.tried, "b", now_us)
            return True

    def peek(self, tenant: str, lines: Sequence[Line]) -> tuple[LineState, ...]:
        with self._lock:
            now_us = self._clock()
            self._sweep(partition_of(tenant), now_us)
            return tuple(state_of(line, self._counters.at(tenant, line, now_us)[1].counter, now_us) for line in lines)

    def grant(self, tenant: str, line: Line, amount: int, reason: str, grant_id: str) -> LineState:
        return self._grant(tenant, line, amount, reason, grant_id)

    def reset(self, tenant: str, line: Line, reason: str, grant_id: str) -> LineState:
        return self._grant(tenant, line, None, reason, grant_id)

    def _grant(self, tenant: str, line: Line, amount: int | None, reason: str, grant_id: str) -> LineState:
        with self._lock:
            now_us = self._clock()
            self._sweep(partition_of(tenant), now_us)
            path, kept = self._counters.at(tenant, line, now_us)
            counter = kept.counter
            name = layout.member(tenant, grant_id)
            if now_us >= self._grant_ids.get(name, 0):
                self._grant_ids[name] = now_us + layout.GRANT_US
                if amount is None:
                    amount = counter.committed
                    counter.clear()
                else:
                    counter.post(-amount, now_us, now_us)
                kept.limit, kept.mode = line.limit, line.mode
                self._counters.keep(path, kept, 0, now_us)
                self._grants[tenant].append(Grant(grant_id, line.key, amount, reason, now_us))
            return state_of(line, counter, now_us)

    def grants(self, tenant: str, count: int = 100) -> tuple[Grant, ...]:
        with self._lock:
            return tuple(reversed(self._grants[tenant][-count:]))

    def record(self, tenant: str, event_id: str, event: bytes) -> bool:
        with self._lock:
            now_us = self._clock()
            name = layout.member(tenant, event_id)
            if self._find(name, now_us) is not None:
                return False
            self._holds[name] = hold = _Hold(name, partition_of(tenant), HoldState.OPEN, None)
            self._end(hold, HoldState.SETTLED, event, (), now_us)
            return True

    def balances(self, tenant: str) -> tuple[Balance, ...]:
        with self._lock:
            now_us = self._clock()
            self._sweep(partition_of(tenant), now_us)
            found = []
            for kept in self._counters.values():
                if kept.tenant == tenant and kept.live_until_us > now_us:
                    counter = apart(kept).counter
                    counter.advance(now_us, kept.limit)
                    reset_us = counter.reset_us(now_us, kept.limit, 0)
                    state = LineState(kept.line_key, kept.limit, counter.committed, counter.held, reset_us)
                    found.append(Balance(tenant, state, kept.window, kept.mode))
            return tuple(sorted(found, key=lambda balance: (balance.state.key, balance.window)))

    def tenants(self) -> tuple[str, ...]:
        with self._lock:
            now_us = self._clock()
            return tuple(sorted({kept.tenant for kept in self._counters.values() if kept.live_until_us > now_us}))

    def expire(self) -> int:
        return sum(map(self.expire_partition, range(PARTITIONS)))

    def expire_partition(self, partition: int) -> int:
        """``expire`` for one partition, for whoever shares them out."""
        with self._lock:
            now_us = self._clock()
            ended = self._sweep(partition, now_us, bound=len(self._due[partition]))
            self._end_leases(partition, now_us)
            ending = self._ending[partition]
            while ending and ending[0][0] <= now_us:
                hold = self._holds.get(heappop(ending)[1])
                if hold is not None:
                    ended += self._advance(hold, now_us)
            self._counters.forget(partition, now_us)
            self._attempts.forget(now_us)
            return ended

    def outbox(self, partition: int, after: str = "0", count: int = 100) -> tuple[OutboxEntry, ...]:
        with self._lock:
            first = int(after.partition("-")[0])
            return tuple(self._outbox[partition][first : first + count])

    def _find(self, name: str, now_us: int) -> _Hold | None:
        while self._forgotten and self._forgotten[0][0] <= now_us:
            del self._holds[heappop(self._forgotten)[1]]
        return self._holds.get(name)

    def _sweep(self, partition: int, now_us: int, bound: int = layout.SWEEP) -> int:
        """Advance the holds that are due, at most ``bound``; returns how many that ended."""
        due, ended = self._due[partition], 0
        while due and due[0][0] <= now_us and bound:
            lapses_us, name = heappop(due)
            hold = self._holds.get(name)
            # One that ended, or lapsed when it was settled, would have left the store's index then.
            if hold is not None and hold.lapses_us == lapses_us and hold.state is HoldState.OPEN and not hold.lapsed:
                bound -= 1
                ended += self._advance(hold, now_us)
        return ended

    def _leave(self, hold: _Hold) -> None:
        self._slots.leave(hold.slots, hold.name.partition("/")[2])
        hold.slots = ()

    def _lapse(self, hold: _Hold) -> None:
        for path, _, held in hold.lines:
            self._counters[path].counter.held -= held
        hold.lapsed = True
        self._leave(hold)
        heappush(self._ending[hold.partition], (hold.ends_us, hold.name))

    def _advance(self, hold: _Hold, now_us: int) -> bool:
        """What the clock alone does to a hold: it lapses, then it expires. True when that ended it now."""
        if hold.state is not HoldState.OPEN or now_us < hold.lapses_us:
            return False
        if not hold.lapsed:
            self._lapse(hold)
        if now_us < hold.ends_us:
            return False
        self._end(hold, HoldState.EXPIRED, hold.event, (), now_us)
        if hold.tried is not None:
            self._attempts.conclude(hold.tried, "b", now_us)
        return True

    def _end_by_clock(self, tenant: str, hold_id: str, now_us: int) -> None:
        hold = self._find(layout.member(tenant, hold_id), now_us)
        if hold is not None:
            self._advance(hold, now_us)

    def _end(
        self, hold: _Hold, state: HoldState, event: bytes, posted: tuple[tuple[str, int], ...], now_us: int
    ) -> None:
        self._leave(hold)
        hold.state, hold.posted, hold.ends_us = state, posted, now_us + self._terminal_us
        heappush(self._forgotten, (hold.ends_us, hold.name))
        self._append(hold.partition, hold.name.partition("/")[2], event, posted)

    def _append(self, partition: int, event_id: str, event: bytes, posted: tuple[tuple[str, int], ...]) -> None:
        outbox = self._outbox[partition]
        outbox.append(OutboxEntry(f"{len(outbox) + 1}-0", event_id, event, posted))

"""Planted bugs, each a change of the code in this process: what finds none of them finds nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

from kong_plugins.adapters.ledger import layout, memory_attempts, memory_counters, memory_ledger
from kong_plugins.adapters.ledger.memory_ledger import MemoryLedger
from kong_plugins.adapters.spool_file import SpoolFile
from kong_plugins.application import posting
from kong_plugins.application.admit import Admission, Denied
from kong_plugins.application.deliver import Delivery
from kong_plugins.application.posting import Poster
from kong_plugins.domain import planning
from kong_plugins.domain.holds import HoldOutcome, HoldState, Settlement
from tests.simulation import leased_mutations as leased
from tests.simulation import memory_store, traffic
from tests.simulation.collecting import Books

Patch = tuple[object, str, Any]


@dataclass(frozen=True)
class Mutation:
    """``made``: what is replaced by what. ``soon``: it is found within a few thousand steps."""

    name: str
    made: Callable[[], Sequence[Patch]]
    soon: bool = False

    @contextmanager
    def planted(self) -> Iterator[None]:
        patches = [patch.object(where, name, value) for where, name, value in self.made()]
        for each in patches:
            each.start()
        try:
            yield
        finally:
            for each in reversed(patches):
                each.stop()


def _acknowledge_first() -> Sequence[Patch]:
    deliver = Delivery._deliver

    def wrong(self: Delivery, batch: Any) -> float:
        self._queue.acknowledge(batch.entries)
        return deliver(self, batch)

    return [(Delivery, "_deliver", wrong)]


def _settle_twice() -> Sequence[Patch]:
    settle = MemoryLedger.settle

    def wrong(self: MemoryLedger, settlement: Any) -> Any:
        known = self._holds.get(layout.member(settlement.tenant, settlement.hold_id))
        if known is not None and known.state is HoldState.SETTLED and known.lines:
            known.state, known.lapsed = HoldState.OPEN, True
        return settle(self, settlement)

    return [(MemoryLedger, "settle", wrong)]


def _not_all_or_none() -> Sequence[Patch]:
    hold = MemoryLedger.hold

    def wrong(self: MemoryLedger, request: Any) -> HoldOutcome:
        outcome = hold(self, request)
        if not outcome.admitted and outcome.states and not outcome.states[0].short:
            line = request.lines[0]
            path, kept = self._counters.at(request.tenant, line, self._clock())
            kept.counter.held += line.amount
            self._counters.keep(path, kept, 0, self._clock())
        return outcome

    return [(MemoryLedger, "hold", wrong)]


def _no_check_of_the_limit() -> Sequence[Patch]:
    state = memory_counters.state_of

    def wrong(line: Any, counter: Any, now_us: int) -> Any:
        found = state(line, counter, now_us)
        return replace(found, short=found.committed + line.amount > line.limit)  # what is held does not count

    return [(memory_ledger, "state_of", wrong)]


def _expiry_charges() -> Sequence[Patch]:
    end = MemoryLedger._end

    def wrong(self: MemoryLedger, hold: Any, state: Any, event: bytes, posted: Any, now_us: int) -> None:  # noqa: PLR0917
        if state is HoldState.EXPIRED:
            posted = tuple((line.key, amount) for _, line, amount in hold.lines)
            for path, _, amount in hold.lines:
                self._counters[path].counter.committed += amount
        end(self, hold, state, event, posted, now_us)

    return [(MemoryLedger, "_end", wrong)]


def _settles_after_expiry() -> Sequence[Patch]:
    settle = MemoryLedger.settle

    def wrong(self: MemoryLedger, settlement: Any) -> Any:
        known = self._holds.get(layout.member(settlement.tenant, settlement.hold_id))
        if known is not None and known.state is HoldState.EXPIRED:
            known.state, known.lapsed, known.ends_us = HoldState.OPEN, True, self._clock() + 1
        return settle(self, settlement)

    return [(MemoryLedger, "settle", wrong)]


def _reversal_lost() -> Sequence[Patch]:
    return [(MemoryLedger, "_reverse", lambda self, partition, charged, now_us: None)]


def _reversal_doubled() -> Sequence[Patch]:
    reverse = MemoryLedger._reverse

    def wrong(self: MemoryLedger, partition: int, charged: Any, now_us: int) -> None:
        reverse(self, partition, charged, now_us)
        reverse(self, partition, charged, now_us)

    return [(MemoryLedger, "_reverse", wrong)]


def _cheapest_stays() -> Sequence[Patch]:
    charged = memory_attempts.Attempts.charged

    def wrong(self: Any, one: Any, now_us: int) -> Any:
        found = charged(self, one, now_us)
        return None if found is None else replace(found, tokens=-1)  # whatever was charged, the last one stays

    return [(memory_attempts.Attempts, "charged", wrong)]


def _books_without_ids() -> Sequence[Patch]:
    def wrong(self: Books, entries: Sequence[Any]) -> None:
        for entry in entries:
            self.rows[entry.event_id, len(self.rows)] = entry
            self.world.watch.sink_has(entry.event_id, entry.event)

    return [(Books, "store", wrong)]


def _removed_before_posted() -> Sequence[Patch]:
    def wrong(self: Poster, entries: Sequence[Any], probe: bool) -> bool:
        self._remove(list(entries))
        return all(self._try(entry) is None for entry in entries)

    return [(Poster, "_replay_in_order", wrong)]


def _posted_and_never_removed() -> Sequence[Patch]:
    return [(SpoolFile, "remove", lambda self, seqs: None)]


def _booked_again_from_the_spool() -> Sequence[Patch]:
    attempt = Poster._try

    def wrong(self: Poster, entry: Any) -> Any:
        failure, one = attempt(self, entry), entry.posting
        if failure is None and isinstance(one, Settlement):
            again = f"{one.hold_id}-again"
            event = one.event.replace(f'"id":"{one.hold_id}"'.encode(), f'"id":"{again}"'.encode())
            self._ledger.record(one.tenant, again, event)
        return failure

    return [(Poster, "_try", wrong)]


def _swallowed() -> Sequence[Patch]:
    def wrong(self: Poster, one: Any) -> Any:
        try:
            return self._post(one)
        except posting.LedgerUnavailable:
            return None  # swallowed: neither ledger nor spool has it

    return [(Poster, "_now_or_later", wrong)]


def _limit_in_the_key() -> Sequence[Patch]:
    key = planning.line_key
    return [(planning, "line_key", lambda budget, scope: f"{key(budget, scope)}:{budget.limit}")]


def _trims_the_unacknowledged() -> Sequence[Patch]:
    return [(memory_store, "_done", lambda group: group.next)]


def _foreign_tenants_retry() -> Sequence[Patch]:
    return [(layout, "tries_path", lambda tenant, attempt: f"{attempt.derived}/{attempt.key}")]


def _clamped_above_the_limit() -> Sequence[Patch]:
    decide = Admission._decide

    def wrong(self: Admission, ask: Any, outcome: Any) -> Any:
        decided = decide(self, ask, outcome)
        if isinstance(decided, Denied):
            lines = tuple(replace(each, line=replace(each.line, amount=0)) for each in decided.planned)
            empty = replace(ask, planned=lines)
            decided = decide(self, empty, self._hold(empty, lines))  # lets through what it holds nothing for
        return decided

    return [(Admission, "_decide", wrong)]


def _retry_runs_unheld() -> Sequence[Patch]:
    access = traffic.Gateway._access

    def wrong(self: Any, request: Any, hold_id: str, tenant: Any, started_ms: int) -> Any:
        decided = access(self, request, hold_id, tenant, started_ms)
        if decided is None and request.status == 503:  # fails open, and tells nobody
            self.world.kernel.call(self.world.engine.process, lambda: self.world.engine.begin(hold_id, request))
        return decided

    return [(traffic.Gateway, "_access", wrong)]


def _past_the_gateway() -> Sequence[Patch]:
    chunk = traffic.Engine.chunk

    def wrong(self: Any, most: int) -> int:
        if self._world.kernel.random.random() < 0.05:
            self.prompt, self.completion = self.prompt + 400, self.completion + 100
        return chunk(self, most)

    return [(traffic.Engine, "chunk", wrong)]


def _one_sided_entry() -> Sequence[Patch]:
    from tests.simulation import audit

    both = audit.charge_entries

    def wrong(charged: Any) -> Any:
        debit, credit = both(charged)
        return debit, replace(credit, amount=-abs(credit.amount))  # a reversal is booked as a charge on one side

    return [(audit, "charge_entries", wrong)]


def _reset_keeps_held_out() -> Sequence[Patch]:
    reset = MemoryLedger.reset

    def wrong(self: MemoryLedger, tenant: str, line: Any, reason: str, grant_id: str) -> Any:
        return reset(self, tenant, line, reason, f"{grant_id}/{self._clock()}")  # a command run again works again

    return [(MemoryLedger, "reset", wrong)]


MUTATIONS = (
    Mutation("acknowledged before it is written", _acknowledge_first, soon=True),
    Mutation("a second settlement posts again", _settle_twice, soon=True),
    Mutation("a refused hold keeps its first line", _not_all_or_none),
    Mutation("what is held does not count", _no_check_of_the_limit),
    Mutation("an expiry charges what was held", _expiry_charges),
    Mutation("a settlement after the expiry charges", _settles_after_expiry),
    Mutation("a reversal is lost", _reversal_lost, soon=True),
    Mutation("a reversal is written twice", _reversal_doubled, soon=True),
    Mutation("the last attempt is charged, not the dearest", _cheapest_stays),
    Mutation("the books know no ids", _books_without_ids),
    Mutation("out of the spool before it is posted", _removed_before_posted),
    Mutation("nothing leaves the spool", _posted_and_never_removed),
    Mutation("what the spool delayed is booked under a second id", _booked_again_from_the_spool),
    Mutation("a posting that failed is swallowed", _swallowed),
    Mutation("the limit is part of the key", _limit_in_the_key),
    Mutation("trims what is not acknowledged", _trims_the_unacknowledged),
    Mutation("a retry meets another tenant's attempt", _foreign_tenants_retry, soon=True),
    Mutation("lets through what it holds nothing for", _clamped_above_the_limit),
    Mutation("runs what the ledger did not hold", _retry_runs_unheld),
    Mutation("the engine works for somebody else too", _past_the_gateway),
    Mutation("a reversal is booked on one side as a charge", _one_sided_entry),
    Mutation("an operator's repeated reset works again", _reset_keeps_held_out),
    Mutation("an old question changes a lease", leased.any_turn, soon=True),
    Mutation("a request is held beside the lease it came out of", leased.held_beside, soon=True),
    Mutation("what is given away is not counted", leased.given_for_nothing, soon=True),
    Mutation("a lease is used after its window", leased.after_its_window),
    Mutation("a lease is used after its time", leased.after_its_time),
    Mutation("what ended is held once more", leased.held_again, soon=True),
)

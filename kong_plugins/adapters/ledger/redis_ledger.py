"""The ledger in Redis or Valkey: one script for each operation, see lua/. A partition's keys share a hash tag."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import msgpack

from kong_plugins.adapters.ledger import layout
from kong_plugins.adapters.ledger.connections import Argument, Connections, Script, load_script
from kong_plugins.application.ports import Balance, Grant, LedgerUnavailable, OutboxEntry
from kong_plugins.domain.attempts import Attempt, Earlier, Standing
from kong_plugins.domain.concurrency import slot_states
from kong_plugins.domain.events import reversal_id
from kong_plugins.domain.holds import (
    HoldOutcome,
    HoldRequest,
    Line,
    LineState,
    Registration,
    Settlement,
    SettleOutcome,
    SettleStatus,
)
from kong_plugins.domain.leases import LeasedLine, LeaseOutcome, LeaseRequest
from kong_plugins.domain.partitions import PARTITIONS, hash_tag, partition_of
from kong_plugins.domain.windows import FixedWindow, Span, describe, window_at

_EXPIRE_BATCH = 500  # holds a script ends before it lets others in again: a few milliseconds
_DECIDED = frozenset({b"held", b"refused", b"again"})  # a hold that no earlier attempt answered for
_WINDOW_TRIES = 4  # a window may end between our clock and the server's, hardly twice


class RedisLedger:
    """A ``Ledger`` behind ``connections``.

    The server's clock is the ledger's clock. Fixed windows need a time zone, which a script does not have: they are
    computed here, from our clock as corrected by the server's last answers, and the script refuses any that does not
    contain its own time. So a gateway with a wrong clock costs a second try, never a wrong window.
    """

    def __init__(
        self,
        connections: Connections,
        *,
        grace_us: int = layout.GRACE_US,
        terminal_us: int = layout.TERMINAL_US,
        answers_bytes: int = layout.ANSWERS_BYTES,
        clock: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._connections = connections
        self._grace_us = grace_us
        self._terminal_us = terminal_us
        self._answers_bytes = answers_bytes
        self._clock = clock
        self._behind_us = 0  # how far our clock was found behind the server's
        self._spans: dict[FixedWindow, Span] = {}
        self._scripts: dict[str, Script] = {}
        self.now_us = 0  # the server's clock in its last answer
        self._heard_s = 0.0  # and when that came

    def close(self) -> None:
        self._connections.close()

    def time_us(self) -> int:
        if not self.now_us:
            return self._clock()
        return self.now_us + round((time.monotonic() - self._heard_s) * 1e6)

    def hold(self, request: HoldRequest) -> HoldOutcome:
        tag, encoded = self._tag(request.tenant), layout.encode(request.tenant)
        member = layout.member(request.tenant, request.hold_id)

        def attempt(now_us: int) -> tuple[list[str], list[Argument]]:
            counters, asked = self._hold_arguments(tag, request, now_us)
            return [f"{tag}hold:{member}", *counters], [tag, request.tenant, encoded, member, asked]

        status, now_us, states = self._call_in_window("hold", attempt)
        if status == b"busy":
            return HoldOutcome(False, (), now_us, slots=slot_states(request.slots, states, False))
        if status not in _DECIDED:
            hold_id, *answer = states
            earlier = Earlier(Standing(status.decode()), _text(hold_id), *answer)
            return HoldOutcome(False, (), now_us, earlier=earlier)
        if status == b"again":
            now_us, *first = states
            states = first if request.slots else first[0]
        admitted, taken = status != b"refused", ()
        if request.slots:
            states, taken = states
        outcome = tuple(map(_state, request.lines, states))
        slots = slot_states(request.slots, taken, admitted)
        return HoldOutcome(admitted, outcome, now_us, repeated=status == b"again", slots=slots)

    def _hold_arguments(self, tag: str, request: HoldRequest, at_us: int) -> tuple[list[str], bytes]:
        """The counters of its lines in the windows of that time, and what the scripts need to know of it."""
        counters, lines = self._place(request.tenant, tag, request.lines, at_us)
        weighted = [[*packed, *_weights(line)] for packed, line in zip(lines, request.lines, strict=True)]
        about = (request.hold_id, request.ttl_us, self._grace_us, self._terminal_us, request.expiry_event)
        tried = () if request.attempt is None else (_tried(request.tenant, request.attempt),)
        if request.slots:
            tried = (*(tried or (None,)), _slots(request))
        return counters, _pack((*about, weighted, *tried))

    def register(self, registration: Registration) -> bool:
        request, at_us = registration.request, registration.at_us
        tenant = request.tenant
        tag, member = self._tag(tenant), layout.member(tenant, request.hold_id)
        lender = layout.member(tenant, registration.lease_id) if registration.lease_id else ""
        counters, asked = self._hold_arguments(tag, replace(request, slots=()), at_us)
        within_us = layout.register_within_us(self._terminal_us)
        args = (tag, tenant, layout.encode(tenant), member, lender, at_us, within_us, asked)
        status, _, _ = self._call("register", [f"{tag}hold:{member}", *counters], args)
        return bool(status != b"late")

    def lease(self, request: LeaseRequest) -> LeaseOutcome:
        tenant = request.tenant
        tag, member = self._tag(tenant), layout.member(tenant, request.lease_id)

        def attempt(now_us: int) -> tuple[list[str], list[Argument]]:
            counters, lines = self._place(tenant, tag, request.lines, now_us)
            asked = _pack((request.ttl_us, request.percent, request.turn, lines))
            return [f"{tag}lease:{member}", *counters], [tag, tenant, layout.encode(tenant), member, asked]

        status, now_us, found = self._call_in_window("lease", attempt)
        if status == b"stale":
            raise LedgerUnavailable(f"a later question about lease {request.lease_id} was answered before")
        leased = []
        for line, (amount, wanted, *state) in zip(request.lines, found, strict=True):
            fixed = isinstance(line.window, FixedWindow)
            leased.append(LeasedLine(amount, wanted, state[2] if fixed else None, _state(line, (*state, 0))))
        return LeaseOutcome(tuple(leased), now_us)

    def settle(self, settlement: Settlement) -> SettleOutcome:
        tenant, usage = settlement.tenant, settlement.usage
        tag, member = self._tag(tenant), layout.member(tenant, settlement.hold_id)
        tokens = (usage.prompt, usage.cached, usage.completion)
        retrying = (reversal_id(settlement.hold_id), settlement.reversal, settlement.answer)
        standing = (layout.standing(settlement), self._answers_bytes)
        args = (tag, layout.encode(tenant), tenant, member, *tokens, settlement.event, *standing, *retrying)
        status, _, found = self._call("settle", [f"{tag}hold:{member}"], args)
        if found is None:
            return SettleOutcome(SettleStatus(status.decode()))
        posted, *reversed_id = found
        amounts = tuple((_text(line), amount) for line, amount in posted or ())
        return SettleOutcome(SettleStatus(status.decode()), amounts, *map(_text, reversed_id))

    def tighten(self, tenant: str, hold_id: str, amounts: Sequence[tuple[str, int]]) -> bool:
        tag, member = self._tag(tenant), layout.member(tenant, hold_id)
        lower = [(line, max(0, amount)) for line, amount in amounts]
        status, _, _ = self._call("tighten", [f"{tag}hold:{member}"], (tag, member, _pack(lower)))
        return bool(status == b"open")

    def peek(self, tenant: str, lines: Sequence[Line]) -> tuple[LineState, ...]:
        if not lines:
            return ()
        tag = self._tag(tenant)

        def attempt(now_us: int) -> tuple[list[str], list[Argument]]:
            counters, packed = self._place(tenant, tag, lines, now_us)
            return counters, [tag, _pack(packed)]

        _, _, states = self._call_in_window("peek", attempt)
        return tuple(map(_state, lines, states))

    def grant(self, tenant: str, line: Line, amount: int, reason: str, grant_id: str) -> LineState:
        return self._grant(tenant, line, amount, reason, grant_id)

    def reset(self, tenant: str, line: Line, reason: str, grant_id: str) -> LineState:
        return self._grant(tenant, line, "all", reason, grant_id)

    def _grant(self, tenant: str, line: Line, amount: int | str, reason: str, grant_id: str) -> LineState:
        tag, encoded = self._tag(tenant), layout.encode(tenant)

        def attempt(now_us: int) -> tuple[list[str], list[Argument]]:
            (counter,), (packed,) = self._place(tenant, tag, (line,), now_us)
            keys = [f"{tag}grant:{layout.member(tenant, grant_id)}", counter]
            return keys, [tag, tenant, encoded, grant_id, amount, reason, _pack(packed)]

        _, _, states = self._call_in_window("grant", attempt)
        return _state(line, states[0])

    def grants(self, tenant: str, count: int = 100) -> tuple[Grant, ...]:
        _, _, found = self._call("grants", [f"{self._tag(tenant)}grants:{layout.encode(tenant)}"], (count,))
        made = []
        for entry in found:
            fields = dict(zip(entry[::2], entry[1::2], strict=True))
            made.append(
                Grant(
                    grant_id=_text(fields[b"id"]),
                    line=_text(fields[b"line"]),
                    amount=int(fields[b"amount"]),
                    reason=_text(fields[b"reason"]),
                    at_us=int(fields[b"at"]),
                )
            )
        return tuple(made)

    def record(self, tenant: str, event_id: str, event: bytes) -> bool:
        tag, member = self._tag(tenant), layout.member(tenant, event_id)
        status, _, _ = self._call("record", [f"{tag}hold:{member}"], (tag, member, event_id, event, self._terminal_us))
        return bool(status == b"posted")

    def balances(self, tenant: str) -> tuple[Balance, ...]:
        tag = self._tag(tenant)
        _, _, found = self._call("balances", [f"{tag}live:{layout.encode(tenant)}"], (tag,))
        balances = [
            Balance(tenant, LineState(_text(line), limit, committed, held, reset), _text(window), _text(mode))
            for line, window, mode, limit, committed, held, reset in found
        ]
        return tuple(sorted(balances, key=lambda balance: (balance.state.key, balance.window)))

    def tenants(self) -> tuple[str, ...]:
        found: set[str] = set()
        for partition in range(PARTITIONS):
            _, _, names = self._call("tenants", [f"{hash_tag(partition)}:tenants"], ())
            found.update(map(_text, names))
        return tuple(sorted(found))

    def expire(self) -> int:
        return sum(map(self.expire_partition, range(PARTITIONS)))

    def expire_partition(self, partition: int) -> int:
        """``expire`` for one partition, for whoever shares them out."""
        tag, ended = f"{hash_tag(partition)}:", 0
        status = b"more"
        while status == b"more":
            status, _, count = self._call("expire", [f"{tag}open"], (tag, _EXPIRE_BATCH))
            ended += count
        return ended

    def outbox(self, partition: int, after: str = "0", count: int = 100) -> tuple[OutboxEntry, ...]:
        _, _, found = self._call("outbox", [f"{hash_tag(partition)}:outbox"], (after, count))
        entries = []
        for position, fields in found:
            _, event_id, _, event, *posted = fields
            lines = tuple(
                (_text(name).removeprefix("posted."), int(amount))
                for name, amount in zip(posted[::2], posted[1::2], strict=True)
            )
            entries.append(OutboxEntry(position.decode(), _text(event_id), event, lines))
        return tuple(entries)

    @staticmethod
    @lru_cache(maxsize=4096)
    def _tag(tenant: str) -> str:
        return f"{hash_tag(partition_of(tenant))}:"

    def _place(
        self, tenant: str, tag: str, lines: Sequence[Line], now_us: int
    ) -> tuple[list[str], list[list[Argument]]]:
        """Each line's counter key, and the line as the scripts take it."""
        keys: list[str] = []
        packed: list[list[Argument]] = []
        for line in lines:
            key = f"{tag}count:{layout.counter_path(tenant, line.key, line.window)}"
            if isinstance(line.window, FixedWindow):
                span = self._spans.get(line.window)
                if span is None or now_us not in span:
                    self._spans[line.window] = span = window_at(line.window, now_us)
                key = f"{key}:{span.start_us}"
                numbers: layout.WireWindow = ("f", span.start_us, span.end_us)
            else:
                numbers = layout.running_window(line.window)
            keys.append(key)
            packed.append([line.key, *numbers, line.limit, line.amount, line.mode.value, describe(line.window)])
        return keys, packed

    def _call_in_window(
        self, name: str, attempt: Callable[[int], tuple[list[str], list[Argument]]]
    ) -> tuple[bytes, int, Any]:
        for _ in range(_WINDOW_TRIES):
            keys, args = attempt(self._clock() + self._behind_us)
            status, now_us, value = self._call(name, keys, args)
            if status != b"window":
                return status, now_us, value
            self._behind_us = now_us - self._clock()
        raise LedgerUnavailable(
            f"{name}: our clock and the server's do not agree on the window in {_WINDOW_TRIES} tries:"
            " the way to the server is slower than the budget's window is long, or one of the clocks jumps"
        )

    def _call(self, name: str, keys: Sequence[str], args: Sequence[Argument]) -> tuple[bytes, int, Any]:
        script = self._scripts.get(name)
        if script is None:
            script = self._scripts[name] = load_script(name)
        answer = msgpack.unpackb(self._connections.call(script, keys, args), raw=True)
        self.now_us, self._heard_s = answer[1], time.monotonic()
        return answer[0], answer[1], answer[2] if len(answer) > 2 else None


def _tried(tenant: str, attempt: Attempt) -> tuple[Argument, ...]:
    key, most = layout.tries_path(tenant, attempt), layout.remembered(attempt)
    derived, retry = int(attempt.derived), int(attempt.retry)
    return key, attempt.fingerprint, derived, retry, attempt.ttl_us, attempt.attempts_max, most


def _slots(request: HoldRequest) -> list[tuple[str, int, int]]:
    return [(layout.slots_path(request.tenant, each.key), each.limit, each.ttl_us) for each in request.slots]


def _weights(line: Line) -> tuple[int, ...]:
    weights = line.weights
    return weights.uncached, weights.cached, weights.completion, weights.request, weights.denominator


def _state(line: Line, numbers: Sequence[int]) -> LineState:
    committed, held, reset_us, short = numbers
    return LineState(line.key, line.limit, committed, held, reset_us, short=bool(short))


def _pack(value: object) -> bytes:
    # The old string type: the scripts' msgpack knows no other. Bytes and text are the same to them.
    packed: bytes = msgpack.packb(value, use_bin_type=False, unicode_errors="surrogateescape")
    return packed


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")

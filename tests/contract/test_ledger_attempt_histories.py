"""Random histories of attempts: whatever clients, engines and clocks do, the dearest alone is charged."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace

import msgpack
from hypothesis import strategies as st
from hypothesis.stateful import rule

from kong_plugins.adapters.ledger import EmbeddedValkey, layout
from kong_plugins.application.ports import OutboxEntry
from kong_plugins.domain.attempts import Attempt
from kong_plugins.domain.budgets import COMPLETION, TOTAL, Mode, Weights
from kong_plugins.domain.events import reversal_id
from kong_plugins.domain.holds import HoldRequest, Line, SettleOutcome, SettleStatus
from kong_plugins.domain.partitions import hash_tag, partition_of
from kong_plugins.domain.usage import Usage
from kong_plugins.domain.windows import FixedWindow, RollingWindow, TokenBucket, Unit
from tests.contract.side_by_side import LOST, Ending, SideBySide, drive, endings, usages

OPERATIONS = 5_000
TENANT = "acme"
SHORT_US = 3_000  # over within a few operations
LONG_US = 60_000_000
BUDGETS = (
    Line("second", FixedWindow(Unit.SECOND), TOTAL, 300, 5),
    Line("month", FixedWindow(Unit.MONTH), TOTAL, 900, 5),
    Line("rolling", RollingWindow(1), COMPLETION, 300, 5),
    Line("bucket", TokenBucket(1), Weights(2, 1, 7, request=1, denominator=3), 300, 5),
    Line("calls", RollingWindow(60), Weights(0, 0, 0, request=1), 40, 1, Mode.SOFT),
)
lines = st.lists(st.sampled_from(BUDGETS), min_size=1, max_size=3, unique=True)
attempts = st.builds(
    Attempt,
    key=st.sampled_from(["k1", "k2", "k2"]),
    fingerprint=st.sampled_from(["f", "f", "f", "f", "other"]),
    derived=st.booleans(),
    retry=st.sampled_from([True, True, False]),
    ttl_us=st.sampled_from([SHORT_US, LONG_US, LONG_US, LONG_US]),
    attempts_max=st.integers(1, 6),
)
which = st.integers(0, 1_000)  # of those there are


@dataclass
class Logical:
    """A logical request as the test follows it. ``apart``: what is remembered of it for a short time only may be gone
    when an attempt that was given up is settled after all; that one is charged apart then."""

    hold_ids: list[str] = field(default_factory=list)
    settled: list[tuple[int, str]] = field(default_factory=list)  # tokens and hold, in the order of settling
    apart: bool = False


class Retries(SideBySide):
    whose = (TENANT,)

    def begin(self) -> None:
        self.by_first: defaultdict[str, Logical] = defaultdict(Logical)
        self.logical: dict[str, Logical] = {}
        self.open: list[str] = []
        self.asked: dict[str, HoldRequest] = {}

    @rule(lines=lines, attempt=attempts, ttl_us=st.sampled_from([SHORT_US, LONG_US, LONG_US, LONG_US]))
    def hold(self, lines: list[Line], attempt: Attempt, ttl_us: int) -> None:
        hold_id = f"r{self.steps}"
        request = self.asked[hold_id] = HoldRequest(TENANT, hold_id, tuple(lines), ttl_us, attempt=attempt)
        outcome = self.same("hold", request)
        if not outcome.admitted:
            return
        for line, state in zip(lines, outcome.states, strict=True):
            assert line.mode is not Mode.HARD or state.committed + state.held <= line.limit
        self.expected_events.append(hold_id)
        self.held.append((TENANT, hold_id))
        self.open.append(hold_id)
        # Which attempts are at one logical request is as the server has it; what they may cost is not.
        key = f"{hash_tag(partition_of(TENANT))}:hold:{layout.member(TENANT, hold_id)}"
        _, _, first, _ = msgpack.unpackb(self.client.get(key))["t"]
        logical = self.logical[hold_id] = self.by_first[first]
        logical.hold_ids.append(hold_id)
        logical.apart |= attempt.ttl_us == SHORT_US
        assert len(logical.hold_ids) <= max(1, attempt.attempts_max)

    @rule(which=which, usage=usages, ending=endings, stays=st.sampled_from([False, False, True]))
    def settle(self, which: int, usage: Usage, ending: Ending, stays: bool) -> None:
        """Once, or again and again."""
        if not self.open:
            return
        index = which % len(self.open)
        hold_id = self.open[index] if stays else self.open.pop(index)
        self.end(TENANT, hold_id, usage, ending)

    def end(self, tenant: str, hold_id: str, usage: Usage, ending: Ending = LOST) -> SettleOutcome:
        ended = super().end(tenant, hold_id, usage, ending)
        if ended.status is SettleStatus.POSTED:
            self.logical[hold_id].settled.append((usage.total, hold_id))
        return ended

    @rule(which=which, attempt=attempts)
    def hold_again(self, which: int, attempt: Attempt) -> None:
        if not self.held:
            return
        _, hold_id = self.held[which % len(self.held)]
        assert self.same("hold", replace(self.asked[hold_id], attempt=attempt)).repeated

    @rule(which=which)
    def give_up(self, which: int) -> None:
        if self.open:
            hold_id = self.open[which % len(self.open)]
            self.same("tighten", TENANT, hold_id, [(line.key, 0) for line in BUDGETS])

    @rule(lines=lines, what=st.sampled_from(["balances", "expire", "expire", "reset"]))
    def meanwhile(self, lines: list[Line], what: str) -> None:
        if what == "expire":
            self.same("expire_partition", partition_of(TENANT))
        elif what == "reset":
            self.same("reset", TENANT, lines[0], "because", f"g{self.steps}")
        else:
            self.same("peek", TENANT, lines)
            self.same("balances", TENANT)

    def check(self, entries: list[OutboxEntry]) -> None:
        """What the attempts at a logical request posted, less what was reversed, is what the dearest of them posted."""
        posted = {entry.event_id: dict(entry.posted) for entry in entries}
        for logical in self.by_first.values():
            remaining: Counter[str] = Counter()
            for hold_id in logical.hold_ids:
                remaining.update(posted[hold_id])
                taken_back = posted.get(reversal_id(hold_id), {})
                assert taken_back in ({}, {line: -amount for line, amount in posted[hold_id].items()})
                remaining.update(taken_back)
            costing = [each for each in logical.settled if each[0] or any(posted[each[1]].values())]
            if logical.apart:
                continue
            most = max((tokens for tokens, _ in costing), default=0)
            dearest = [posted[hold_id] for tokens, hold_id in costing if tokens == most][-1:] or [{}]
            assert all(amount == dearest[0].get(line, 0) for line, amount in remaining.items()), logical


def test_a_logical_request_is_charged_as_its_dearest_attempt_in_every_history(valkey: EmbeddedValkey) -> None:
    """Over at least 5,000 operations, in which the server and the model agree on every answer; one event and at most
    one reversal for each attempt."""
    drive(Retries, valkey, OPERATIONS)

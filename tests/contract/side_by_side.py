"""The real server and the model, driven side by side: every answer is the same, what is left at the end is right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, run_state_machine_as_test

from kong_plugins.adapters.ledger import EmbeddedValkey, MemoryLedger, RedisLedger, connect_ledger
from kong_plugins.application.ports import OutboxEntry
from kong_plugins.domain.attempts import AnswerKept
from kong_plugins.domain.holds import Outcome, Settlement, SettleOutcome
from kong_plugins.domain.partitions import partition_of
from kong_plugins.domain.usage import Evidence, Usage

GRACE_US = 20_000
TERMINAL_US = 3_600_000_000
ANSWERS_BYTES = 1_500
LIMITS: Mapping[str, int] = {"grace_us": GRACE_US, "terminal_us": TERMINAL_US, "answers_bytes": ANSWERS_BYTES}
REVERSAL = b"[]"
Ending = tuple[Outcome, AnswerKept, bytes]
LOST: Ending = (Outcome.COMPLETED, AnswerKept.NONE, b"")
usages = st.builds(
    lambda prompt, completion, cached: Usage(prompt, completion, min(prompt, cached)),
    *(st.integers(0, 40) for _ in range(3)),
)
endings = st.sampled_from(
    [
        (Outcome.ABORTED, AnswerKept.NONE, b""),
        (Outcome.FAILED, AnswerKept.NONE, b""),
        (Outcome.ABORTED, AnswerKept.KEPT, b"half"),
        (Outcome.COMPLETED, AnswerKept.NONE, b""),
        (Outcome.COMPLETED, AnswerKept.TOO_LARGE, b""),
        (Outcome.COMPLETED, AnswerKept.KEPT, b"short"),
        (Outcome.COMPLETED, AnswerKept.KEPT, b"l" * 600),
        (Outcome.COMPLETED, AnswerKept.KEPT, b"m" * ANSWERS_BYTES),
    ]
)


class SideBySide(RuleBasedStateMachine):
    """``steps`` counts operations over all histories. Subclasses note in ``held`` what was admitted and in
    ``expected_events`` the ids of all events but reversals."""

    whose: tuple[str, ...]  # tenants
    client: redis.Redis
    real: RedisLedger
    steps = 0

    @initialize()
    def start(self) -> None:
        self.client.flushall()
        self.model = MemoryLedger(lambda: self.real.now_us, **LIMITS)
        self.expected_events: list[str] = []
        self.held: list[tuple[str, str]] = []
        self.begin()

    def begin(self) -> None:
        """What a history begins with."""

    def same(self, operation: str, *args: object) -> object:
        """Ask the server, then the model at the moment the server decided."""
        type(self).steps += 1
        answer = getattr(self.real, operation)(*args)
        assert answer == getattr(self.model, operation)(*args), operation
        return answer

    def end(
        self,
        tenant: str,
        hold_id: str,
        usage: Usage,
        ending: Ending = LOST,
    ) -> SettleOutcome:
        outcome, kept, answer = ending
        return self.same(
            "settle",
            Settlement(
                tenant, hold_id, usage, Evidence.EXACT, b"{}", outcome, REVERSAL, answer + hold_id.encode(), kept
            ),
        )

    def teardown(self) -> None:
        """Whatever happened: every hold ends once, with one event, and nothing stays held."""
        for tenant, hold_id in self.held:
            self.end(tenant, hold_id, Usage(1))
        entries: list[OutboxEntry] = []
        for partition in {partition_of(tenant) for tenant in self.whose}:
            real = self.real.outbox(partition, count=1000)
            model = self.model.outbox(partition, count=1000)
            assert [replace(e, position="") for e in real] == [replace(e, position="") for e in model]
            entries += real
        reversals = [entry for entry in entries if entry.event == REVERSAL]
        assert sorted(entry.event_id for entry in entries if entry.event != REVERSAL) == sorted(self.expected_events)
        assert len({entry.event_id for entry in reversals}) == len(reversals)
        self.check(entries)
        for tenant in self.whose:
            for balance in self.real.balances(tenant):
                assert balance.state.held == 0, balance
                if balance.state.key == "month":
                    self.check_month(tenant, balance.state.committed, entries)

    def check_month(self, tenant: str, committed: int, entries: list[OutboxEntry]) -> None:
        """A counter of the calendar is what the events posted, less what was granted."""
        mine = {hold_id for whose, hold_id in self.held if whose == tenant}
        posted = sum(
            dict(entry.posted).get("month", 0) for entry in entries if entry.event_id.removeprefix("reversal:") in mine
        )
        granted = sum(grant.amount for grant in self.real.grants(tenant, 1000) if grant.line == "month")
        assert committed == posted - granted

    def check(self, entries: list[OutboxEntry]) -> None:
        """What else holds at the end of a history."""


def drive(machine: type[SideBySide], valkey: EmbeddedValkey, operations: int) -> None:
    """Through histories until there were so many operations."""
    machine.steps = 0
    machine.real = connect_ledger(valkey.url, timeout_s=5, **LIMITS)
    with redis.Redis.from_url(valkey.url) as machine.client:
        while machine.steps < operations:
            run_state_machine_as_test(
                machine,
                settings=settings(
                    max_examples=40,
                    stateful_step_count=80,
                    deadline=None,
                    phases=[Phase.generate],  # real time passes: a shorter history would not fail the same way
                    report_multiple_bugs=False,
                    database=None,
                    suppress_health_check=list(HealthCheck),
                ),
            )
    machine.real.close()

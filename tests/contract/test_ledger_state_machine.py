"""The real server and the model, driven side by side through random histories: every answer is the same."""

from __future__ import annotations

from dataclasses import replace

import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, multiple, rule, run_state_machine_as_test

from kong_plugins.adapters.ledger import EmbeddedValkey, MemoryLedger, RedisLedger, connect_ledger
from kong_plugins.application.ports import OutboxEntry
from kong_plugins.domain.budgets import COMPLETION, TOTAL, Mode, Weights
from kong_plugins.domain.holds import HoldRequest, Line, Settlement
from kong_plugins.domain.partitions import partition_of
from kong_plugins.domain.usage import Evidence, Usage
from kong_plugins.domain.windows import FixedWindow, RollingWindow, TokenBucket, Unit

OPERATIONS = 10_000
GRACE_US = 20_000
TERMINAL_US = 3_600_000_000
TENANTS = ("acme", "globex")
BUDGETS = (
    Line("second", FixedWindow(Unit.SECOND), TOTAL, 80, 0),
    Line("month", FixedWindow(Unit.MONTH, "Asia/Kolkata", 31), TOTAL, 400, 0),
    Line("rolling", RollingWindow(1), COMPLETION, 90, 0),
    Line("bucket", TokenBucket(1), Weights(2, 1, 7, request=1, denominator=3), 101, 0),
    Line("vast", TokenBucket(2_678_400), TOTAL, 10**12 + 39, 0),
    Line("soft", RollingWindow(60), TOTAL, 10, 0, Mode.SOFT),
)
usages = st.builds(
    lambda prompt, completion, cached: Usage(prompt, completion, min(prompt, cached)),
    *(st.integers(0, 40) for _ in range(3)),
)
tenants = st.sampled_from(TENANTS)
lines = st.lists(
    st.builds(
        lambda budget, amount, limit: replace(budget, amount=amount, limit=limit or budget.limit),
        st.sampled_from(BUDGETS),
        st.integers(0, 60),
        st.sampled_from([0, 0, 0, 0, 1, 7, 300]),  # mostly as configured, at times edited
    ),
    max_size=4,
    unique_by=lambda line: line.key,
)
ttls = st.sampled_from([1_000, 5_000, 20_000, 60_000_000, 60_000_000])


class Histories(RuleBasedStateMachine):
    """Ids of admitted holds flow through the bundle, so that later steps settle, tighten and repeat them."""

    client: redis.Redis
    real: RedisLedger
    steps = 0
    ids = Bundle("ids")

    @initialize()
    def start(self) -> None:
        self.client.flushall()
        self.model = MemoryLedger(lambda: self.real.now_us, grace_us=GRACE_US, terminal_us=TERMINAL_US)
        self.expected_events: list[str] = []
        self.held: list[tuple[str, str]] = []

    def same(self, operation: str, *args: object) -> object:
        """Ask the server, then the model at the moment the server decided."""
        type(self).steps += 1
        answer = getattr(self.real, operation)(*args)
        assert answer == getattr(self.model, operation)(*args), operation
        return answer

    @rule(target=ids, tenant=tenants, lines=lines, ttl_us=ttls)
    def hold(self, tenant: str, lines: list[Line], ttl_us: int):
        hold_id = f"r{self.steps}"
        outcome = self.same("hold", HoldRequest(tenant, hold_id, tuple(lines), ttl_us))
        if not outcome.admitted:
            return multiple()
        for line, state in zip(lines, outcome.states, strict=True):
            assert line.mode is not Mode.HARD or state.committed + state.held <= line.limit
        self.expected_events.append(hold_id)
        self.held.append((tenant, hold_id))
        return tenant, hold_id, tuple(lines)

    @rule(known=ids)
    def hold_again(self, known: tuple[str, str, tuple[Line, ...]]) -> None:
        tenant, hold_id, lines = known
        assert self.same("hold", HoldRequest(tenant, hold_id, lines, 1_000)).repeated

    @rule(known=ids, usage=usages)
    def settle(self, known: tuple[str, str, tuple[Line, ...]], usage: Usage) -> None:
        self.same("settle", Settlement(known[0], known[1], usage, Evidence.EXACT, b"{}"))

    @rule(tenant=tenants, usage=usages)
    def settle_unknown(self, tenant: str, usage: Usage) -> None:
        self.same("settle", Settlement(tenant, "nobody", usage, Evidence.EXACT, b"{}"))

    @rule(known=ids, amounts=st.lists(st.tuples(st.sampled_from([b.key for b in BUDGETS]), st.integers(0, 60))))
    def tighten(self, known: tuple[str, str, tuple[Line, ...]], amounts: list[tuple[str, int]]) -> None:
        self.same("tighten", known[0], known[1], amounts)

    @rule(tenant=tenants, line=st.sampled_from(BUDGETS), amount=st.integers(-50, 50) | st.just(-(10**12)))
    def grant(self, tenant: str, line: Line, amount: int) -> None:
        grant_id = f"g{self.steps // 2}"  # now and then one is repeated
        self.same("grant", tenant, line, amount, "because", grant_id)

    @rule(tenant=tenants, line=st.sampled_from(BUDGETS))
    def reset(self, tenant: str, line: Line) -> None:
        self.same("reset", tenant, line, "because", f"g{self.steps}")

    @rule(tenant=tenants)
    def record(self, tenant: str) -> None:
        event_id = f"e{self.steps}"
        self.same("record", tenant, event_id, b"{}")
        self.expected_events.append(event_id)

    @rule(tenant=tenants, lines=lines.filter(bool))
    def peek(self, tenant: str, lines: list[Line]) -> None:
        self.same("peek", tenant, lines)

    @rule(tenant=tenants)
    def balances(self, tenant: str) -> None:
        self.same("balances", tenant)
        self.same("grants", tenant)

    @rule(tenant=tenants)
    def expire(self, tenant: str) -> None:
        self.same("expire_partition", partition_of(tenant))

    def teardown(self) -> None:
        """Whatever happened: every hold ends once, with one event, and nothing stays held."""
        for tenant, hold_id in self.held:
            self.same("settle", Settlement(tenant, hold_id, Usage(1), Evidence.EXACT, b"{}"))
        entries: list[OutboxEntry] = []
        for partition in {partition_of(tenant) for tenant in TENANTS}:
            real = self.real.outbox(partition, count=1000)
            model = self.model.outbox(partition, count=1000)
            assert [replace(e, position="") for e in real] == [replace(e, position="") for e in model]
            entries += real
        assert sorted(entry.event_id for entry in entries) == sorted(self.expected_events)
        for tenant in TENANTS:
            for balance in self.real.balances(tenant):
                assert balance.state.held == 0, balance


def test_the_server_and_the_model_agree_on_every_answer(valkey: EmbeddedValkey) -> None:
    """Over at least 10,000 operations; no hard budget is overshot, no hold lost, no request ends twice."""
    Histories.steps = 0
    Histories.real = connect_ledger(valkey.url, timeout_s=5, grace_us=GRACE_US, terminal_us=TERMINAL_US)
    with redis.Redis.from_url(valkey.url) as Histories.client:
        while Histories.steps < OPERATIONS:
            run_state_machine_as_test(
                Histories,
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
    Histories.real.close()

"""The real server and the model, driven side by side through random histories: every answer is the same."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, multiple, rule

from kong_plugins.adapters.ledger import EmbeddedValkey
from kong_plugins.domain.attempts import Attempt
from kong_plugins.domain.budgets import COMPLETION, TOTAL, Mode, Weights
from kong_plugins.domain.concurrency import Slots
from kong_plugins.domain.holds import HoldRequest, Line, Registration, Settlement
from kong_plugins.domain.leases import LeaseRequest
from kong_plugins.domain.partitions import partition_of
from kong_plugins.domain.usage import Evidence, Usage
from kong_plugins.domain.windows import FixedWindow, RollingWindow, TokenBucket, Unit
from tests.contract.side_by_side import Ending, SideBySide, drive, endings, usages

OPERATIONS = 10_000
FORGOTTEN_SOON_US = 30_000
TENANTS = ("acme", "globex")
Known = tuple[str, str, tuple[Line, ...], tuple[Slots, ...]]  # tenant, hold, and what it holds
BUDGETS = (
    Line("second", FixedWindow(Unit.SECOND), TOTAL, 80, 0),
    Line("month", FixedWindow(Unit.MONTH, "Asia/Kolkata", 31), TOTAL, 400, 0),
    Line("rolling", RollingWindow(1), COMPLETION, 90, 0),
    Line("bucket", TokenBucket(1), Weights(2, 1, 7, request=1, denominator=3), 101, 0),
    Line("vast", TokenBucket(2_678_400), TOTAL, 10**12 + 39, 0),
    Line("soft", RollingWindow(60), TOTAL, 10, 0, Mode.SOFT),
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
attempts = st.builds(
    Attempt,
    key=st.sampled_from(["k1", "k2"]),
    fingerprint=st.sampled_from(["f", "f", "f", "other"]),
    derived=st.booleans(),
    retry=st.booleans(),
    ttl_us=st.sampled_from([FORGOTTEN_SOON_US, 60_000_000, 60_000_000]),
    attempts_max=st.integers(1, 4),
)


nodes = st.sampled_from(["node-1", "node-2"])
slots = st.lists(
    st.builds(Slots, st.sampled_from(["all", "model"]), st.sampled_from([1, 3, 8]), ttls),
    max_size=2,
    unique_by=lambda each: each.key,
)


class Histories(SideBySide):
    """Ids of admitted holds flow through the bundle, so that later steps settle, tighten and repeat them."""

    whose = TENANTS
    ids = Bundle("ids")

    @rule(target=ids, tenant=tenants, lines=lines, ttl_us=ttls, attempt=st.none() | attempts, slots=st.just([]) | slots)
    def hold(self, tenant: str, lines: list[Line], ttl_us: int, attempt: Attempt | None, slots: list[Slots]):
        hold_id = f"r{self.steps}"
        request = HoldRequest(tenant, hold_id, tuple(lines), ttl_us, attempt=attempt, slots=tuple(slots))
        outcome = self.same("hold", request)
        assert not outcome.admitted or all(state.taken <= state.limit for state in outcome.slots)
        if not outcome.admitted:
            return multiple()
        for line, state in zip(lines, outcome.states, strict=True):
            assert line.mode is not Mode.HARD or state.committed + state.held <= line.limit
        self.expected_events.append(hold_id)
        self.held.append((tenant, hold_id))
        return tenant, hold_id, tuple(lines), tuple(slots)

    @rule(
        tenant=tenants,
        node=nodes,
        lines=lines,
        percent=st.sampled_from([0, 7, 10, 50]),
        ttl_us=ttls,
        times=st.sampled_from([1, 1, 2]),
    )
    def lease(self, tenant: str, node: str, lines: list[Line], percent: int, ttl_us: int, times: int) -> None:  # noqa: PLR0917
        asked = LeaseRequest(tenant, node, tuple(lines), percent, ttl_us, self.steps)
        for _ in range(times):
            self.same("lease", asked)
        self.leased.add((tenant, node))

    def begin(self) -> None:
        self.leased: set[tuple[str, str]] = set()

    def teardown(self) -> None:
        for tenant, node in sorted(self.leased):
            self.same("lease", LeaseRequest(tenant, node, (), 0, 1, self.steps + 1))
        super().teardown()

    @rule(
        target=ids,
        tenant=tenants,
        node=nodes | st.just(""),
        lines=lines,
        ttl_us=ttls,
        attempt=st.none() | attempts,
        late_us=st.sampled_from([0, 0, 0, 1_500_000, 40_000_000]),
    )
    def register(  # noqa: PLR0917
        self, tenant: str, node: str, lines: list[Line], ttl_us: int, attempt: Attempt | None, late_us: int
    ):
        hold_id = f"l{self.steps}"
        request = HoldRequest(tenant, hold_id, tuple(lines), ttl_us, attempt=attempt)
        if not self.same("register", Registration(request, self.real.now_us - late_us, node)):
            return multiple()
        self.expected_events.append(hold_id)
        self.held.append((tenant, hold_id))
        return tenant, hold_id, tuple(lines), ()

    @rule(known=ids)
    def register_again(self, known: Known) -> None:
        tenant, hold_id, lines, _ = known
        request = HoldRequest(tenant, hold_id, lines, 1_000)
        assert self.same("register", Registration(request, self.real.now_us, "node-1"))

    @rule(known=ids)
    def hold_again(self, known: Known) -> None:
        tenant, hold_id, lines, slots = known
        assert self.same("hold", HoldRequest(tenant, hold_id, lines, 1_000, slots=slots)).repeated

    @rule(known=ids, usage=usages, ending=endings)
    def settle(self, known: Known, usage: Usage, ending: Ending) -> None:
        self.end(known[0], known[1], usage, ending)

    @rule(tenant=tenants, usage=usages)
    def settle_unknown(self, tenant: str, usage: Usage) -> None:
        self.same("settle", Settlement(tenant, "nobody", usage, Evidence.EXACT, b"{}"))

    @rule(known=ids, amounts=st.lists(st.tuples(st.sampled_from([b.key for b in BUDGETS]), st.integers(0, 60))))
    def tighten(self, known: Known, amounts: list[tuple[str, int]]) -> None:
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


def test_the_server_and_the_model_agree_on_every_answer(valkey: EmbeddedValkey) -> None:
    """Over at least 10,000 operations; no hard budget is overshot, no hold lost, no request ends twice."""
    drive(Histories, valkey, OPERATIONS)

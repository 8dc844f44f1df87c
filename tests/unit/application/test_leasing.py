"""Requests that are admitted without the ledger: never beyond what is leased, and each held, charged and told once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import pytest

from kong_plugins.adapters.ledger import MemoryLedger
from kong_plugins.application import registering
from kong_plugins.application.admit import Admission, AdmissionCounts, AdmissionPolicy, Ask, Denied, Held
from kong_plugins.application.leasing import IDLE_S, RENEW_S, LeasePolicy, Leases
from kong_plugins.application.outage import Leased, Open
from kong_plugins.application.ports import LedgerFault, LedgerUnavailable
from kong_plugins.application.registering import Registrar
from kong_plugins.domain.attempts import Attempt, Earlier
from kong_plugins.domain.budgets import Budget, Mode
from kong_plugins.domain.concurrency import Slots
from kong_plugins.domain.holds import DecidedBy, HoldRequest, Registration, Settlement, SettleStatus
from kong_plugins.domain.leases import LeaseOutcome, LeaseRequest
from kong_plugins.domain.planning import BudgetRule, plan
from kong_plugins.domain.usage import Evidence, Usage
from kong_plugins.domain.windows import FixedWindow, Unit

NOON_US = 1_795_003_200_000_000
DAY = FixedWindow(Unit.DAY)
MINUTE = FixedWindow(Unit.MINUTE)
TTL_S = 60


@dataclass
class Line:
    """To a ledger in memory, with a clock; it can be cut before or after what is asked takes effect."""

    ledger: MemoryLedger
    cut: str | None = None
    cut_for: str | None = None  # that tenant's alone
    fault: bool = False  # it answers with an error
    asked: list[str] = field(default_factory=list)
    during: Callable[[], None] | None = None  # runs once, while an answer is under way
    before: Callable[[], None] | None = None  # runs once, while a question is

    def call(self, operation: str, *args):
        self.asked.append(operation)
        if self.before is not None:
            before, self.before = self.before, None
            before()
        if self.fault:
            raise LedgerFault("wrong password")
        if self.cut == "before" and self.cut_for in (None, _tenant(args[0])):
            raise LedgerUnavailable("cut")
        answer = getattr(self.ledger, operation)(*args)
        if self.during is not None:
            during, self.during = self.during, None
            during()
        if self.cut == "after":
            raise LedgerUnavailable("no answer")
        return answer

    def hold(self, request: HoldRequest):
        return self.call("hold", request)

    def lease(self, request: LeaseRequest) -> LeaseOutcome:
        return self.call("lease", request)

    def register(self, registration: Registration) -> bool:
        return self.call("register", registration)

    def settle(self, settlement: Settlement):
        return self.call("settle", settlement)

    def tighten(self, *args) -> bool:
        return self.call("tighten", *args)


def _tenant(asked) -> str:
    return asked if isinstance(asked, str) else getattr(asked, "request", asked).tenant


class AtOnce:
    def submit(self, task: Callable[[], None]) -> bool:
        task()
        return True

    def pause(self, seconds: float) -> bool:
        return False


class Node:
    def __init__(self, world: World, name: str, mode: str) -> None:
        self.line = Line(world.ledger)
        self.world = world
        self.registrar = Registrar(self.line)
        policy = LeasePolicy(10, TTL_S)
        self.leases = Leases(self.line, self.registrar, policy, name, lambda: world.now_us / 1e6)
        self.counts = AdmissionCounts()
        outage = Leased(self.leases, self.registrar) if mode == "lease" else Open(self.registrar, lambda: world.now_us)
        self.admission = Admission(
            self.line, AtOnce(), AtOnce(), AdmissionPolicy(3_600_000_000, 60_000_000), outage=outage, counts=self.counts
        )

    def ask(self, hold_id: str, tokens: int = 100, rules=None, tenant: str = "acme", **options):
        bound = Usage(0, tokens)
        planned = plan(rules or [self.world.rule], "m", {}, bound)
        return self.admission.admit(
            Ask(tenant, hold_id, planned, bound, 1, lambda prompt: Usage(prompt, tokens), **options)
        )

    def work(self) -> None:
        self.registrar.work()
        self.leases.work()


class World:
    def __init__(self) -> None:
        self.now_us = NOON_US
        self.ledger = MemoryLedger(lambda: self.now_us)
        self.rule = BudgetRule(Budget("daily", 10_000, DAY))

    def node(self, name: str = "a", mode: str = "lease") -> Node:
        return Node(self, name, mode)

    def leased(self, name: str = "a") -> Node:
        """A node that has its lease."""
        node = self.node(name)
        node.ask(f"first-{name}")
        node.work()
        return node

    def sleep(self, seconds: float) -> None:
        self.now_us += round(seconds * 1e6)

    def counts(self, rule: BudgetRule | None = None) -> tuple[int, int]:
        line = plan([rule or self.rule], "m", {}, Usage(0, 0))[0].line
        (state,) = self.ledger.peek("acme", [line])
        return state.committed, state.held

    def settle(self, hold_id: str, usage: Usage, registration: Registration | None = None) -> SettleStatus:
        settlement = Settlement("acme", hold_id, usage, Evidence.EXACT, b"{}", registration=registration)
        return self.ledger.settle(settlement).status


@pytest.fixture
def world() -> Iterator[World]:
    return World()


def test_the_first_request_asks_the_ledger_and_those_after_it_do_not(world: World) -> None:
    """A tenth of what is left is leased once somebody asks."""
    node = world.node()
    assert node.ask("one").by is DecidedBy.LEDGER
    node.work()
    assert world.counts() == (0, 100 + 990)
    node.line.asked.clear()
    held = node.ask("two")
    assert (held.by, node.line.asked) == (DecidedBy.LEASE, [])
    assert node.counts == AdmissionCounts(ledger=1, lease=1)


def test_what_is_held_stays_the_same_when_a_request_moves_out_of_the_lease(world: World) -> None:
    node = world.leased()
    node.ask("two")
    node.registrar.work()
    assert world.counts() == (0, 1_090)
    assert world.settle("two", Usage(0, 40)) is SettleStatus.POSTED
    assert world.counts() == (40, 990)


def test_its_headers_count_what_it_was_given(world: World) -> None:
    """Committed and held as the ledger told, with this request's own part, and without what is leased and not used."""
    (state,) = world.leased().ask("two").outcome.states
    assert (state.limit, state.committed, state.held, state.remaining) == (10_000, 0, 200, 9_800)


def test_a_lease_is_spent_and_no_more_while_the_ledger_is_away(world: World) -> None:
    """990 tokens are nine requests of a hundred; the tenth is refused, and everything held is within the budget."""
    node = world.leased()
    node.line.cut = "before"
    admitted = [node.ask(f"away-{n}") for n in range(9)]
    assert {held.by for held in admitted} == {DecidedBy.LEASE}
    with pytest.raises(LedgerUnavailable):
        node.ask("too many")
    with pytest.raises(LedgerUnavailable):
        node.work()
    assert world.counts() == (0, 1_090)
    node.line.cut = None
    world.sleep(RENEW_S)
    node.work()
    assert world.counts()[1] == 1_000 + 900  # held, and a tenth of what is left
    assert node.counts.closed == 1


def test_a_request_that_does_not_fit_the_lease_is_the_ledgers_to_decide(world: World) -> None:
    held = world.leased().ask("large", 5_000)
    assert held.by is DecidedBy.LEDGER


def test_two_nodes_and_their_leases_never_exceed_the_budget(world: World) -> None:
    """Each is cut off in turn and spends what it has."""
    nodes = [world.leased(name) for name in "abc"]
    for number, node in enumerate(nodes):
        node.line.cut = "before"
        for other in nodes:
            for n in range(40):
                try:
                    other.ask(f"{number}-{n}-{other.line.asked}")
                except LedgerUnavailable:
                    break
            if other is not node:
                other.work()
            committed, held = world.counts()
            assert committed + held <= 10_000
        node.line.cut = None
        node.work()
        committed, held = world.counts()
        assert committed + held <= 10_000


def test_a_refusal_gives_back_what_the_node_does_not_use(world: World) -> None:
    """The lease is no reason to refuse: what it holds is there for a request that needs all that is left."""
    node = world.leased()
    assert isinstance(node.ask("all", 9_900), Held)
    assert world.counts() == (0, 10_000)
    assert isinstance(node.ask("one more", 1), Denied)


def test_a_node_that_was_not_heard_admits_only_for_so_long(world: World) -> None:
    node = world.leased()
    node.line.cut = "before"
    world.sleep(TTL_S - 1)
    assert node.ask("in time").by is DecidedBy.LEASE
    world.sleep(1)
    with pytest.raises(LedgerUnavailable):
        node.ask("too late")


def test_a_lease_ends_with_its_window(world: World) -> None:
    """What was leased of one minute is nothing in the next, though the request before its end is counted in it."""
    rule = BudgetRule(Budget("minute", 10_000, MINUTE))
    node = world.node()
    node.ask("first", rules=[rule])
    node.work()
    world.sleep(59.9)
    assert node.ask("before", rules=[rule]).by is DecidedBy.LEASE
    world.sleep(0.2)
    node.line.asked.clear()
    assert node.ask("after", rules=[rule]).by is DecidedBy.LEDGER
    node.work()
    assert world.counts(rule) == (0, 100 + 990)
    assert node.ask("next", rules=[rule]).by is DecidedBy.LEASE


def test_what_moves_out_of_a_lease_while_it_is_renewed_is_not_counted_again(world: World) -> None:
    """The ledger may move it before or after it renews, and the answers may come in another order."""
    node = world.leased()
    node.ask("two")
    world.sleep(RENEW_S)
    node.line.during = node.registrar.work
    node.leases.work()
    node.line.cut = "before"
    spent = 0
    for n in range(20):
        try:
            spent += node.ask(f"away-{n}").bound.total
        except LedgerUnavailable:
            break
    assert spent <= world.counts()[1] - 200


@pytest.mark.parametrize("cut", ["before", "after"])
def test_a_registration_whose_answer_was_lost_is_told_again(world: World, cut: str) -> None:
    node = world.leased()
    node.ask("two")
    node.line.cut = cut
    with pytest.raises(LedgerUnavailable):
        node.work()
    node.line.cut = None
    node.work()
    assert len(node.registrar) == 0
    world.sleep(RENEW_S)
    node.ask("three")
    node.work()
    assert world.counts()[1] == 300 + 970


def test_an_idle_tenants_lease_is_given_back(world: World) -> None:
    node = world.leased()
    world.sleep(IDLE_S)
    node.work()
    assert (world.counts(), len(node.leases)) == ((0, 100), 0)


def test_closing_gives_everything_back(world: World) -> None:
    node = world.leased()
    node.leases.close()
    assert world.counts() == (0, 100)


def test_a_limit_that_was_lowered_holds_at_once(world: World) -> None:
    """What was leased under the old one is no room under the new one."""
    node = world.leased()
    edited = [BudgetRule(replace(world.rule.budget, limit=600))]
    node.line.cut = "before"
    with pytest.raises(LedgerUnavailable):
        node.ask("two", rules=edited)
    node.line.cut = None
    admitted = sum(isinstance(node.ask(f"more-{n}", rules=edited), Held) for n in range(10))
    assert admitted == 5
    for _ in range(3):
        world.sleep(RENEW_S)
        node.work()
    assert world.counts(edited[0]) == (0, 600)


def test_rows_of_one_tenant_that_share_a_budget_keep_each_its_own_limit(world: World) -> None:
    """The wider one's lease is no room for the narrower; and one that never refuses leaves the lease as it is."""
    node, narrow = world.leased(), [BudgetRule(replace(world.rule.budget, limit=300))]
    admitted = [node.ask(f"narrow-{n}", rules=narrow) for n in range(5)]
    assert [type(each) for each in admitted] == [Held, Held, Denied, Denied, Denied]
    shadow = [BudgetRule(replace(world.rule.budget, mode=Mode.SHADOW))]
    for _ in range(3):
        node.ask(f"wide-{world.now_us}")
        node.ask(f"shadow-{world.now_us}", rules=shadow)
        world.sleep(RENEW_S)
        node.work()
    node.line.cut = "before"
    assert node.ask("away").by is DecidedBy.LEASE
    assert node.ask("away too", rules=shadow).by is DecidedBy.LEASE


def test_a_tenant_of_limited_requests_at_a_time_has_a_lease_for_when_the_ledger_is_away(world: World) -> None:
    """How many run only the ledger knows: it is asked while it is there, and not missed when it is not."""
    node, slots = world.node(), (Slots("all", 2, 60_000_000),)
    assert node.ask("one", slots=slots).by is DecidedBy.LEDGER
    node.work()
    assert node.ask("two", slots=slots).by is DecidedBy.LEDGER
    node.line.cut = "before"
    assert [node.ask(f"away-{n}", slots=slots).by for n in range(3)] == [DecidedBy.LEASE] * 3


@pytest.mark.parametrize("mode", ["lease", "open"])
def test_an_error_that_is_no_outage_lets_nobody_in(world: World, mode: str) -> None:
    """A password that was changed must not switch budgets off."""
    node = world.node(mode=mode)
    node.line.fault = True
    with pytest.raises(LedgerFault):
        node.ask("one")


def test_a_node_of_a_cluster_that_is_gone_holds_up_its_own_tenants_alone(world: World) -> None:
    node = world.node()
    for tenant in ("acme", "globex"):
        node.ask(f"first-{tenant}", tenant=tenant)
    node.work()
    for tenant in ("acme", "globex"):
        node.ask(f"second-{tenant}", tenant=tenant)
    node.line.cut, node.line.cut_for = "before", "acme"
    world.sleep(RENEW_S)
    with pytest.raises(LedgerUnavailable):
        node.registrar.work()
    with pytest.raises(LedgerUnavailable):
        node.leases.work()
    line = plan([world.rule], "m", {}, Usage(0, 0))[0].line
    (state,) = world.ledger.peek("globex", [line])
    assert (len(node.registrar), state.held) == (1, 200 + 980)


def test_a_lease_outlasts_an_outage_in_which_nobody_asks(world: World) -> None:
    node = world.leased()
    node.line.cut = "before"
    world.sleep(IDLE_S + 1)
    with pytest.raises(LedgerUnavailable):
        node.ask("other", tenant="globex")
    with pytest.raises(LedgerUnavailable):
        node.work()
    assert node.ask("again").by is DecidedBy.LEASE


def test_a_refusal_waits_for_what_is_being_renewed_and_gives_it_back(world: World) -> None:
    node = world.leased()
    decided: list[object] = []
    renewing = node.leases._tenants["acme"]
    renewing.asking = True
    node.leases._pause = lambda _: setattr(renewing, "asking", False)
    decided.append(node.ask("all", 9_900))
    assert isinstance(decided[0], Held)


def test_soft_budgets_tell_and_never_refuse(world: World) -> None:
    soft = BudgetRule(Budget("soft", 150, DAY, mode=Mode.SOFT))
    node = world.node()
    node.ask("one", rules=[world.rule, soft])
    node.work()
    held = node.ask("two", rules=[world.rule, soft])
    assert (held.by, held.over) == (DecidedBy.LEASE, ("soft",))


def test_a_retry_asks_the_ledger_which_knows_of_the_first_attempt(world: World) -> None:
    tried = Attempt("key", "asked", derived=True, retry=False, ttl_us=60_000_000)
    node = world.leased()
    assert node.ask("one", attempt=tried).by is DecidedBy.LEASE
    again = node.ask("two", attempt=replace(tried, retry=True))
    assert isinstance(again, Earlier)
    assert again.hold_id == "one"


@pytest.mark.parametrize("mode", ["lease", "open"])
def test_a_retry_is_refused_while_the_ledger_is_away(world: World, mode: str) -> None:
    """Whether it would be charged twice only the ledger knows. Its first attempt may run."""
    tried = Attempt("key", "asked", derived=True, retry=False, ttl_us=60_000_000)
    node = world.node(mode=mode)
    node.ask("first")
    if mode == "lease":
        node.work()
    node.line.cut = "before"
    assert isinstance(node.ask("one", attempt=tried), Held)
    for retry in (replace(tried, retry=True), replace(tried, derived=False)):
        with pytest.raises(LedgerUnavailable):
            node.ask("two", attempt=retry)


def test_open_lets_through_only_while_the_ledger_is_away(world: World) -> None:
    """And everything that ran is held as soon as it is back, also beyond the limit: it was used."""
    node = world.node(mode="open")
    assert isinstance(node.ask("too large", 20_000), Denied)
    assert node.ask("one").by is DecidedBy.LEDGER
    node.line.cut = "before"
    held = node.ask("two", 20_000)
    assert (held.by, held.outcome.states) == (DecidedBy.OPEN, ())
    assert node.counts == AdmissionCounts(ledger=1, open=1, denied=1)
    node.line.cut = None
    node.work()
    assert world.counts() == (0, 20_100)


def test_nobody_is_let_through_when_there_is_too_much_to_remember(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registering, "PENDING_MAX", 1)
    node = world.node(mode="open")
    node.line.cut = "before"
    node.ask("one")
    with pytest.raises(LedgerUnavailable):
        node.ask("two")


def test_a_registration_that_comes_too_late_is_dropped_and_counted(world: World) -> None:
    """Half an hour on, the end of one that had been held may be forgotten."""
    node = world.node(mode="open")
    node.line.cut = "before"
    node.ask("one")
    node.line.cut = None
    world.sleep(1_801)
    node.work()
    assert (len(node.registrar), node.registrar.late, world.counts()) == (0, 1, (0, 0))

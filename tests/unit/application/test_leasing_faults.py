"""What goes wrong between a node and the ledger while budgets are leased: nothing is given away twice, nobody lets
through what was refused, and one that fails stands in nobody's way."""

from __future__ import annotations

from kong_plugins.application.ports import LedgerUnavailable
from kong_plugins.domain.budgets import Budget
from kong_plugins.domain.holds import DecidedBy
from kong_plugins.domain.planning import BudgetRule
from kong_plugins.domain.windows import FixedWindow, Unit
from tests.unit.application.test_leasing import Node, World

MINUTE = BudgetRule(Budget("minute", 10_000, FixedWindow(Unit.MINUTE)))


def spend(node: Node, tokens: int, rule: BudgetRule | None = None) -> int:
    """What a node lets through in so large requests while it asks nobody. Its line is cut then."""
    node.line.cut, spent = "before", 0
    while True:
        try:
            assert node.ask(f"spent-{tokens}-{spent}", tokens, rules=rule and [rule]).by is DecidedBy.LEASE
        except LedgerUnavailable:
            return spent
        spent += tokens


def test_what_is_given_away_as_a_window_ends_stays_leased_until_it_is_over() -> None:
    """A node may think that it is over while the ledger does not: it knows the ledger's time as well as a question is
    fast. What it had given away was forgotten then, and given away once more."""
    world = World()
    node = world.node()
    node.ask("first", rules=[MINUTE])
    node.line.before = lambda: world.sleep(0.4)
    node.work()
    world.sleep(59.0)
    assert node.ask("given away", 900, rules=[MINUTE]).by is DecidedBy.LEASE
    world.sleep(0.3)
    assert node.ask("is over, it thinks", 1, rules=[MINUTE]).by is DecidedBy.LEDGER
    node.leases.work()
    leased = world.counts(MINUTE)[1] - 100 - 1
    assert 900 <= leased < 1_000
    assert 900 + spend(node, 10, MINUTE) <= leased


def test_what_is_given_away_of_a_window_that_is_over_is_not_of_the_next() -> None:
    world = World()
    node = world.node()
    node.ask("first", rules=[MINUTE])
    node.work()
    node.ask("given away", 900, rules=[MINUTE])
    world.sleep(60.5)
    assert node.ask("in the next", 1, rules=[MINUTE]).by is DecidedBy.LEDGER
    node.leases.work()
    assert spend(node, 10, MINUTE) >= 990
    node.line.cut = None
    node.work()
    assert world.counts(MINUTE)[1] <= 10_000 // 10 + 100

"""A hold that nobody may ever settle: emptied, it is in no retry's way, and counts if it is settled after all."""

from __future__ import annotations

import pytest

from kong_plugins.domain.attempts import Attempt, Standing
from kong_plugins.domain.budgets import TOTAL
from kong_plugins.domain.holds import HoldOutcome, HoldRequest, Line, Settlement
from kong_plugins.domain.usage import Evidence, Usage
from kong_plugins.domain.windows import FixedWindow, Unit
from tests.contract.conftest import Bench

LINE = Line("daily", FixedWindow(Unit.DAY), TOTAL, limit=1_000, amount=100)
ATTEMPTS = {
    "client": Attempt("k", "f", derived=False, retry=False, ttl_us=60_000_000),
    "derived": Attempt("k", "k", derived=True, retry=True, ttl_us=60_000_000),
}


def hold(bench: Bench, hold_id: str, attempt: Attempt, *, lines: tuple[Line, ...] = (LINE,)) -> HoldOutcome:
    return bench.ledger.hold(HoldRequest("acme", hold_id, lines, 60_000_000, attempt=attempt))


def settle(bench: Bench, hold_id: str, tokens: int) -> None:
    event, usage = f'{{"id":"{hold_id}"}}'.encode(), Usage(tokens, 0)
    bench.ledger.settle(Settlement("acme", hold_id, usage, Evidence.EXACT, event, reversal=b"r" + event))


@pytest.mark.parametrize("kind", ATTEMPTS)
@pytest.mark.parametrize("lines", [(LINE,), ()], ids=["budgets", "no budgets"])
def test_an_emptied_hold_is_in_no_retrys_way(bench: Bench, kind: str, lines: tuple[Line, ...]) -> None:
    """Tightened it still is; with nothing held the next attempt runs."""
    attempt = ATTEMPTS[kind]
    assert hold(bench, "a", attempt, lines=lines).admitted
    if lines:
        bench.ledger.tighten("acme", "a", [("daily", 1)])
        earlier = hold(bench, "b", attempt, lines=lines).earlier
        assert earlier is not None
        assert earlier.standing is Standing.RUNNING
    assert bench.ledger.tighten("acme", "a", [(line.key, 0) for line in lines])
    assert hold(bench, "b", attempt, lines=lines).admitted


def test_settled_after_all_it_is_charged_with_its_retry_once(bench: Bench) -> None:
    """Its request had run: the dearer of the two stays."""
    attempt = ATTEMPTS["client"]
    hold(bench, "a", attempt)
    bench.ledger.tighten("acme", "a", [("daily", 0)])
    assert hold(bench, "b", attempt).admitted
    settle(bench, "b", 30)
    settle(bench, "a", 20)
    (balance,) = bench.ledger.balances("acme")
    assert (balance.state.committed, balance.state.held) == (30, 0)

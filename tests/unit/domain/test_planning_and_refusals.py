"""From budgets to lines, to what still fits, to why not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kong_plugins.domain.budgets import TOTAL, Budget, Dimension, Mode, Weights
from kong_plugins.domain.holds import LineState
from kong_plugins.domain.planning import BudgetRule, Counts, completion_that_fits, line_key, plan, weights_of
from kong_plugins.domain.pricing import Price
from kong_plugins.domain.refusals import Reason, explain, refusal_of, timestamp, window_seconds, window_text
from kong_plugins.domain.usage import Usage
from kong_plugins.domain.windows import FixedWindow, RollingWindow, TokenBucket, Unit

DAY = FixedWindow(Unit.DAY)
NOW_US = 1_763_812_800_000_000


def rule(limit: int, weights: Weights = TOTAL, mode: Mode = Mode.HARD, name: str = "b") -> BudgetRule:
    return BudgetRule(Budget(name, limit, DAY, weights, mode))


@given(
    limits=st.lists(st.integers(0, 5_000), min_size=1, max_size=4),
    weights=st.builds(Weights, st.integers(0, 5), st.integers(0, 5), st.integers(0, 5), st.integers(0, 50)),
    used=st.integers(0, 3_000),
    prompt=st.integers(0, 2_000),
    choices=st.integers(1, 8),
    most=st.integers(0, 4_000),
)
def test_the_clamp_is_the_largest_that_fits(
    *, limits: list[int], weights: Weights, used: int, prompt: int, choices: int, most: int
) -> None:
    """What it gives fits every hard budget, and one more does not."""
    rules = [rule(limit, weights, name=f"b{n}") for n, limit in enumerate(limits)]
    planned = plan(rules, "m", {}, Usage(prompt, choices * most))
    states = [LineState(each.line.key, each.line.limit, used, 0, NOW_US) for each in planned]

    def fits(tokens: int) -> bool:
        amount = weights.amount(Usage(prompt, choices * tokens))
        return all(amount <= state.remaining for state in states)

    given_tokens = completion_that_fits(planned, states, prompt, choices, most)
    if given_tokens:
        assert given_tokens <= most
        assert fits(given_tokens)
        assert given_tokens == most or not fits(given_tokens + 1)
    else:
        assert most == 0 or not fits(1)


def test_soft_budgets_do_not_clamp() -> None:
    """They refuse nothing, so they shorten nothing."""
    planned = plan([rule(10, mode=Mode.SOFT)], "m", {}, Usage(5, 100))
    states = [LineState("b", 10, 10, 0, NOW_US, short=True)]
    assert completion_that_fits(planned, states, 5, 1, 100) == 100
    assert refusal_of(planned, states, NOW_US, 0) is None


def test_a_budget_for_some_models_leaves_others_alone() -> None:
    """No line for a model it is not for."""
    only_a = BudgetRule(Budget("b", 1, DAY, models=("a",)))
    assert [each.line.key for each in plan([only_a], "a", {}, Usage(1))] == ["b"]
    assert plan([only_a], "b", {}, Usage(1)) == ()


@given(st.text(), st.text())
def test_no_two_scopes_share_a_key(model: str, route: str) -> None:
    """Whatever the names hold, also half of a surrogate pair."""
    budget = Budget("b", 1, DAY, scope=(Dimension.MODEL, Dimension.ROUTE))
    key = line_key(budget, {Dimension.MODEL: model, Dimension.ROUTE: route})
    assert key.count("|") == 2
    assert key.count("=") == 2
    assert key.isascii()
    assert key != line_key(budget, {Dimension.MODEL: f"{model}x", Dimension.ROUTE: route})


def test_cached_tokens_weigh_their_percentage() -> None:
    """100 of 200 prompt tokens cached at 10 %: 110, rounded up once with the completion."""
    assert weights_of(Counts.CACHED_WEIGHTED, 10).amount(Usage(prompt=200, completion=5, cached=101)) == 115
    assert Price(1_500_000, 150_000, 6_000_000, 9).weights().amount(Usage(2, 1)) == 3 + 6 + 9


def test_a_cached_token_is_never_dearer() -> None:
    """A bound knows of no cache, and must stay one."""
    with pytest.raises(ValueError, match="at most"):
        Price(1, 2, 1)


@pytest.mark.parametrize(
    ("amount", "committed", "held", "reset_s", "reason", "retry_s"),
    [
        (50, 60, 0, 30, Reason.WAIT, 30),
        (50, 60, 0, 61, Reason.SPENT, None),
        (50, 0, 60, 9_000, Reason.WAIT, 2),
        (50, 0, 60, 1, Reason.WAIT, 1),
        (101, 0, 0, 1, Reason.TOO_LARGE, None),
    ],
)
def test_a_refusal_says_whether_waiting_helps(
    *, amount: int, committed: int, held: int, reset_s: int, reason: Reason, retry_s: int | None
) -> None:
    """With a limit of 100 and a patience of 60 s."""
    planned = plan([rule(100)], "m", {}, Usage(amount))
    state = LineState("b", 100, committed, held, NOW_US + reset_s * 1_000_000, short=True)
    refusal = refusal_of(planned, [state], NOW_US, 60_000_000)
    assert refusal is not None
    assert refusal.reason is reason
    assert refusal.retry_us == (None if retry_s is None else retry_s * 1_000_000)
    assert str(amount) in explain(refusal)


def test_times_and_windows_in_words() -> None:
    """Rounded up to the second; a month has no length."""
    assert timestamp(NOW_US + 1) == "2025-11-22T12:00:01Z"
    assert [window_text(w) for w in (DAY, RollingWindow(60), TokenBucket(5))] == ["day", "rolling 60 s", "bucket 5 s"]
    assert [window_seconds(w) for w in (DAY, RollingWindow(60), FixedWindow(Unit.MONTH))] == [86_400, 60, None]

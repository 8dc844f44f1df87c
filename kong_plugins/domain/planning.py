"""From budgets and a bound on usage to the lines of a hold, and to the completion that still fits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from urllib.parse import quote

from kong_plugins.domain.budgets import COMPLETION, PROMPT, TOTAL, UNITS_MAX, Budget, Dimension, Mode, Weights
from kong_plugins.domain.holds import Line, LineState
from kong_plugins.domain.usage import Usage

ANY_MODEL = "*"


class Counts(StrEnum):
    """What a budget counts."""

    TOTAL = "total"
    PROMPT = "prompt"
    COMPLETION = "completion"
    CACHED_WEIGHTED = "cached_weighted"  # total, with cached prompt tokens at a percentage
    COST = "cost"

    @property
    def unit(self) -> str:
        return "micro-units" if self is Counts.COST else "tokens"


def weights_of(counts: Counts, cached_percent: int = 100) -> Weights:
    """Weights of everything but cost, whose weights are its prices'."""
    match counts:
        case Counts.PROMPT:
            return PROMPT
        case Counts.COMPLETION:
            return COMPLETION
        case Counts.CACHED_WEIGHTED:
            return Weights(uncached=100, cached=cached_percent, completion=100, denominator=100)
        case _:
            return TOTAL


@dataclass(frozen=True, slots=True)
class BudgetRule:
    """A budget as configured. ``prices`` (by model, ``*`` for any other) replace its weights where it counts cost."""

    budget: Budget
    counts: Counts = Counts.TOTAL
    prices: Mapping[str, Weights] = field(default_factory=dict)

    def applies_to(self, model: str) -> bool:
        return not self.budget.models or model in self.budget.models

    def weights(self, model: str) -> Weights:
        """
        Raises:
            KeyError: a cost budget has no price for this model (the configuration check rules that out).
        """
        if self.counts is not Counts.COST:
            return self.budget.weights
        return self.prices[model] if model in self.prices else self.prices[ANY_MODEL]


@dataclass(frozen=True, slots=True)
class PlannedLine:
    """A hold's line and the rule it came from."""

    rule: BudgetRule
    line: Line


def line_key(budget: Budget, scope: Mapping[Dimension, str]) -> str:
    """``daily`` or ``daily|model=deepseek-r1``. Values are percent-encoded: no model name can forge a key."""
    if not budget.scope:
        return budget.name
    parts = [
        f"{dimension}={quote(scope.get(dimension, ''), safe='', errors='surrogatepass')}"
        for dimension in Dimension
        if dimension in budget.scope
    ]
    return "|".join([budget.name, *parts])


def plan(
    rules: Iterable[BudgetRule], model: str, scope: Mapping[Dimension, str], bound: Usage
) -> tuple[PlannedLine, ...]:
    """A line for every budget that applies to ``model``, each with the bound's amount in the budget's own unit."""
    planned = []
    for rule in rules:
        budget = rule.budget
        if rule.applies_to(model):
            weights = rule.weights(model)
            key = line_key(budget, scope)
            line = Line(key, budget.window, weights, budget.limit, _amount(weights, bound), budget.mode)
            planned.append(PlannedLine(rule, line))
    return tuple(planned)


def at(planned: Iterable[PlannedLine], bound: Usage) -> tuple[PlannedLine, ...]:
    """The same lines for another bound."""
    return tuple(replace(each, line=replace(each.line, amount=_amount(each.line.weights, bound))) for each in planned)


def _amount(weights: Weights, bound: Usage) -> int:
    """What no limit can be larger than is enough to be refused, and the ledger counts no further."""
    return min(weights.amount(bound), UNITS_MAX)


def completion_that_fits(
    planned: Sequence[PlannedLine], states: Sequence[LineState], prompt: int, choices: int, most: int
) -> int:
    """The largest ``max_tokens`` per choice, at most ``most``, that no hard budget refuses; 0 when none does.

    Budgets weigh completion tokens with integers, so the amount never falls as the completion grows.
    """
    hard = [
        (each.line.weights, state.remaining)
        for each, state in zip(planned, states, strict=True)
        if each.line.mode is Mode.HARD
    ]

    def fits(max_tokens: int) -> bool:
        usage = Usage(prompt, choices * max_tokens)
        return all(weights.amount(usage) <= remaining for weights, remaining in hard)

    low, high = 0, max(0, most)
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low if low and fits(low) else 0

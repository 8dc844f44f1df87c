"""Budgets: how many tokens a tenant may use in a window, and how a request's usage counts against them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from kong_plugins.domain.usage import Usage
from kong_plugins.domain.windows import WindowSpec

# Redis Lua counts in doubles, exact to 2^53. A limit or an amount of at most 2^50 units (a billion of a currency in
# micro-units) leaves room for sums of several; no request we meter comes near 2^32 tokens.
UNITS_MAX = 2**50
TOKENS_MAX = 2**32
DENOMINATOR_MAX = 2**40


class Mode(StrEnum):
    """What a budget does when it is spent."""

    HARD = "hard"  # refuse
    SOFT = "soft"  # let through and alert
    SHADOW = "shadow"  # decide and log as if hard, let through


class Dimension(StrEnum):
    """What a budget is kept apart by, within one tenant."""

    MODEL = "model"
    SERVICE = "service"
    ROUTE = "route"
    CREDENTIAL = "credential"


@dataclass(frozen=True, slots=True)
class Weights:
    """A budget's unit as a linear form of usage, so that a ledger script can post real usage by itself.

    ``amount = ceil((uncached·(prompt-cached) + cached·cached + completion·completion) / denominator) + request``.
    Tokens have weights of 0 or 1 and denominator 1; cost has micro-units per million tokens and denominator 1,000,000.

    Raises:
        ValueError: a weight is negative, or so large that ``TOKENS_MAX`` tokens could not be counted exactly.
    """

    uncached: int
    cached: int
    completion: int
    request: int = 0
    denominator: int = 1

    def __post_init__(self) -> None:
        if min(self.uncached, self.cached, self.completion, self.request) < 0 or self.denominator < 1:
            raise ValueError(f"weights are not negative and the denominator is at least 1: {self}")
        largest = max(self.uncached, self.cached, self.completion)
        if self.denominator > DENOMINATOR_MAX or largest * TOKENS_MAX > UNITS_MAX * self.denominator:
            raise ValueError(
                f"{self} could count {TOKENS_MAX} tokens as more than {UNITS_MAX} units, beyond what the ledger counts"
                " exactly: choose a coarser unit, such as milli- instead of micro-units"
            )
        check_units("a weight", largest)
        check_units("the weight of a request", self.request)

    def amount(self, usage: Usage) -> int:
        """Units that ``usage`` takes, rounded up once."""
        weighted = (
            self.uncached * (usage.prompt - usage.cached)
            + self.cached * usage.cached
            + self.completion * usage.completion
        )
        return -(-weighted // self.denominator) + self.request


def check_units(what: str, units: int) -> None:
    """Refuse an amount that the ledger could not count exactly.

    Raises:
        ValueError: ``units`` is not between 0 and ``UNITS_MAX``.
    """
    if not 0 <= units <= UNITS_MAX:
        raise ValueError(f"{what} is 0 to {UNITS_MAX} units, not {units}")


TOTAL = Weights(1, 1, 1)
PROMPT = Weights(1, 1, 0)
COMPLETION = Weights(0, 0, 1)


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit on one tenant. The name is its identity: limit, mode and prices may change and usage stays.

    ``scope`` keeps a counter per value (a budget scoped by model has one counter per model); ``models`` restricts
    the budget to requests for these models (empty: all).
    """

    name: str
    limit: int
    window: WindowSpec
    weights: Weights = TOTAL
    mode: Mode = Mode.HARD
    scope: tuple[Dimension, ...] = ()
    models: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        check_units(f"the limit of budget {self.name!r}", self.limit)

"""Budgets: how many tokens a tenant may use in a window, and how a request's usage counts against them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from kong_plugins.domain.usage import Usage
from kong_plugins.domain.windows import WindowSpec


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
    Products must stay below 2^53: Redis Lua counts in doubles.
    """

    uncached: int
    cached: int
    completion: int
    request: int = 0
    denominator: int = 1

    def __post_init__(self) -> None:
        if min(self.uncached, self.cached, self.completion, self.request) < 0 or self.denominator < 1:
            raise ValueError(f"weights are not negative and the denominator is at least 1: {self}")

    def amount(self, usage: Usage) -> int:
        """Units that ``usage`` takes, rounded up once."""
        weighted = (
            self.uncached * (usage.prompt - usage.cached)
            + self.cached * usage.cached
            + self.completion * usage.completion
        )
        return -(-weighted // self.denominator) + self.request


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

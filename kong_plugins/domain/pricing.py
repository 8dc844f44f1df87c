"""Prices as a budget's unit: what a token costs, so that a budget can be kept in money."""

from __future__ import annotations

from dataclasses import dataclass

from kong_plugins.domain.budgets import Weights

PER_TOKENS = 1_000_000  # Prices are per million tokens, as every price list prints them.
PRICE_MAX = 1_000_000_000  # 1,000 units per million tokens, ten times the dearest model of today.


@dataclass(frozen=True, slots=True)
class Price:
    """Micro-units of a currency per million tokens; ``request`` is micro-units for each request.

    Raises:
        ValueError: a price is negative or above ``PRICE_MAX``, or a cached token costs more than any other: a bound on
            usage, which knows of no cache, would then be no bound on cost.
    """

    prompt: int
    cached: int
    completion: int
    request: int = 0

    def __post_init__(self) -> None:
        prices = (self.prompt, self.cached, self.completion, self.request)
        if min(prices) < 0 or max(prices) > PRICE_MAX:
            raise ValueError(f"prices are 0 to {PRICE_MAX} micro-units: {self}")
        if self.cached > self.prompt:
            raise ValueError(f"a cached prompt token costs at most what an uncached one does: {self}")

    def weights(self) -> Weights:
        """The price as a linear form of usage, rounded up once per request."""
        return Weights(self.prompt, self.cached, self.completion, self.request, PER_TOKENS)

"""Rating: usage × price = charge. A function of an event and a price list alone, so that a period can be rated again.

A charge is rounded once: the parts of an event (prompt, cached, completion, reasoning) are added exactly and their sum
is rounded up to a whole micro-unit, then the price of the request is added. That is what ``Price.weights`` does for
a budget kept in money, so that such a budget and the bill agree to the micro-unit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise

from kong_plugins.domain.holds import Outcome
from kong_plugins.domain.pricing import PER_TOKENS
from kong_plugins.domain.usage import Usage

# A million units of a currency per million tokens: room for currencies whose unit is small.
RATE_MAX = 10**12

# What the ledger posted to budgets: requests that it held and that somebody settled.
SETTLED = frozenset({Outcome.COMPLETED.value, Outcome.ABORTED.value, Outcome.FAILED.value})


class RequestFee(StrEnum):
    """Which requests pay the price per request."""

    METERED = "metered"  # those that used a token
    ALL = "all"  # every settled one, failed ones without a token too: what a budget kept in money posts


@dataclass(frozen=True, slots=True)
class Rate:
    """Micro-units per million tokens; ``request``: micro-units for each request.

    Raises:
        ValueError: a price is negative or above ``RATE_MAX``, or a cached token costs more than any other.
    """

    prompt: int
    cached: int
    completion: int
    reasoning: int
    request: int = 0

    def __post_init__(self) -> None:
        prices = (self.prompt, self.cached, self.completion, self.reasoning, self.request)
        if min(prices) < 0:
            raise ValueError("a price is negative; money in a tenant's favour is a credit, not a price")
        if max(prices) > RATE_MAX:
            raise ValueError(f"a price is above {RATE_MAX // 10**6:,} units")
        if self.cached > self.prompt:
            raise ValueError("a cached prompt token costs more than an uncached one")

    def charge(self, usage: Usage, fees: int = 0) -> int:
        """Micro-units of one event, rounded up once. ``fees``: 1 where the request pays its price, else 0."""
        exact = (
            self.prompt * (usage.prompt - usage.cached)
            + self.cached * usage.cached
            + self.completion * (usage.completion - usage.reasoning)
            + self.reasoning * usage.reasoning
        )
        return -(-exact // PER_TOKENS) + self.request * fees


@dataclass(frozen=True, slots=True)
class PriceEntry:
    """A model's price from ``from_ms`` (inclusive, epoch milliseconds) until the next entry of the same ``pattern``.
    ``from_day``: the date as the list has it."""

    pattern: str
    from_day: str
    from_ms: int
    rate: Rate

    @property
    def price_id(self) -> str:
        """Names the entry within its list, and goes on doing so: ``deepseek-*@2026-01-01``."""
        return f"{self.pattern}@{self.from_day}"


@dataclass(frozen=True, slots=True)
class PriceSpan:
    """``entry`` is in force for ``model`` from ``start_ms`` (in it) to ``end_ms`` (not in it)."""

    model: str
    start_ms: int
    end_ms: int
    entry: PriceEntry


@dataclass(frozen=True, slots=True)
class PriceList:
    """``models``: entries by model name or pattern (``*``, ``?``), ascending in time. ``digest``: SHA-256 of the list
    as it was written, in hex."""

    currency: str
    models: Mapping[str, tuple[PriceEntry, ...]]
    request_fee: RequestFee = RequestFee.METERED
    provider: str = "LLM gateway"
    billing_account: str = "default"
    digest: str = ""
    _ranked: dict[str, tuple[str, ...]] = field(default_factory=dict, repr=False, compare=False)

    def entry_at(self, model: str, time_ms: int) -> PriceEntry | None:
        """Of the patterns with an entry in force at that time, the most specific one's: an exact name before any
        pattern, then the pattern with most literal characters. None: the model has no price."""
        for pattern in self._patterns(model):
            in_force = [entry for entry in self.models[pattern] if entry.from_ms <= time_ms]
            if in_force:
                return in_force[-1]
        return None

    def spans(self, model: str, start_ms: int, end_ms: int) -> tuple[PriceSpan, ...]:
        """``entry_at`` over a half-open span of time, without the stretches that have no price."""
        begins = {entry.from_ms for pattern in self._patterns(model) for entry in self.models[pattern]}
        cuts = [start_ms, *sorted(cut for cut in begins if start_ms < cut < end_ms), end_ms]
        found: list[PriceSpan] = []
        for since, until in pairwise(cuts):
            entry = self.entry_at(model, since)
            if entry is None:
                continue
            if found and found[-1].entry == entry and found[-1].end_ms == since:
                since = found.pop().start_ms  # noqa: PLW2901 - one span, whatever less specific entries begin in it
            found.append(PriceSpan(model, since, until, entry))
        return tuple(found)

    def _patterns(self, model: str) -> tuple[str, ...]:
        """Those that match, most specific first."""
        ranked = self._ranked.get(model)
        if ranked is None:
            matching = [pattern for pattern in self.models if _matches(pattern, model)]
            ranked = self._ranked[model] = tuple(sorted(matching, key=lambda pattern: _rank(pattern, model)))
        return ranked


def _matches(pattern: str, model: str) -> bool:
    expression = "".join({"*": ".*", "?": "."}.get(char, re.escape(char)) for char in pattern)
    return re.fullmatch(expression, model, re.DOTALL) is not None


def _rank(pattern: str, model: str) -> tuple[bool, int, int, str]:
    literals = sum(char not in "*?" for char in pattern)
    return pattern != model, -literals, pattern.count("*"), pattern


@dataclass(frozen=True, slots=True)
class MeteredEvent:
    """What rating reads of a request's event, or of a reversal: then ``usage`` is what it takes back, ``time_ms`` is
    the time of the request, and ``outcome`` is empty."""

    event_id: str
    tenant: str
    model: str
    time_ms: int
    usage: Usage
    outcome: str = ""
    reversal: bool = False


@dataclass(frozen=True, slots=True)
class Charge:
    """``amount``: micro-units, negative for a reversal. ``entry``: the price it was rated at."""

    amount: int
    entry: PriceEntry | None


def fees_of(event: MeteredEvent, policy: RequestFee) -> int:
    """1 where the event pays (a reversal: gives back) the price per request, else 0."""
    if policy is RequestFee.ALL:
        return int(event.reversal or event.outcome in SETTLED)
    return int(event.usage.total > 0)


def rate_event(event: MeteredEvent, prices: PriceList) -> Charge | None:
    """An event's charge. A reversal's is the exact negative of its request's, for it has the same time and usage.

    None: it is to be paid for and its model has no price. An event that used nothing and pays no fee costs nothing
    whatever its model.
    """
    fees = fees_of(event, prices.request_fee)
    entry = prices.entry_at(event.model, event.time_ms)
    if entry is None:
        return None if event.usage.total or fees else Charge(0, None)
    amount = entry.rate.charge(event.usage, fees)
    return Charge(-amount if event.reversal else amount, entry)

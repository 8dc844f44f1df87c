"""What a report of a period holds: sums of events, rated with a price list. Reads the books, never writes them.

Everything is signed: what a reversal takes back is negative, so that plain sums are right. Amounts are what the tenant
owes; an adjustment in its favour lowers that.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from typing import Protocol

from kong_plugins.domain.double_entry import Adjustment, Charged, Entry, adjustment_entries, charge_entries
from kong_plugins.domain.holds import Outcome
from kong_plugins.domain.money import PICO_PER_MICRO
from kong_plugins.domain.periods import Period
from kong_plugins.domain.rating import PriceEntry, PriceList, PriceSpan, RequestFee

NO_MODEL = ""  # of an event that names none: a hold that nobody settled and that only the ledger knew


@dataclass(frozen=True, slots=True)
class Scope:
    """Which events are read: those of a period, of one tenant or of all."""

    period: Period
    tenant: str | None = None


@dataclass(frozen=True, slots=True)
class Tokens:
    """``cached`` is part of ``prompt``, ``reasoning`` of ``completion``."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    reasoning: int = 0

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(
            self.prompt + other.prompt,
            self.cached + other.cached,
            self.completion + other.completion,
            self.reasoning + other.reasoning,
        )

    @property
    def total(self) -> int:
        return self.prompt + self.completion


@dataclass(frozen=True, slots=True)
class Charges:
    """``amount``, micro-units, is what is owed. The rest are its parts in pico-units, exact: they sum to ``amount``,
    with ``rounding`` for what rounding each event up has added. ``saved``, pico-units and no part of it: what the
    cached tokens would have cost more, had they not been cached."""

    uncached: int = 0
    cached: int = 0
    completion: int = 0
    reasoning: int = 0
    request: int = 0
    amount: int = 0
    saved: int = 0

    @property
    def rounding(self) -> int:
        return self.amount * PICO_PER_MICRO - (
            self.uncached + self.cached + self.completion + self.reasoning + self.request
        )

    def __add__(self, other: Charges) -> Charges:
        return Charges(
            self.uncached + other.uncached,
            self.cached + other.cached,
            self.completion + other.completion,
            self.reasoning + other.reasoning,
            self.request + other.request,
            self.amount + other.amount,
            self.saved + other.saved,
        )


NO_TOKENS = Tokens()
NO_CHARGES = Charges()


@dataclass(frozen=True, slots=True)
class UsageSum:
    """Events of one tenant and model that have all this in common, summed. ``span`` indexes the price spans that the
    books were asked with; None: no price. ``fees``: prices per request, negative of reversals. ``unrated``: events that
    are to be paid for and have no price. ``status``: of denied requests only."""

    tenant: str
    model: str
    reversal: bool
    outcome: str
    evidence: str
    status: int | None
    span: int | None
    events: int
    fees: int
    unrated: int
    tokens: Tokens
    amount: int


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Milliseconds, nearest rank, over ``count`` requests."""

    count: int
    p50: int
    p95: int
    p99: int


@dataclass(frozen=True, slots=True)
class Latency:
    """From a request's start to the first and to the last byte of its answer; ``upstream``: as Kong measured it."""

    first: Percentiles | None = None
    whole: Percentiles | None = None
    upstream: Percentiles | None = None


@dataclass(frozen=True, slots=True)
class Top:
    """A route, or a credential's fingerprint, and what went through it. ``amount`` in micro-units."""

    name: str
    requests: int
    tokens: int
    amount: int


@dataclass(frozen=True, slots=True)
class Bucket:
    """An hour of a day, or a day of a month."""

    start_ms: int
    requests: int
    tokens: Tokens
    amount: int


@dataclass(frozen=True, slots=True)
class Sums:
    """A period's requests and reversals, summed in four ways. ``routes`` and ``credentials`` are by tenant; ``steps``
    are of at most 15 minutes, ascending, those with events only."""

    usage: list[UsageSum]
    routes: dict[str, list[Top]]
    credentials: dict[str, list[Top]]
    steps: list[Bucket]


class Books(Protocol):
    """The events of the books. Every method reads the same moment's state."""

    def models(self, scope: Scope) -> Sequence[str]:
        """Names of the models in it."""

    def sums(self, scope: Scope, spans: Sequence[PriceSpan], fee: RequestFee) -> Sums:
        """Requests and reversals, each event charged by the span it is in as ``rate_event`` would."""

    def adjustments(self, scope: Scope) -> Sequence[Adjustment]:
        """Ascending in time."""

    def latency(self, scope: Scope) -> Mapping[str | None, Latency]:
        """By tenant, and of all (None), of requests that were answered."""

    def charged(self, scope: Scope, spans: Sequence[PriceSpan], fee: RequestFee, currency: str) -> Iterator[Charged]:
        """Every event with a charge other than zero, ascending in time."""


@dataclass(frozen=True, slots=True)
class UsageLine:
    """Usage and what it costs. ``entry`` None: it has no price."""

    usage: UsageSum
    entry: PriceEntry | None
    charges: Charges


@dataclass(slots=True)
class Summary:
    """Sums over lines; ``used`` and ``charged`` are of requests, ``reversed_*`` (negative) of reversals. ``denied``:
    refusals by status, where they are recorded. ``evidence`` is of requests that were let through."""

    requests: int = 0
    reversals: int = 0
    unrated: int = 0
    unrated_tokens: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    denied: Counter[int] = field(default_factory=Counter)
    evidence: Counter[str] = field(default_factory=Counter)
    used: Tokens = NO_TOKENS
    reversed_tokens: Tokens = NO_TOKENS
    charged: Charges = NO_CHARGES
    reversed_charges: Charges = NO_CHARGES

    @property
    def tokens(self) -> Tokens:
        return self.used + self.reversed_tokens

    @property
    def charges(self) -> Charges:
        return self.charged + self.reversed_charges

    def add(self, group: UsageSum, charges: Charges) -> None:
        self.unrated += group.unrated
        if group.unrated:
            self.unrated_tokens += group.tokens.total
        if group.reversal:
            self.reversals += group.events
            self.reversed_tokens += group.tokens
            self.reversed_charges += charges
            return
        self.requests += group.events
        self.outcomes[group.outcome] += group.events
        if group.outcome == Outcome.DENIED:
            self.denied[group.status or 0] += group.events
        else:
            self.evidence[group.evidence] += group.events
        self.used += group.tokens
        self.charged += charges


@dataclass(frozen=True, slots=True)
class ModelReport:
    model: str
    summary: Summary


@dataclass(frozen=True, slots=True)
class TenantReport:
    """``net``: micro-units owed by currency."""

    tenant: str
    summary: Summary
    models: tuple[ModelReport, ...]
    adjustments: tuple[Adjustment, ...]
    latency: Latency
    routes: tuple[Top, ...]
    credentials: tuple[Top, ...]
    net: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Report:
    """``lines`` and the adjustments are what everything that is money in it comes from."""

    scope: Scope
    prices: PriceList
    lines: tuple[UsageLine, ...]
    tenants: tuple[TenantReport, ...]
    summary: Summary
    net: Mapping[str, int]
    latency: Latency
    timeline: tuple[Bucket, ...]

    @property
    def empty(self) -> bool:
        return not self.tenants

    @property
    def adjustments(self) -> tuple[Adjustment, ...]:
        return tuple(adjustment for tenant in self.tenants for adjustment in tenant.adjustments)

    @property
    def unrated(self) -> tuple[tuple[str, str, Summary], ...]:
        """(tenant, model, sums) of what is to be paid for and has no price."""
        return tuple(
            (tenant.tenant, model.model, model.summary)
            for tenant in self.tenants
            for model in tenant.models
            if model.summary.unrated
        )


TOPS = 5  # of a tenant's routes and credentials


def make_report(books: Books, prices: PriceList, scope: Scope) -> Report:
    """Rate a period's events and sum them up."""
    spans = price_spans(books, prices, scope)
    sums = books.sums(scope, spans, prices.request_fee)
    adjustments = books.adjustments(scope)
    latency = books.latency(scope)

    summary, by_tenant = Summary(), defaultdict[str, Summary](Summary)
    by_model = defaultdict[tuple[str, str], Summary](Summary)
    lines = tuple(
        UsageLine(group, None if group.span is None else spans[group.span].entry, _charges(group, spans))
        for group in sums.usage
    )
    for line in lines:
        of = line.usage
        for part in (summary, by_tenant[of.tenant], by_model[of.tenant, of.model]):
            part.add(of, line.charges)
    tenants = tuple(
        TenantReport(
            tenant,
            by_tenant[tenant],
            tuple(ModelReport(model, by_model[of, model]) for of, model in sorted(by_model) if of == tenant),
            own := tuple(adjustment for adjustment in adjustments if adjustment.tenant == tenant),
            latency.get(tenant, Latency()),
            _top(sums.routes.get(tenant, ())),
            _top(sums.credentials.get(tenant, ())),
            _net(by_tenant[tenant], own, prices.currency),
        )
        for tenant in sorted({*by_tenant, *(adjustment.tenant for adjustment in adjustments)})
    )
    return Report(
        scope,
        prices,
        lines,
        tenants,
        summary,
        _net(summary, adjustments, prices.currency),
        latency.get(None, Latency()),
        _fold(sums.steps, scope.period),
    )


def price_spans(books: Books, prices: PriceList, scope: Scope) -> tuple[PriceSpan, ...]:
    """The prices of the models that a period has, over that period."""
    period = scope.period
    return tuple(span for model in books.models(scope) for span in prices.spans(model, period.start_ms, period.end_ms))


def ledger_entries(books: Books, prices: PriceList, scope: Scope) -> Iterator[Entry]:
    """Double entry of a period: two entries for each event that moves money. They sum to zero in each currency."""
    spans = price_spans(books, prices, scope)
    for charged in books.charged(scope, spans, prices.request_fee, prices.currency):
        yield from charge_entries(charged)
    for adjustment in books.adjustments(scope):
        yield from adjustment_entries(adjustment)


def _charges(group: UsageSum, spans: Sequence[PriceSpan]) -> Charges:
    """A price is linear in tokens, so the exact parts of a sum are the price of the sum."""
    if group.span is None:
        return Charges()
    rate, tokens = spans[group.span].entry.rate, group.tokens
    return Charges(
        uncached=rate.prompt * (tokens.prompt - tokens.cached),
        cached=rate.cached * tokens.cached,
        completion=rate.completion * (tokens.completion - tokens.reasoning),
        reasoning=rate.reasoning * tokens.reasoning,
        request=rate.request * PICO_PER_MICRO * group.fees,
        amount=group.amount,
        saved=(rate.prompt - rate.cached) * tokens.cached,
    )


def _top(found: Iterable[Top]) -> tuple[Top, ...]:
    return tuple(nsmallest(TOPS, found, key=lambda top: (-top.tokens, top.name)))


def _net(summary: Summary, adjustments: Iterable[Adjustment], currency: str) -> dict[str, int]:
    net = Counter({currency: summary.charges.amount})
    for adjustment in adjustments:
        net[adjustment.currency] -= adjustment.amount
    return dict(sorted(net.items()))


def _fold(steps: Iterable[Bucket], period: Period) -> tuple[Bucket, ...]:
    """Into the period's hours or days, those without events too."""
    buckets = [Bucket(mark, 0, Tokens(), 0) for mark in period.marks]
    for step in steps:
        # A step may begin a little before the period, where a zone's midnight is on no quarter of an hour.
        n = max(0, bisect_right(period.marks, step.start_ms) - 1)
        found = buckets[n]
        buckets[n] = Bucket(
            found.start_ms, found.requests + step.requests, found.tokens + step.tokens, found.amount + step.amount
        )
    return tuple(buckets)

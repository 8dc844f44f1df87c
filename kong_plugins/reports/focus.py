"""A FOCUS 1.2 export (the FinOps Foundation's cost and usage columns), as CSV.

A row is one kind of token of one model at one price, used by one tenant. Its cost is quantity × unit price, exact to
the pico-unit, as the specification asks; what rounding each event up has added is a row of its own (an Adjustment). So
BilledCost sums to what the report says is owed, to the micro-unit. Usage without a price cannot be written in FOCUS
and is left out; whoever writes the file says so.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from kong_plugins.application.report import NO_CHARGES, NO_TOKENS, Charges, Report, Tokens
from kong_plugins.domain.double_entry import Adjustment
from kong_plugins.domain.money import PICO_PER_MICRO, plain_pico
from kong_plugins.domain.periods import Period, iso_utc, month_period
from kong_plugins.domain.rating import PriceEntry
from kong_plugins.reports.rows import as_text

VERSION = "1.2"

# What clients and operators name; all others are words or numbers of ours.
_NAMES = {
    "SubAccountId",
    "SubAccountName",
    "ResourceId",
    "ResourceName",
    "ChargeDescription",
    "x_Account",
    "x_Reference",
}

# Mandatory ones, then the conditional and recommended ones that apply to us, then our own.
COLUMNS = (
    "BilledCost",
    "BillingAccountId",
    "BillingAccountName",
    "BillingCurrency",
    "BillingPeriodEnd",
    "BillingPeriodStart",
    "ChargeCategory",
    "ChargeClass",
    "ChargeDescription",
    "ChargePeriodEnd",
    "ChargePeriodStart",
    "ContractedCost",
    "EffectiveCost",
    "InvoiceIssuerName",
    "ListCost",
    "PricingQuantity",
    "PricingUnit",
    "ProviderName",
    "PublisherName",
    "ServiceCategory",
    "ServiceName",
    "ChargeFrequency",
    "ConsumedQuantity",
    "ConsumedUnit",
    "ContractedUnitPrice",
    "ListUnitPrice",
    "PricingCategory",
    "ResourceId",
    "ResourceName",
    "ResourceType",
    "ServiceSubcategory",
    "SkuId",
    "SkuMeter",
    "SkuPriceId",
    "SubAccountId",
    "SubAccountName",
    "x_Account",
    "x_EventId",
    "x_Events",
    "x_PriceListSha256",
    "x_Reference",
)

MILLION = 1_000_000
_CATEGORIES = {"credit": "Credit"}  # refunds and corrections are adjustments of what was charged

Row = dict[str, str]


@dataclass(frozen=True, slots=True)
class _Meter:
    """One thing with a price: ``quantity`` tokens (or requests) at ``price`` micro-units for ``per`` of them."""

    name: str
    words: str
    quantity: int
    price: int
    cost: int
    per: int = MILLION


@dataclass(slots=True)
class _Used:
    """What a tenant used of a model at one price."""

    events: int = 0
    fees: int = 0
    tokens: Tokens = NO_TOKENS
    charges: Charges = NO_CHARGES


def to_focus(report: Report) -> str:
    """With a header; null is an empty field."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for row in focus_rows(report):
        writer.writerow(row | {name: str(as_text(row[name])) for name in _NAMES & row.keys()})
    return out.getvalue()


def focus_rows(report: Report) -> Iterator[Row]:
    """Rows with the columns that are not null."""
    used: dict[tuple[str, str, bool, PriceEntry], _Used] = defaultdict(_Used)
    for line in report.lines:
        if line.entry is not None:
            of = line.usage
            sums = used[of.tenant, of.model, of.reversal, line.entry]
            sums.events += of.events
            sums.fees += of.fees
            sums.tokens += of.tokens
            sums.charges += line.charges
    common = _common(report)
    for (tenant, model, reversal, entry), sums in used.items():
        account = common | {
            "SubAccountId": tenant,
            "SubAccountName": tenant,
            "ResourceId": model,
            "ResourceName": model,
            "ResourceType": "Model",
            "x_Events": str(sums.events),
        }
        for meter in _meters(entry, sums):
            if meter.quantity:
                yield account | _usage(meter, model, entry, reversal)
        if sums.charges.rounding:
            yield (
                account
                | _cost(sums.charges.rounding, report.prices.currency)
                | {
                    "ChargeCategory": "Adjustment",
                    "ChargeDescription": f"{model}: requests rounded up to 0.000001 {report.prices.currency}",
                }
            )
    for adjustment in report.adjustments:
        yield common | _adjustment(adjustment, report.scope.period)


def _meters(entry: PriceEntry, sums: _Used) -> tuple[_Meter, ...]:
    rate, tokens, charges = entry.rate, sums.tokens, sums.charges
    return (
        _Meter("prompt", "Prompt tokens", tokens.prompt - tokens.cached, rate.prompt, charges.uncached),
        _Meter("cached", "Cached prompt tokens", tokens.cached, rate.cached, charges.cached),
        _Meter(
            "completion",
            "Completion tokens",
            tokens.completion - tokens.reasoning,
            rate.completion,
            charges.completion,
        ),
        _Meter("reasoning", "Reasoning tokens", tokens.reasoning, rate.reasoning, charges.reasoning),
        # A free request is no charge of its own.
        _Meter("request", "Requests", sums.fees if rate.request else 0, rate.request, charges.request, 1),
    )


def _common(report: Report) -> Row:
    period, prices = report.scope.period, report.prices
    billing = _billing_period(period)
    return {
        "BillingAccountId": prices.billing_account,
        "BillingCurrency": prices.currency,
        "BillingPeriodStart": iso_utc(billing.start_ms),
        "BillingPeriodEnd": iso_utc(billing.end_ms),
        "ChargePeriodStart": iso_utc(period.start_ms),
        "ChargePeriodEnd": iso_utc(period.end_ms),
        "ChargeFrequency": "Usage-Based",
        "InvoiceIssuerName": prices.provider,
        "ProviderName": prices.provider,
        "PublisherName": prices.provider,
        "ServiceCategory": "AI and Machine Learning",
        "ServiceSubcategory": "Generative AI",
        "ServiceName": "LLM inference",
        "x_PriceListSha256": prices.digest,
    }


def _billing_period(period: Period) -> Period:
    """The month that a day is in."""
    if period.monthly:
        return period
    year, month, _ = map(int, period.label.split("-"))
    return month_period(year, month, period.time_zone)


def _usage(meter: _Meter, model: str, entry: PriceEntry, reversal: bool) -> Row:
    unit = "Tokens" if meter.per == MILLION else "Requests"
    price = plain_pico(meter.price * PICO_PER_MICRO)
    pricing_quantity = plain_pico(meter.quantity * (10**12 // meter.per))
    why = ", taken back for a retried request" if reversal else ""
    return _cost(meter.cost) | {
        "ChargeCategory": "Usage",
        "ChargeDescription": f"{model}: {meter.words.lower()}{why}",
        "ConsumedQuantity": str(meter.quantity),
        "ConsumedUnit": unit,
        "PricingQuantity": pricing_quantity,
        "PricingUnit": f"{MILLION} Tokens" if meter.per == MILLION else "Requests",
        "PricingCategory": "Standard",
        "ListUnitPrice": price,
        "ContractedUnitPrice": price,
        "SkuId": f"{model}/{meter.name}",
        "SkuMeter": meter.words,
        # One parent SKU for each: a pattern's price is another one for each model that it prices.
        "SkuPriceId": f"{model}/{meter.name}/{entry.price_id}",
    }


def _cost(pico: int, currency: str = "") -> Row:
    cost = plain_pico(pico)
    row = {"BilledCost": cost, "EffectiveCost": cost, "ListCost": cost, "ContractedCost": cost}
    return row | {"BillingCurrency": currency} if currency else row


def _adjustment(adjustment: Adjustment, period: Period) -> Row:
    billing = _billing_period(period)
    earlier = adjustment.reference_ms is not None and adjustment.reference_ms < billing.start_ms
    row = _cost(-adjustment.amount * PICO_PER_MICRO, adjustment.currency) | {
        "ChargeCategory": _CATEGORIES.get(adjustment.kind, "Adjustment"),
        "ChargeDescription": f"{adjustment.kind}: {adjustment.reason}",
        "ChargeFrequency": "One-Time",
        "SubAccountId": adjustment.tenant,
        "SubAccountName": adjustment.tenant,
        "x_Account": adjustment.account,
        "x_EventId": adjustment.event_id,
        "x_Events": "1",
    }
    if earlier:
        row["ChargeClass"] = "Correction"
    if adjustment.reference:
        row["x_Reference"] = adjustment.reference
    return row

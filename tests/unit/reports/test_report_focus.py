"""The FOCUS export holds to the specification's own table of columns.

FOCUS 1.2, ratified in May 2025: the columns that are mandatory, and which of these may be null; then the conditional
and recommended ones that we write.
"""

from __future__ import annotations

import csv
import io
import re
from decimal import Decimal
from pathlib import Path

import pytest
from report_books import PRICES, adjustment, golden, ms, reading, report_of, request, write_books

from kong_plugins.adapters.price_list import read_prices
from kong_plugins.application.report import Scope, make_report
from kong_plugins.domain.events import AdjustmentKind
from kong_plugins.domain.periods import month_period
from kong_plugins.domain.usage import Usage
from kong_plugins.reports.focus import COLUMNS, VERSION, to_focus

MANDATORY_NULLABLE = {
    "BilledCost": False,
    "BillingAccountId": False,
    "BillingAccountName": True,
    "BillingCurrency": False,
    "BillingPeriodEnd": False,
    "BillingPeriodStart": False,
    "ChargeCategory": False,
    "ChargeClass": True,
    "ChargeDescription": True,
    "ChargePeriodEnd": False,
    "ChargePeriodStart": False,
    "ContractedCost": False,
    "EffectiveCost": False,
    "InvoiceIssuerName": False,
    "ListCost": False,
    "PricingQuantity": True,
    "PricingUnit": True,
    "ProviderName": False,
    "PublisherName": False,
    "ServiceCategory": False,
    "ServiceName": False,
}
OTHERS = {
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
}
OF_USAGE = (
    "ConsumedQuantity",
    "ConsumedUnit",
    "PricingQuantity",
    "PricingUnit",
    "ListUnitPrice",
    "SkuId",
    "SkuPriceId",
)
DECIMALS = ("BilledCost", "EffectiveCost", "ListCost", "ContractedCost")
TIMES = ("BillingPeriodStart", "BillingPeriodEnd", "ChargePeriodStart", "ChargePeriodEnd")

Rows = list[dict[str, str]]


def rows_of(text: str) -> Rows:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    return rows_of(to_focus(report_of(write_books(tmp_path_factory.mktemp("focus") / "b.duckdb", golden()))))


def test_the_columns_are_the_specifications(rows: Rows) -> None:
    """Every mandatory one, no unknown one, our own with x_."""
    assert VERSION == "1.2"
    theirs = [column for column in COLUMNS if not column.startswith("x_")]
    assert set(theirs) == MANDATORY_NULLABLE.keys() | OTHERS
    assert list(rows[0]) == list(COLUMNS)
    assert len(set(COLUMNS)) == len(COLUMNS)


def test_what_must_not_be_null_is_not(rows: Rows) -> None:
    """Mandatory columns everywhere; those of usage where there is usage, and only there."""
    for row in rows:
        assert all(row[column] for column, nullable in MANDATORY_NULLABLE.items() if not nullable)
        usage = row["ChargeCategory"] == "Usage"
        assert [bool(row[column]) for column in OF_USAGE] == [usage] * len(OF_USAGE)


def test_values_have_the_specifications_formats(rows: Rows) -> None:
    """Plain decimals, UTC to the second, allowed categories, quantities with their units."""
    for row in rows:
        assert all(re.fullmatch(r"-?\d+(\.\d+)?", row[column]) for column in DECIMALS)
        assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", row[column]) for column in TIMES)
        assert row["ChargeCategory"] in {"Usage", "Credit", "Adjustment"}
        assert row["ChargeClass"] in {"", "Correction"}
        assert (row["ServiceCategory"], row["ServiceSubcategory"]) == ("AI and Machine Learning", "Generative AI")
        assert (row["ConsumedUnit"], row["PricingUnit"]) in {
            ("Tokens", "1000000 Tokens"),
            ("Requests", "Requests"),
            ("", ""),
        }


def test_cost_is_price_times_quantity_exactly(rows: Rows) -> None:
    """Also of what is taken back, whose quantities are negative; what rounding added is a row of its own."""
    usage = [row for row in rows if row["ChargeCategory"] == "Usage"]
    for row in usage:
        assert Decimal(row["PricingQuantity"]) * Decimal(row["ListUnitPrice"]) == Decimal(row["BilledCost"])
        assert row["ContractedUnitPrice"] == row["ListUnitPrice"]
        assert Decimal(row["PricingQuantity"]) * 10**6 == Decimal(row["ConsumedQuantity"])
    assert any(Decimal(row["ConsumedQuantity"]) < 0 for row in usage)
    rounding = [row for row in rows if "rounded" in row["ChargeDescription"]]
    assert sum(Decimal(row["BilledCost"]) for row in rounding) == Decimal("0.00000026")


def test_a_sku_price_has_one_sku(rows: Rows) -> None:
    """SkuPriceId to SkuId is a function."""
    usage = [row for row in rows if row["SkuPriceId"]]
    assert len({(row["SkuPriceId"], row["SkuId"]) for row in usage}) == len({row["SkuPriceId"] for row in usage})
    assert {row["SkuId"] for row in usage} >= {"deepseek-r1/prompt", "deepseek-r1/cached", "small-1/completion"}


def test_billing_periods_are_months_and_a_late_refund_corrects_an_earlier_one(tmp_path: Path) -> None:
    """In the report's zone. A refund of a request of the month before is a Correction; one of this month is not."""
    entries = request("old", "t", Usage(10**6, 0), at_ms=ms("2026-10-30T00:00:00+00:00"))
    entries += request("new", "t", Usage(10**6, 0), at_ms=ms("2026-11-24T00:00:00+00:00"))
    for name, about in (("a", "old"), ("b", "new"), ("c", None)):
        entries += adjustment(name, "t", 7, kind=AdjustmentKind.REFUND, reference=about)
    path = write_books(tmp_path / "b.duckdb", entries)
    with reading(path) as books:
        report = make_report(books, read_prices(PRICES), Scope(month_period(2026, 11, "Europe/Berlin")))
    rows = rows_of(to_focus(report))
    assert {row["BillingPeriodStart"] for row in rows} == {"2026-10-31T23:00:00Z"}
    refunds = {row["x_EventId"]: row["ChargeClass"] for row in rows if row["x_EventId"]}
    assert refunds == {"adjustment:a": "Correction", "adjustment:b": "", "adjustment:c": ""}
    requests = [row for row in rows if row["ConsumedUnit"] == "Requests"]
    assert [(row["BilledCost"], row["PricingQuantity"], row["ListUnitPrice"]) for row in requests] == [
        ("0.01", "1", "0.01")
    ]


def test_a_credit_is_a_credit(rows: Rows) -> None:
    """Its cost is negative, whole, once, with its event and what it is about."""
    found = [row for row in rows if row["ChargeCategory"] == "Credit"]
    assert [(row["BilledCost"], row["ChargeFrequency"], row["x_EventId"], row["x_Reference"]) for row in found] == [
        ("-0.0005", "One-Time", "adjustment:a1", "r1")
    ]

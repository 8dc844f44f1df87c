"""A charge is usage times price, exact, rounded up once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kong_plugins.adapters.price_list import read_prices
from kong_plugins.domain.money import check_currency, format_micro, format_pico, parse_micro, plain_pico
from kong_plugins.domain.pricing import PRICE_MAX, Price
from kong_plugins.domain.rating import (
    Charge,
    MeteredEvent,
    PriceEntry,
    PriceList,
    Rate,
    RequestFee,
    rate_event,
)
from kong_plugins.domain.usage import Usage

RATE = Rate(550_000, 140_000, 2_190_000, 2_190_000)
DAY_MS = 86_400_000


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    prompt, completion = draw(st.integers(0, 10**6)), draw(st.integers(0, 10**6))
    return Usage(prompt, completion, draw(st.integers(0, prompt)), draw(st.integers(0, completion)))


prices = st.integers(0, PRICE_MAX)


@pytest.mark.parametrize(
    ("usage", "micro"),
    [
        (Usage(), 0),
        (Usage(1, 0), 1),  # 0.55 of a micro-unit
        (Usage(20, 0), 11),  # 11 exactly: nothing to round
        (Usage(20, 0, 1), 11),  # 19 × 0.55 + 0.14 = 10.59
        (Usage(1000, 500, 400, 200), 1481),  # 330 + 56 + 657 + 438
        (Usage(10**6, 10**6), 2_740_000),
    ],
)
def test_a_charge_is_the_exact_sum_rounded_up_once(usage: Usage, micro: int) -> None:
    """Parts are not rounded one by one: 0.55 + 0.14 + … only ever rounds their sum."""
    assert RATE.charge(usage) == micro


@given(usages(), prices, prices, prices, prices)
def test_a_bill_is_what_a_budget_in_money_counts(usage: Usage, a: int, b: int, completion: int, fee: int) -> None:
    """With the same prices, the charge is the amount that the ledger posts to a cost budget, to the micro-unit."""
    prompt, cached = max(a, b), min(a, b)
    budget = Price(prompt, cached, completion, fee).weights()
    assert Rate(prompt, cached, completion, completion, fee).charge(usage, fees=1) == budget.amount(usage)


def test_reasoning_can_have_its_own_price() -> None:
    """200 of 500 completion tokens at 4 instead of 3 per million: 900 + 800 micro-units."""
    assert Rate(0, 0, 3_000_000, 4_000_000).charge(Usage(0, 500, 0, 200)) == 1700


def entry(pattern: str, from_ms: int, prompt: int = 1_000_000) -> PriceEntry:
    return PriceEntry(pattern, f"day {from_ms}", from_ms, Rate(prompt, prompt, prompt, prompt))


def test_a_price_holds_from_its_day_until_the_next() -> None:
    """The millisecond before a new price is still the old one's; before the first there is none."""
    first, second = entry("m", 1000), entry("m", 2000)
    prices = PriceList("EUR", {"m": (first, second)})
    found = [prices.entry_at("m", at) for at in (999, 1000, 1999, 2000, 10**12)]
    assert found == [None, first, first, second, second]


def test_the_most_specific_price_in_force_wins() -> None:
    """An exact name before a pattern, more literal characters before fewer; a price that is yet to begin loses."""
    names = ("*", "deepseek-*", "deepseek-r?", "deepseek-r1")
    prices = PriceList("EUR", {name: (entry(name, 1000 * n),) for n, name in enumerate(names)})
    assert [prices.entry_at("deepseek-r1", at).pattern for at in (0, 1000, 2000, 3000)] == list(names)  # type: ignore[union-attr]
    assert prices.entry_at("deepseek-v3", 5000).pattern == "deepseek-*"  # type: ignore[union-attr]
    assert prices.entry_at("other", 5000).pattern == "*"  # type: ignore[union-attr]


def test_a_pattern_takes_names_for_what_they_are() -> None:
    """Only * and ? mean something: a dot or bracket in a model's name is itself."""
    prices = PriceList("EUR", {"a.b[1]*": (entry("a.b[1]*", 0),)})
    assert prices.entry_at("a.b[1]-x", 1) is not None
    assert prices.entry_at("axb1", 1) is None


@given(
    st.lists(st.tuples(st.sampled_from(["*", "m*", "m?", "m1"]), st.integers(0, 60)), max_size=8), st.integers(0, 60)
)
def test_spans_say_what_entry_at_says(begins: list[tuple[str, int]], start: int) -> None:
    """Cutting a period into spans of one price gives each moment the price it has."""
    models: dict[str, tuple[PriceEntry, ...]] = {}
    for pattern, from_ms in sorted(set(begins), key=lambda begin: begin[1]):
        models[pattern] = (*models.get(pattern, ()), entry(pattern, from_ms))
    prices = PriceList("EUR", models)
    spans = prices.spans("m1", start, start + 30)
    for at in range(start, start + 30):
        covering = [span.entry for span in spans if span.start_ms <= at < span.end_ms]
        expected = prices.entry_at("m1", at)
        assert covering == ([] if expected is None else [expected])


EVENT = MeteredEvent("e", "t", "m", 5, Usage(10, 10), "completed")


@given(usages(), st.sampled_from(RequestFee), st.sampled_from(["completed", "aborted", "failed"]))
def test_a_reversal_is_the_exact_negative(usage: Usage, policy: RequestFee, outcome: str) -> None:
    """Rounded up and negated, not rounded towards zero: event and reversal sum to nothing, fee included."""
    prices = PriceList("EUR", {"m": (PriceEntry("m", "d", 0, Rate(333, 111, 777, 999, 7)),)}, policy)
    charge = rate_event(MeteredEvent("e", "t", "m", 5, usage, outcome), prices)
    back = rate_event(MeteredEvent("reversal:e", "t", "m", 5, usage, "", True), prices)
    assert charge is not None
    assert back is not None
    assert charge.amount + back.amount == 0


def test_a_failed_request_without_a_token_pays_its_fee_only_where_the_list_says_so() -> None:
    """metered: nothing. all: the fee, as a cost budget posts it. A refused or expired one never pays."""
    models = {"m": (PriceEntry("m", "d", 0, Rate(1, 1, 1, 1, 500)),)}
    paid = {
        (policy, outcome): rate_event(
            MeteredEvent("e", "t", "m", 5, Usage(), outcome), PriceList("EUR", models, policy)
        )
        for policy in RequestFee
        for outcome in ("completed", "failed", "denied", "expired")
    }
    paying = {key for key, charge in paid.items() if charge is not None and charge.amount == 500}
    assert paying == {(RequestFee.ALL, "completed"), (RequestFee.ALL, "failed")}


def test_usage_without_a_price_is_not_free() -> None:
    """No charge at all (None), where an event that used nothing costs nothing whatever its model."""
    prices = PriceList("EUR", {"other": (entry("other", 0),)})
    assert rate_event(EVENT, prices) is None
    assert rate_event(MeteredEvent("e", "t", "m", 5, Usage(), "denied"), prices) == Charge(0, None)


@pytest.mark.parametrize("rate", [(-1, -1, 0, 0), (1, 2, 0, 0), (1, 1, 0, 10**13)])
def test_a_senseless_rate_is_refused(rate: tuple[int, int, int, int]) -> None:
    """Negative, a cached token above an uncached one, or beyond any currency."""
    with pytest.raises(ValueError, match=r"price|cached"):
        Rate(*rate)


@pytest.mark.parametrize(
    ("amount", "currency", "text"),
    [
        (1_234_500_000, "EUR", "1,234.50"),
        (123, "USD", "0.000123"),
        (-5_000_000, "JPY", "-5"),
        (5_500_000, "JPY", "5.5"),
        (1_000_000, "KWD", "1.000"),
        (0, "EUR", "0.00"),
    ],
)
def test_money_has_its_currencys_digits_and_all_it_needs(amount: int, currency: str, text: str) -> None:
    """At least the coins' digits, more where there is more, none made up."""
    assert format_micro(amount, currency) == text


@given(st.integers(-(10**17), 10**17))
def test_money_reads_as_it_is_written(amount: int) -> None:
    """Writing and reading is exact both ways."""
    assert parse_micro(format_micro(amount, "EUR", group="")) == amount
    assert plain_pico(amount * 10**6) == format_pico(amount * 10**6, "JPY", group="")


@pytest.mark.parametrize("text", ["", "1e3", "0.0000001", "+1", ".5", "1,000", "٣", "1" * 13, "NaN", "1.", "0x1"])
def test_anything_but_a_plain_decimal_is_no_amount(text: str) -> None:
    """No exponents, no seventh decimal, no grouping, no other digits."""
    with pytest.raises(ValueError, match="decimal"):
        parse_micro(text)


@pytest.mark.parametrize("code", ["eur", "EURO", "", "E1R"])
def test_a_currency_is_an_iso_code(code: str) -> None:
    """Three capital letters."""
    with pytest.raises(ValueError, match="ISO 4217"):
        check_currency(code)


def test_the_example_list_rates() -> None:
    """One million prompt tokens and as many completion tokens at the list's own prices."""
    prices = read_prices("currency: USD\nmodels: {m: [{from: 1970-01-01, prompt: 0.55, completion: 2.19}]}")
    charge = rate_event(MeteredEvent("e", "t", "m", 5, Usage(10**6, 10**6), "completed"), prices)
    assert charge is not None
    assert charge.amount == 2_740_000

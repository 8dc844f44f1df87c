"""A price list that cannot be used says where and why."""

from __future__ import annotations

from pathlib import Path

import pytest

from kong_plugins.adapters.price_list import PriceListError, load_prices, read_prices
from kong_plugins.domain.periods import iso_utc
from kong_plugins.domain.rating import Rate, RequestFee

HEAD = "currency: EUR\nmodels:\n  m:\n"


def test_prices_are_read_as_they_are_written() -> None:
    """Quoted or not, to the last decimal, never through a float: 0.1 + 0.2 is no question here."""
    prices = read_prices(HEAD + '  - {from: 2026-01-01, prompt: 0.300001, cached: "0.1", completion: 0.70}')
    assert prices.models["m"][0].rate == Rate(300_001, 100_000, 700_000, 700_000, 0)
    assert (prices.currency, prices.request_fee) == ("EUR", RequestFee.METERED)


def test_a_price_begins_at_midnight_of_the_lists_zone() -> None:
    """Berlin's midnight is 23:00 of the day before in UTC, 22:00 in summer."""
    text = "time_zone: Europe/Berlin\n" + HEAD
    text += "  - {from: 2026-01-01, prompt: 1, completion: 1}\n  - {from: 2026-07-01, prompt: 2, completion: 2}"
    entries = read_prices(text).models["m"]
    assert [iso_utc(entry.from_ms) for entry in entries] == ["2025-12-31T23:00:00Z", "2026-06-30T22:00:00Z"]


def test_what_is_left_out_has_a_default() -> None:
    """A cached token costs what any does, a reasoning token what completion does, a request nothing."""
    prices = read_prices(HEAD + "  - {from: 2026-01-01, prompt: 2, completion: 3}")
    assert prices.models["m"][0].rate == Rate(2_000_000, 2_000_000, 3_000_000, 3_000_000, 0)


GOOD = "  - {from: 2026-01-01, prompt: 1, completion: 1}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEAD + GOOD + GOOD, "list.yaml:5: m: two prices begin on 2026-01-01; they overlap"),
        (HEAD + GOOD + GOOD.replace("2026", "2025"), "list.yaml:5: m: the price from 2025-01-01 comes after a later"),
        (HEAD + GOOD.replace("prompt: 1", "prompt: -1"), "list.yaml:4: prompt: a price is not negative"),
        (
            HEAD + GOOD.replace("prompt: 1", "prompt: 1, cached: 1.1"),
            "list.yaml:4: m: a cached prompt token costs more",
        ),
        (HEAD + GOOD.replace("prompt: 1", "promt: 1"), "list.yaml:4: m: 'promt' is not known; from, prompt"),
        (HEAD + GOOD.replace("prompt: 1", "prompt: 0.0000001"), "list.yaml:4: prompt: '0.0000001' has 7 decimals"),
        (HEAD + GOOD.replace("prompt: 1", "prompt: 1e-3"), "list.yaml:4: prompt: '1e-3' is no plain decimal"),
        (HEAD + GOOD.replace("prompt: 1", "prompt: 2000000"), "list.yaml:4: m: a price is above 1,000,000 units"),
        (HEAD + GOOD.replace("2026-01-01", "2026-1-1"), "list.yaml:4: from: a date is written 2026-11-22"),
        (HEAD + GOOD.replace("2026-01-01", "2026-02-30"), "list.yaml:4: from: day is out of range"),
        (HEAD + "  - {prompt: 1, completion: 1}", "list.yaml:4: m: from is missing"),
        (HEAD + "    - {from: 2026-01-01, prompt: 1}", "list.yaml:4: m: completion is missing"),
        (HEAD + GOOD + "  m:\n" + GOOD, "list.yaml:5: models: 'm' is there twice"),
        (HEAD + "    prompt: 1", "list.yaml:4: m: a model has a list of prices"),
        (HEAD.replace("EUR", "Euro") + GOOD, "list.yaml:1: currency: a currency is an ISO 4217 code"),
        ("models:\n  m:\n" + GOOD, "list.yaml:1: currency is missing"),
        ("currency: EUR", "list.yaml:1: models is missing"),
        ("time_zone: Mars\n" + HEAD + GOOD, "list.yaml:1: time_zone: unknown time zone 'Mars'"),
        ("request_fee: some\n" + HEAD + GOOD, "list.yaml:1: request_fee: 'some' is none of metered, all"),
        ("surprise: 1\n" + HEAD + GOOD, "list.yaml:1: the file: 'surprise' is not known"),
        ("a: [", "list.yaml:1: no YAML"),
        ("", "list.yaml:1: the file"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(text: str, said: str) -> None:
    """File, line, what, and what instead."""
    with pytest.raises(PriceListError) as raised:
        read_prices(text, "list.yaml")
    assert any(line.startswith(said) for line in str(raised.value).splitlines()), raised.value


def test_everything_wrong_is_said_at_once() -> None:
    """Three mistakes, three lines, in the order of the file."""
    text = "currency: x\nmodels:\n  m:\n  - {from: never, prompt: 1, completion: 1}\n  n: 3\n"
    with pytest.raises(PriceListError) as raised:
        read_prices(text, "f")
    assert [line.split(" ")[0] for line in str(raised.value).splitlines()] == ["f:1:", "f:4:", "f:5:"]


def test_a_list_is_known_by_its_bytes() -> None:
    """Another price is another digest; the same text has the same one."""
    one, two = (read_prices(HEAD + GOOD.replace("prompt: 1", f"prompt: {price}")).digest for price in (1, 2))
    assert one != two
    assert len(one) == 64


def test_the_example_list_is_one() -> None:
    """kong/prices.yaml reads, and prices the example's model."""
    example = load_prices(Path(__file__).resolve().parents[3] / "kong" / "prices.yaml")
    assert example.entry_at("deepseek-r1", 1_790_000_000_000) is not None


def test_a_list_that_is_not_there_says_so(tmp_path: Path) -> None:
    """With the option that names one."""
    with pytest.raises(PriceListError, match="--prices"):
        load_prices(tmp_path / "none.yaml")

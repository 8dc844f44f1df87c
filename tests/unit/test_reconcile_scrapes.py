"""Scrapes: what they tell of a span, and when they cannot tell."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from kong_plugins.adapters.engine_metrics import (
    EngineMetricsError,
    EngineScraper,
    engine_address,
    parse_scrapes,
)
from kong_plugins.application.reconcile_scrapes import (
    ALWAYS,
    EngineSpan,
    Place,
    Scrape,
    Tokens,
    engine_span,
    lives_of,
)

RECORDED = Path(__file__).parents[1] / "data" / "vllm" / "main"


def scrape(
    at: int, tokens: int, *, life: str = "a", born: int | None = None, engine: str = "e", rank: str = "0"
) -> Scrape:
    return Scrape(engine, "m", rank, life, at, born, 10 * tokens, tokens)


def span(scrapes: list[Scrape], start: int, end: int) -> EngineSpan:
    found = engine_span(lives_of(scrapes), start, end)
    assert found is not None
    return found


def recorded(name: str) -> str:
    answer = (RECORDED / f"{name}.resp").read_text(errors="replace")
    return answer[answer.index("# HELP") :]


def test_a_recorded_page_is_one_scrape() -> None:
    """Counters, when they began, and finished requests by reason, of a real vLLM's page."""
    (found,) = parse_scrapes(recorded("30-metrics-before-abort"), "http://e", 7)
    assert (found.model, found.rank, found.at_us, found.tokens) == ("deepseek-r1", "0", 7, Tokens(6860, 856))
    assert (found.cached, found.finished["stop"], found.finished["length"]) == (3072, 23, 5)
    assert found.born_us == 1795355448502881
    assert found.life == parse_scrapes(recorded("70-metrics-end"), "http://other:1", 8)[0].life


def test_ranks_of_one_page_are_apart() -> None:
    """Data parallel: a series for each rank, of every model."""
    page = "".join(
        f'vllm:{name}_total{{engine="{rank}",model_name="{model}"}} {value}\n'
        for model, rank, value in (("m", 0, 5), ("m", 1, 7), ("lora", 0, 2))
        for name in ("prompt_tokens", "generation_tokens")
    )
    found = {(each.model, each.rank): each.prompt for each in parse_scrapes(page, "http://e", 1)}
    assert found == {("m", "0"): 5, ("m", "1"): 7, ("lora", "0"): 2}


@pytest.mark.parametrize("page", ["", "<html>", 'vllm:prompt_tokens_total{engine="0"} 1\n', 'x{a="'])
def test_another_page_is_no_scrape(page: str) -> None:
    """An error that says what is missing, never zero tokens."""
    with pytest.raises(EngineMetricsError):
        parse_scrapes(page, "http://e", 1)


def test_a_life_is_told_by_when_its_counters_began() -> None:
    """By the counter's own birth under any address; a process's start may be two engines', so with the address."""
    counters = "vllm:prompt_tokens_total 1\nvllm:generation_tokens_total 1\n"
    own = counters + "vllm:prompt_tokens_created 1.5\n"
    process = counters + "process_start_time_seconds 1.5\n"
    one, other = (parse_scrapes(own, engine, 1)[0] for engine in ("http://a", "http://b"))
    assert (one.life, one.born_us) == (other.life, 1_500_000)
    one, other = (parse_scrapes(process, engine, 1)[0] for engine in ("http://a", "http://b"))
    assert one.life != other.life
    assert other.born_us == 1_500_000
    assert parse_scrapes(counters, "http://a", 1)[0].born_us is None


def test_an_engine_that_is_away_is_a_failure_of_its_own() -> None:
    """It is named with the reason; whoever scrapes several goes on with the others."""
    scraper = EngineScraper("http://127.0.0.1:9/v1/", "http://127.0.0.1:9")
    assert scraper.engines == ("http://127.0.0.1:9",)
    assert scraper.scrape(1) == []
    assert "http://127.0.0.1:9/metrics" in scraper.failures["http://127.0.0.1:9"]
    with pytest.raises(ValueError, match="http://127"):
        engine_address("redis://x")


def test_a_span_is_the_difference_of_two_scrapes() -> None:
    """The last ones before its start and before its end; nothing in between is made up."""
    found = span([scrape(10, 1), scrape(20, 3), scrape(30, 7), scrape(40, 9)], 25, 39)
    assert (found.tokens, found.from_us, found.to_us) == (Tokens(40, 4), 20, 30)
    assert found.place(21, 29) is Place.INSIDE
    assert found.place(29, 31) is Place.CROSSING
    assert found.place(31, 35) is Place.AFTER
    assert found.place(12, 19) is Place.BEFORE


def test_an_engine_that_began_within_the_span_began_at_zero() -> None:
    """Its birth stands for the scrape that nobody made."""
    found = span([scrape(30, 7, born=20)], 10, 40)
    assert (found.tokens, found.from_us) == (Tokens(70, 7), 20)
    assert found.place(12, 19) is Place.INSIDE, "it cannot have counted that: the books have it too much"


def test_an_engine_that_began_before_the_first_scrape_is_unknown_until_then() -> None:
    """What it counted before cannot be told apart from the day before."""
    found = span([scrape(20, 7, born=5), scrape(30, 9, born=5)], 10, 40)
    assert found.tokens == Tokens(20, 2)
    assert found.place(12, 19) is Place.BEFORE


@pytest.mark.parametrize("born", [24, None])
def test_a_restart_loses_what_was_counted_since_the_last_scrape(born: int | None) -> None:
    """The new life counts whole. Between the old one's last scrape and its end nobody knows; a birth bounds that."""
    life = "b" if born else "a"
    found = span(
        [scrape(10, 4), scrape(20, 5), scrape(30, 3, life=life, born=born), scrape(40, 4, life=life, born=born)], 10, 40
    )
    assert found.tokens == Tokens(50, 5)
    assert found.place(12, 21) is Place.CROSSING
    assert found.place(21, 23) is (Place.BETWEEN if born else Place.CROSSING)
    assert found.place(25, 29) is (Place.INSIDE if born else Place.CROSSING)
    assert found.place(32, 38) is Place.INSIDE


def test_a_restart_of_one_of_two_engines_leaves_the_others_events_unsure() -> None:
    """An event does not say which engine ran it."""
    other = [scrape(at, at, engine="f", life="f") for at in (10, 20, 30, 40)]
    found = span([*other, scrape(10, 4), scrape(20, 5), *(scrape(at, 1, life="b", born=25) for at in (30, 40))], 10, 40)
    assert found.tokens == Tokens(10 * (30 + 1 + 1), 30 + 1 + 1)
    assert found.place(21, 24) is Place.CROSSING
    assert found.place(26, 38) is Place.INSIDE


def test_an_engine_that_is_gone_while_others_are_scraped_is_over() -> None:
    """It leaves a doubt until the next scrape of the others, not for ever."""
    other = [scrape(at, at, engine="f", life="f") for at in (10, 20, 30, 40)]
    found = span([*other, scrape(10, 4), scrape(20, 5)], 10, 40)
    assert found.place(22, 24) is Place.CROSSING
    assert found.place(31, 38) is Place.INSIDE


def test_a_gap_in_the_scrapes_of_one_life_loses_nothing() -> None:
    """The scraper was away for long: the counters went on."""
    found = span([scrape(10, 4, born=1), scrape(900, 50, born=1)], 500, 1000)
    assert (found.tokens, found.from_us) == (Tokens(460, 46), 10)
    assert found.place(20, 30) is Place.INSIDE


def test_without_two_scrapes_there_is_nothing_to_tell() -> None:
    """One scrape of counters of unknown age, or none within the day."""
    assert engine_span(lives_of([scrape(20, 7)]), 10, 40) is None
    assert engine_span(lives_of([scrape(5, 7), scrape(50, 9)]), 10, 40) is None
    assert engine_span(lives_of([]), 10, 40) is None


def test_an_engine_that_nobody_scraped_in_time_makes_all_of_it_unsure() -> None:
    """It lived, and was first scraped after the span."""
    other = [scrape(at, at, engine="f", life="f") for at in (10, 20, 30, 40)]
    found = span([*other, scrape(50, 9, born=5)], 10, 40)
    assert found.place(22, 24) is Place.CROSSING
    assert found.unsure == ((-ALWAYS, ALWAYS),) or (5, ALWAYS) in found.unsure


def test_the_days_of_a_life_add_up() -> None:
    """Where one day ends the next begins: no token is in both, none in neither."""
    scrapes = [scrape(at, at // 3, born=2) for at in range(5, 100, 7)]
    cuts = [0, 24, 48, 72, 100]
    days = [span(scrapes, start, end) for start, end in pairwise(cuts)]
    assert sum(day.tokens.completion for day in days) == span(scrapes, 0, 100).tokens.completion
    assert [day.to_us for day in days[:-1]] == [day.from_us for day in days[1:]]

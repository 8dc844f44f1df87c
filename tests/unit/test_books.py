"""Books are sums over events, each once."""

from __future__ import annotations

import json

import pytest

from kong_plugins.adapters.engine_metrics import EngineMetricsError, parse_counters
from kong_plugins.application.books import sum_events
from kong_plugins.application.ports import OutboxEntry
from kong_plugins.domain.events import ADJUSTMENT_TYPE, EVENT_TYPE, REVERSAL_TYPE
from kong_plugins.domain.windows import FixedWindow, RollingWindow, TokenBucket, Unit, describe, parse_description

DATA = {"tenant": "t", "prompt": 10, "completion": 5, "cached": 4, "outcome": "completed", "evidence": "exact"}


def entry(event_id: str, kind: str = EVENT_TYPE, posted: int = 15, **data: object) -> OutboxEntry:
    event = {"type": kind, "data": data or DATA}
    return OutboxEntry("1-0", event_id, json.dumps(event).encode(), (("daily", posted),) if posted else ())


def test_an_event_that_comes_twice_is_summed_once() -> None:
    """Two entries of one id: one request, one posting, one duplicate."""
    books = sum_events([entry("a"), entry("b"), entry("a")])
    assert (books.requests, books.prompt, books.completion, books.cached, books.duplicates) == (2, 20, 10, 8, 1)
    assert books.posted == {("t", "daily"): 30}


def test_what_is_taken_back_is_subtracted_and_money_is_no_tokens() -> None:
    """A reversal before its request, and a credit: what stands is one request."""
    taken = {name: DATA[name] for name in ("tenant", "prompt", "completion", "cached")}
    reversal, credit = entry("reversal:a", REVERSAL_TYPE, -15, **taken), entry("c", ADJUSTMENT_TYPE, 0, tenant="t")
    books = sum_events([reversal, entry("a"), entry("b"), credit])
    assert (books.requests, books.prompt, books.completion, books.cached) == (2, 10, 5, 4)
    assert (books.posted, books.tenants) == ({("t", "daily"): 15}, {"t": 15})


def test_counters_are_summed_over_models_and_ranks() -> None:
    """A page with two engines: their tokens together."""
    page = (
        'vllm:prompt_tokens_total{engine="0"} 10\nvllm:prompt_tokens_total{engine="1"} 5\n'
        'vllm:generation_tokens_total{engine="0"} 7\nvllm:request_success_total{finished_reason="stop"} 2\n'
    )
    counters = parse_counters(page)
    assert (counters.prompt, counters.completion, counters.cached, counters.requests) == (15, 7, 0, 2)


def test_a_page_without_the_counters_is_no_engine() -> None:
    """Somebody else's metrics page is an error, not zero tokens."""
    with pytest.raises(EngineMetricsError, match="vllm:prompt_tokens_total"):
        parse_counters("up 1\n")


@pytest.mark.parametrize(
    "window", [FixedWindow(Unit.MONTH, "Europe/Berlin", 31), RollingWindow(3600), TokenBucket(60)], ids=describe
)
def test_a_window_can_be_read_back_from_its_words(window: FixedWindow | RollingWindow | TokenBucket) -> None:
    """`quota grant` posts to the very window that `quota show` named."""
    assert parse_description(describe(window)) == window

"""The bench's own arithmetic: percentiles, rates, shares, the books, and what table and chart show of them."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vllm_bench.chart import series, svg, ticks
from vllm_bench.figures import added_interval, cell_row, paired_row, percentile, ratio_row, spread, token_gap
from vllm_bench.load import Cell, Run
from vllm_bench.prompts import chat_body, texts
from vllm_bench.reconcile import Asked, balance
from vllm_bench.replicas import PROMPT_TOKENS, WAYS, replicas_config
from vllm_bench.table import cells_table, markdown, summary
from vllm_bench.wire import Reply

from kong_plugins.adapters.engine_metrics import EngineCounters
from kong_plugins.adapters.openai_wire import WireRules, parse
from kong_plugins.application.ports import OutboxEntry
from kong_plugins.domain.demand import Endpoint
from kong_plugins.token_quota.config import parse_config


def reply(first: float = 0.1, completion: int = 11, **more: object) -> Reply:
    return Reply(200, first, first + 0.5, first + 0.6, 100, completion, **more)  # type: ignore[arg-type]


def test_percentiles_are_values_that_were_measured() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [percentile(values, share) for share in (0, 20, 21, 50, 95, 100)] == [1.0, 1.0, 2.0, 3.0, 5.0, 5.0]
    with pytest.raises(ValueError, match="0 values"):
        percentile([], 50)


@given(st.lists(st.floats(0, 1e6), min_size=1), st.integers(1, 100))
def test_a_percentile_leaves_at_most_its_rest_above(values: list[float], share: int) -> None:
    found = percentile(values, share)
    assert found in values
    assert 100 * sum(value <= found for value in values) >= share * len(values)
    assert 100 * sum(value < found for value in values) < share * len(values)


def test_what_is_not_known_does_not_count_as_nothing() -> None:
    """A failed request has no first token; as 0 it would make the median better."""
    assert spread([None, 0.2, None, 0.2], 1000) == {"p50": 200.0, "p95": 200.0, "p99": 200.0}
    assert spread([None]) is None
    assert token_gap(reply(completion=11)) == pytest.approx(0.05)
    assert token_gap(reply(completion=1)) is None


def test_a_cell_counts_tokens_of_good_answers_over_the_whole_time() -> None:
    replies = [reply(), reply(completion=21), Reply(error="503 full", first_s=0.001)]
    row = cell_row(Cell(3, 1), Run(replies, 2.0, 0.25, 3))
    assert (row["output_tokens_per_s"], row["requests_per_s"], row["requests"]) == (16.0, 1.0, 3)
    assert row["failures"] == {"503 full": 1}
    assert row["first_token_ms"]["p50"] == 100.0


def test_added_time_compares_like_with_like() -> None:
    """A pair with a failure is left out on both sides."""
    direct = [reply(0.100), reply(0.200), reply(0.900)]
    through = [reply(0.102), reply(0.203), Reply(error="gone")]
    row = paired_row(Cell(1, 3), direct, through)
    assert (row["pairs"], row["added_p50_ms"], row["failures"]) == (2, 2.0, {"gone": 1})


def test_added_time_says_how_sure_it_is() -> None:
    """Where all pairs say the same nothing is in doubt; where they scatter, the interval holds the difference."""
    assert added_interval([(0.1, 0.102)] * 50) == (2.0, 2.0)
    low, high = added_interval([(0.1, 0.1 + n / 1000) for n in range(21)])
    assert low < 10.0 < high
    assert added_interval([(0.1, 0.1 + n / 1000) for n in range(21)]) == (low, high)


def test_a_ratio_is_of_medians() -> None:
    def rows(*rates: float) -> list[dict[str, object]]:
        return [{"concurrency": 200, "output_tokens_per_s": rate} for rate in rates]

    row = ratio_row(rows(100.0, 90.0, 10.0), rows(81.0, 99.0, 20.0))
    assert row["percent_of_direct"] == 90.0
    row = ratio_row(rows(100.0, 100.0, 100.0), rows(97.0, 99.0, 101.0))
    assert (row["percent_by_turn"], row["percent_mean"]) == ([97.0, 99.0, 101.0], 99.0)
    assert row["percent_standard_error"] == 1.15  # 2 / sqrt(3)


def test_prompts_share_what_they_should_and_nothing_else() -> None:
    first, second = texts(100, 90, "s", "1"), texts(100, 90, "s", "2")
    (shared, own), (other_shared, other) = next(first), next(second)
    assert shared == other_shared
    assert (len(shared.split()), len(own.split())) == (90, 10)
    assert len({own, other, next(first)[1]}) == 3
    assert next(texts(100, 0, "s", "1"))[0] == ""
    many = texts(100, 90, "s", "1", prefixes=3)
    assert {next(many)[0] for _ in range(50)} > {shared}
    assert len({next(many)[0] for _ in range(50)}) == 3
    assert [message["role"] for message in chat_body("", "x", 4)["messages"]] == ["user"]


def test_replicas_are_told_apart_by_what_is_shared_and_by_nothing_after_it() -> None:
    """Two questions behind one beginning go the same way, and so the header scatters beginnings, not requests."""
    config = replicas_config(["http://127.0.0.1:1/v1", "http://127.0.0.1:2/v1"])
    services = {service["name"]: service for service in config["services"]}
    assert set(WAYS) <= set(services)
    (quota,) = (row["config"] for row in services["header"]["plugins"] if row["name"] == "token-quota")
    rules = parse_config({"ledger_url": "redis://127.0.0.1/0", **quota}, {}).sharing
    source = texts(PROMPT_TOKENS, 90, "s", "1", prefixes=2)
    keys: dict[str, set[bytes | None]] = {}
    for _ in range(20):
        shared, own = next(source)
        request = parse(Endpoint.CHAT, json.dumps(chat_body(shared, own, 4)).encode(), WireRules(context_tokens=8192))
        keys.setdefault(shared, set()).add(rules.prefix_key("salt", request))
    assert [len(found) for found in keys.values()] == [1, 1]
    assert len(set.union(*keys.values())) == 2


def bill(identity: str, prompt: int, completion: int, cached: int = 0) -> OutboxEntry:
    data = {"prompt": prompt, "completion": completion, "cached": cached, "evidence": "exact"}
    return OutboxEntry("1", identity, json.dumps({"data": data}).encode(), ())


ZERO = EngineCounters(0, 0, 0, 0)
ASKED = [
    Asked("whole", "a", 1, Reply(200, prompt=10, completion=5, request_id="1")),
    Asked("choices", "a", 2, Reply(200, prompt=10, completion=8, request_id="2")),
    Asked("left", "a", 1, Reply(200, prompt=10, completion=3, request_id="3", left=True)),
]
BILLS = [bill("1", 10, 5), bill("2", 10, 8), bill("3", 10, 4)]


def test_books_balance_up_to_what_is_explained() -> None:
    """A prompt once more for the second choice; one token that came after its client had left."""
    row = balance(ASKED, BILLS, ZERO, EngineCounters(40, 18, 0, 3))
    assert row["unexplained"] == []
    assert (row["prompt_counted_again_for_choices"], row["generated_after_clients_left"]) == (10, 1)


@pytest.mark.parametrize(
    ("bills", "engine"),
    [
        (BILLS[:2], (40, 18)),  # a request nobody billed
        ([*BILLS, BILLS[0]], (40, 18)),  # billed twice
        ([bill("1", 10, 6), *BILLS[1:]], (40, 19)),  # not what its answer said
        ([bill("1", 10, 5, cached=8), *BILLS[1:]], (40, 18)),
        ([*BILLS[:2], bill("3", 10, 2)], (40, 18)),  # less than its client saw
        (BILLS, (41, 18)),  # a prompt token too many
        (BILLS, (40, 16)),  # billed what was not generated
    ],
)
def test_any_other_difference_is_named(bills: list[OutboxEntry], engine: tuple[int, int]) -> None:
    assert balance(ASKED, bills, ZERO, EngineCounters(*engine, 0, 3))["unexplained"]


def test_the_table_and_the_chart_show_every_cell() -> None:
    run = Run([reply()], 1.0, 0.1, 1)
    rows = [
        {"kind": "cell", "engine": "tp2", "way": way, **cell_row(Cell(streams, 1), run)}
        for streams in (1, 200)
        for way in ("direct", "kong")
    ]
    lines = cells_table(rows).splitlines()
    assert len(lines) == 2 + 4
    assert len({len(line) for line in lines}) == 1
    assert set(series(rows, lambda row: row["output_tokens_per_s"])) == {
        "tp2 direct, 0 % shared",
        "tp2 kong, 0 % shared",
    }
    drawn = svg(rows, "two cards & a <note>")
    root = ElementTree.fromstring(drawn)
    assert len(root.findall("{http://www.w3.org/2000/svg}circle")) == 8
    assert "http" not in drawn.replace("http://www.w3.org/2000/svg", "")
    assert "FAILED step: why" in summary([{"kind": "failed", "step": "step", "error": "why"}])
    assert markdown(["a"], [["bb"]]).splitlines() == ["| a  |", "|----|", "| bb |"]
    assert ticks(3, 60) == [5, 10, 20, 50]

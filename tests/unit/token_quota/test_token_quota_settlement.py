"""token-quota's log phase: what the tap saw goes into the ledger once, with one event."""

from __future__ import annotations

import gc
import json
import logging
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import gevent
import pytest
from scripted_kong import Bench, ScriptedKong, budget, chat, tap_table

from kong_plugins.billing_events import plugin as billing_events

ROOMY = {"budgets": [budget(limit=100_000)]}
ABORTED = {"ended": False}
BEFORE_HEADERS = {"ended": False, "status": 499, "upstream_status": "-"}


def test_real_usage_replaces_the_hold_in_one_call() -> None:
    """One get; committed is the usage, nothing is held, and the event has figures, evidence and no key."""
    bench = Bench(**ROOMY)
    admitted = bench.access()
    usage = {"prompt": 12, "completion": 40, "cached": 8, "reasoning": 19}
    kong = bench.log(admitted, usage=usage, evidence="exact", finish="stop", engine_id="chatcmpl-1")
    assert kong.calls == ["ctx.shared.get usage_tap"]
    assert (bench.committed(), bench.held()) == (52, 0)
    (event,) = bench.events()
    assert (event["specversion"], event["id"], event["subject"]) == ("1.0", f"{1:032x}", "tenant_a")
    assert event["time"] == "2025-11-22T12:00:01.500Z"
    data = event["data"]
    assert {k: data[k] for k in usage} == usage
    assert (data["evidence"], data["outcome"], data["credential"]) == ("exact", "completed", "0123456789abcdef")
    assert (data["service"], data["route"], data["model"]) == ("deepseek-r1", "v1", "deepseek-r1")
    assert not [value for value in data.values() if isinstance(value, float)]


def test_a_repeated_log_changes_nothing() -> None:
    """Kong may run it again, and billing-events runs it too."""
    bench = Bench(**ROOMY)
    admitted = bench.access()
    for completion in (40, 9_000):
        bench.log(admitted, usage={"prompt": 12, "completion": completion}, evidence="exact")
    assert bench.committed() == 52
    assert len(bench.events()) == 1


ENDINGS: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "aborted stream": (
        {**ABORTED, "usage": {"prompt": 9, "completion": 5}, "evidence": "continuous"},
        14,
        "continuous",
        "aborted",
    ),
    "usage seen, then left": (
        {**ABORTED, "usage": {"prompt": 9, "completion": 5}, "evidence": "exact"},
        14,
        "exact",
        "completed",
    ),
    "engine said 400": ({"status": 400, "upstream_status": "400"}, 0, "exact", "failed"),
    "engine gone": ({"status": 502, "upstream_status": "502, 502", "source": "error"}, 0, "exact", "failed"),
    "another plugin answered": ({"status": 200, "source": "exit", "upstream_status": None}, 0, "exact", "failed"),
    "error event in the stream": (
        {"error": True, "usage": {"prompt": 9, "completion": 5}, "evidence": "continuous"},
        14,
        "continuous",
        "failed",
    ),
    "more than was held": (
        {"usage": {"prompt": 9, "completion": 70_000}, "evidence": "exact"},
        70_009,
        "exact",
        "completed",
    ),
    "large integers as floats": (
        {"usage": {"prompt": 9.0, "completion": 5.0}, "evidence": "exact"},
        14,
        "exact",
        "completed",
    ),
}


@pytest.mark.parametrize("case", ENDINGS)
def test_each_ending_is_charged_by_its_evidence(case: str) -> None:
    """What the engine said is posted as it is; where it never generated, nothing."""
    tap, charged, evidence, outcome = ENDINGS[case]
    bench = Bench(**ROOMY)
    bench.log(bench.access(chat(stream=True)), **tap)
    (event,) = bench.events()
    assert (bench.committed(), bench.held()) == (charged, 0)
    assert (event["data"]["evidence"], event["data"]["outcome"]) == (evidence, outcome)


@pytest.mark.parametrize(("policy", "evidence"), [("prompt", "tokenized"), ("hold", "held"), ("none", "held")])
@pytest.mark.parametrize("tap", [ABORTED, BEFORE_HEADERS])
def test_usage_nobody_saw_is_charged_by_policy(policy: str, evidence: str, tap: dict[str, Any]) -> None:
    """An aborted whole answer shows none: its counted prompt, its hold, or nothing."""
    bench = Bench(**ROOMY, unknown_usage=policy, tokenizers={"deepseek-r1": "deepseek-r1"}, chat_template="deepseek_r1")
    admitted = bench.access()
    held = bench.held()
    bench.log(admitted, **tap)
    # "How many?" is 3 tokens; nobody is charged for what a template may add.
    assert bench.committed() == {"prompt": 3, "hold": held, "none": 0}[policy]
    (event,) = bench.events()
    assert (event["data"]["evidence"], event["data"]["outcome"]) == (evidence, "aborted")


def test_generated_text_without_usage_is_counted() -> None:
    """A stream that carried no usage: prompt and text by the model's tokenizer."""
    bench = Bench(**ROOMY, tokenizers={"deepseek-r1": "deepseek-r1"}, chat_template="deepseek_r1")
    bench.log(bench.access(chat(stream=True)), text="Hello! Hello!", text_bytes=13, finish="stop")
    (event,) = bench.events()
    assert (event["data"]["prompt"], event["data"]["completion"]) == (3, 4)
    assert (event["data"]["evidence"], event["data"]["outcome"]) == ("tokenized", "completed")


COUNTED = {"tokenizers": {"deepseek-r1": "deepseek-r1"}, "chat_template": "deepseek_r1"}


@pytest.mark.parametrize("policy", ["prompt", "hold", "none"])
@pytest.mark.parametrize("phase", ["token-quota", "billing-events"])
def test_text_after_a_first_usage_is_charged_too(policy: str, phase: str) -> None:
    """Anthropic's streams tell the prompt first and the completion last: who leaves in between pays for what came,
    whichever plugin's log phase comes first."""
    bench = Bench(**ROOMY, unknown_usage=policy, **COUNTED)
    admitted = bench.access(chat(stream=True))
    tap = {**ABORTED, "usage": {"prompt": 9, "completion": 0, "cached": 4}, "text": "Hello! Hello!", "text_bytes": 13}
    if phase == "billing-events":
        billing = billing_events.Plugin({"ledger_url": "redis://127.0.0.1/0"}, bench.parts)
        ScriptedKong(usage_tap=tap_table(admitted, **tap)).run(billing.log)
    bench.log(admitted, **tap)
    (event,) = bench.events()
    assert bench.committed() == 13
    assert {k: event["data"][k] for k in ("prompt", "completion", "cached")} == {
        "prompt": 9,
        "completion": 4,
        "cached": 4,
    }
    assert (event["data"]["evidence"], event["data"]["outcome"]) == ("tokenized", "aborted")


@pytest.mark.parametrize("policy", ["prompt", "none"])
def test_a_stream_without_usage_is_not_free_to_leave(policy: str) -> None:
    """Text that passed is charged under every policy: `none` is for answers of which nobody saw anything."""
    bench = Bench(**ROOMY, unknown_usage=policy, **COUNTED)
    bench.log(bench.access(chat(stream=True)), **ABORTED, text="Hello! Hello!", text_bytes=13)
    assert bench.committed() == 7


def test_text_beyond_what_was_kept_is_charged() -> None:
    """The tap keeps a beginning, here cut within a character, and the length: the rest counts as the beginning did."""
    bench = Bench(**ROOMY, **COUNTED)
    kept = ("Hello! " * 100).encode() + "é".encode()[:1]
    bench.log(bench.access(chat(stream=True)), **ABORTED, text=kept, text_bytes=10 * len(kept))
    (event,) = bench.events()
    assert 2_000 <= event["data"]["completion"] <= 2_100
    bench.log(bench.access(chat(stream=True)), **ABORTED, text_bytes=50)
    assert bench.events()[1]["data"]["completion"] == 50


@pytest.mark.parametrize(("policy", "charged"), [("prompt", 13), ("hold", 13), ("none", 0)])
def test_what_nobody_can_count_is_charged_at_its_bound(policy: str, charged: int) -> None:
    """No tokenizer, or the body forgotten: a client cannot make its requests free by choosing what is not counted."""
    bench = Bench(**ROOMY, unknown_usage=policy)
    admitted = bench.access(chat(model="unheard-of", stream=True))
    prompt_bound = admitted.decision["log"]["bound"][0]
    bench.log(admitted, **ABORTED, text="Hello! Hello!", text_bytes=13)
    (event,) = bench.events()
    assert (event["data"]["prompt"], event["data"]["completion"]) == ((prompt_bound if charged else 0), charged)
    assert (bench.held(), event["data"]["evidence"]) == (0, "held")


def test_a_bound_beyond_what_a_ledger_takes_is_charged_as_far_as_it_goes() -> None:
    """No limit, no context length, thousands of choices: the hold is settled all the same."""
    bench = Bench(unknown_usage="hold")
    body = {"model": "unheard-of", "prompt": ["x"] * 2_000, "n": 8, "max_tokens": 2**24}
    bench.log(bench.access(body, path="/v1/completions"), **ABORTED)
    (event,) = bench.events()
    assert event["data"]["prompt"] + event["data"]["completion"] == 2**32


@pytest.mark.parametrize("tap", [None, [], {"v": 2}, {"v": 1, "status": 401, "source": "exit"}])
def test_refused_requests_have_nothing_to_settle(tap: Any) -> None:
    """401 before us, our own 429, or no tap at all: one get, no event, no error."""
    bench = Bench(**ROOMY)
    kong = ScriptedKong(usage_tap=tap).run(bench.plugin.log)
    assert kong.calls == ["ctx.shared.get usage_tap"]
    assert bench.events() == []


def test_a_settlement_outlives_an_outage(caplog: pytest.LogCaptureFixture) -> None:
    """The ledger is away when a request ends: posted, once, when it is back."""
    bench = Bench(**ROOMY)
    admitted = bench.access()
    bench.ledger.cut = True
    bench.log(admitted, usage={"prompt": 1, "completion": 2}, evidence="exact")
    gevent.sleep(0)
    assert bench.committed() == 0
    bench.ledger.cut = False
    assert bench.parts.replayed(timeout_s=5)
    assert (bench.committed(), len(bench.events())) == (3, 1)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_a_settlement_outlives_the_process() -> None:
    """The process ends while the ledger is away, without hanging; the next one posts it."""
    bench = Bench(**ROOMY)
    admitted = bench.access()
    bench.ledger.cut = True
    bench.log(admitted, usage={"prompt": 1, "completion": 2}, evidence="exact")
    bench.plugin.close()
    bench.ledger.cut = False
    assert bench.committed() == 0
    billing_events.Plugin({"ledger_url": "redis://127.0.0.1/0"}, bench.parts)
    assert bench.parts.replayed(timeout_s=5)
    assert (bench.committed(), len(bench.events())) == (3, 1)


def test_a_settlement_that_cannot_be_kept_is_in_the_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither ledger nor spool: what to do is said at once, and when the process ends the event stands in the log."""
    monkeypatch.setenv("TOKEN_QUOTA_SPOOL_DIR", str(tmp_path / "spool"))
    bench = Bench(**ROOMY)
    admitted = bench.access()
    bench.ledger.cut = True
    shutil.rmtree(tmp_path / "spool")
    bench.log(admitted, usage={"prompt": 1, "completion": 2}, evidence="exact")
    (kept,) = [record.getMessage() for record in caplog.records if "kept in memory" in record.getMessage()]
    assert "TOKEN_QUOTA_SPOOL_DIR" in kept
    bench.plugin.close()
    (lost,) = [record.getMessage() for record in caplog.records if "not posted" in record.getMessage()]
    assert '"completion":2' in lost


def test_one_settlement_that_cannot_be_made_stops_no_other() -> None:
    """A ledger that answers one request's settlement with an error of its own, for ever."""
    bench = Bench(**ROOMY)
    bad, good = bench.access(), bench.access()
    bench.ledger.refuses = {bad.decision["log"]["hold"]}
    bench.log(bad, usage={"prompt": 100, "completion": 0}, evidence="exact")
    bench.ledger.cut = True
    bench.log(good, usage={"prompt": 1, "completion": 2}, evidence="exact")
    bench.ledger.cut = False
    with gevent.Timeout(5):
        while bench.committed() == 0:
            gevent.sleep(0.01)
    assert bench.committed() == 3
    bench.ledger.refuses = set()
    assert bench.parts.replayed(timeout_s=5)
    assert bench.committed() == 103


def test_closing_drains_what_waits_for_its_next_try() -> None:
    """The ledger is back, the pause is not over, the process ends: the settlement is made."""
    bench = Bench(**ROOMY)
    admitted = bench.access()
    bench.ledger.cut = True
    bench.log(admitted, usage={"prompt": 1, "completion": 2}, evidence="exact")
    gevent.sleep(0)
    bench.ledger.cut = False
    bench.plugin.close()
    assert bench.committed() == 3


def test_a_count_holds_up_no_log_phase_and_is_drained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of clients may leave at once: each is counted in its turn, with time to build a tokenizer, and before
    the process ends."""
    bench = Bench(**ROOMY, **COUNTED)
    asked: list[Any] = []

    def slow(_model: str, texts: Any, deadline_s: float | None = None) -> int:
        asked.append(deadline_s)
        gevent.sleep(0.01)
        return len(texts[0])

    monkeypatch.setattr(bench.plugin._counter, "count", slow)
    for _ in range(50):
        admitted = bench.access()
        ScriptedKong(usage_tap=tap_table(admitted, **ABORTED)).run(bench.plugin.log)
    assert bench.committed() == 0
    bench.plugin.close()
    assert (len(bench.events()), bench.held()) == (50, 0)
    assert {event["data"]["evidence"] for event in bench.events()} == {"tokenized"}
    assert min(asked) >= 5


def test_closing_drains_what_is_queued() -> None:
    """The last row of a process goes: a settlement under way is still made."""
    bench = Bench(**ROOMY)
    admitted = bench.access()
    bench.ledger.cut = True
    bench.log(admitted, usage={"prompt": 1, "completion": 2}, evidence="exact")
    bench.ledger.cut = False
    bench.plugin.close()
    assert bench.committed() == 3


def test_a_hold_nobody_settles_expires_with_a_whole_event() -> None:
    """No log phase ever came: the event has the tenant, the model and the outcome, and charges nothing."""
    bench = Bench(**ROOMY, hold_ttl_s=60, event_headers=["X-Team"])
    bench.access(headers={"x-team": "red"})
    bench.clock.us += 10 * 86_400_000_000
    bench.ledger.expire()
    (event,) = bench.events()
    assert (event["data"]["outcome"], event["data"]["evidence"], event["data"]["model"]) == (
        "expired",
        "held",
        "deepseek-r1",
    )
    assert event["data"]["attributes"] == {"x-team": "red"}
    assert bench.committed() == 0


def test_a_tenant_without_budgets_is_billed_without_a_limit() -> None:
    """No line to hold, still one event."""
    bench = Bench()
    bench.log(bench.access(), usage={"prompt": 1, "completion": 2}, evidence="exact")
    (event,) = bench.events()
    assert (event["data"]["prompt"], event["data"]["completion"]) == (1, 2)


@pytest.mark.parametrize("messages", [1, 500])
def test_prompts_under_way_take_no_more_memory_than_they_are_counted_for(messages: int) -> None:
    """A request read takes many times its body: counted by bodies alone, the bound on memory would be none."""
    bench = Bench(budgets=[budget(limit=10**9)])
    body = json.dumps(chat(messages=[{"role": "user", "content": "x"}] * messages))
    kept = []
    bench.parts.prompts.remember = lambda _id, size, count: kept.append((size, count))  # type: ignore[method-assign]
    bench.access(body.encode())
    gc.collect()
    tracemalloc.start()
    try:
        for _ in range(100):
            bench.access(body.encode())
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        counted = sum(size for size, _ in kept)
        kept.clear()
        gc.collect()
        taken = before - tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert taken <= counted <= 3 * taken


def test_prompts_under_way_are_forgotten_at_the_end() -> None:
    """Nothing of a request stays in memory after its log phase."""
    bench = Bench(**ROOMY)
    admitted = bench.access()
    assert bench.parts.prompts.bytes_held > 0
    bench.log(admitted, usage={"prompt": 1, "completion": 2}, evidence="exact")
    assert bench.parts.prompts.bytes_held == 0

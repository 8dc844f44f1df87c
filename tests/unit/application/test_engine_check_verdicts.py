"""Verdicts over what no engine at hand shows: half-counted streams, salts that are ignored, pages of another engine."""

from __future__ import annotations

from dataclasses import replace

from kong_plugins.application.engine_check import Answer, Counters, Grade, Observations, Usage, Verdict, verdicts

WHOLE = Answer(200, Usage(400, 8, 0), "id")
AGAIN = Answer(200, Usage(400, 8, 384), "id")
STREAM = Answer(200, Usage(400, 8, 384), "id", text_events=7, counted_events=7)
GOOD = Observations(
    models=("deepseek-r1",),
    max_model_len=8192,
    sent_id="id",
    whole=WHOLE,
    again=AGAIN,
    other_salt=WHOLE,
    asked=STREAM,
    unasked=STREAM,
    priority=WHOLE,
    before=Counters(0, 0, 0),
    after=Counters(2400, 48, 1152),
)


def found(seen: Observations) -> dict[str, Verdict]:
    """The verdicts that are not fine, by check."""
    return {verdict.check: verdict for verdict in verdicts(seen) if verdict.grade is not Grade.FINE}


def test_an_engine_that_has_everything_is_fine() -> None:
    assert found(GOOD) == {}


def test_usage_on_some_chunks_is_not_usage_on_every_chunk() -> None:
    """A stream that is left between two counts cannot be billed to the token."""
    half = replace(STREAM, counted_events=6)
    assert found(replace(GOOD, asked=half)).keys() == {"usage on every chunk"}
    assert found(replace(GOOD, unasked=half)).keys() == {"usage without being asked"}


def test_a_salt_that_changes_nothing_lets_tenants_share_prefixes() -> None:
    assert found(replace(GOOD, other_salt=AGAIN))["cache_salt"].seen == "another salt still finds 384 cached tokens"


def test_without_details_and_without_hits_both_flags_are_named() -> None:
    blank = Answer(200, Usage(400, 8), "id")
    seen = replace(GOOD, whole=blank, again=blank, after=Counters(2400, 48, 0))
    assert found(seen)["cached_tokens"].fix == "vLLM: --enable-prefix-caching and --enable-prompt-tokens-details"
    hits = found(replace(seen, after=Counters(2400, 48, 384)))["cached_tokens"]
    assert hits.fix == "vLLM: --enable-prompt-tokens-details; SGLang: --enable-cache-report"


def test_counters_that_moved_less_than_the_answers_said_are_another_engines() -> None:
    """More is other traffic; less cannot be."""
    assert found(replace(GOOD, after=Counters(9999, 999, 1152))) == {}
    assert "metrics" in found(replace(GOOD, after=Counters(2399, 48, 1152)))
    assert "metrics" in found(replace(GOOD, before=None, after=None, metrics_error="no /metrics"))


def test_a_refused_priority_and_a_refused_salt_are_told_with_their_words() -> None:
    refused = Answer(400, error="extra fields not permitted")
    seen = found(replace(GOOD, priority=refused, other_salt=refused))
    assert seen.keys() == {"priority", "cache_salt"}
    assert "extra fields" in seen["priority"].seen

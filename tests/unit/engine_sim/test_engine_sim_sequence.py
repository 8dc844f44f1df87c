"""One sequence: where it ends, what of it is readable, what of it is reasoning."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kong_plugins.engine_sim.answers import SCRIPT, PlannedAnswer, answer_for
from kong_plugins.engine_sim.sequence import Generation, Kind, SamplingParams, Step
from kong_plugins.engine_sim.service import merged
from kong_plugins.engine_sim.vocabulary import r1_vocabulary

VOCABULARY = r1_vocabulary()
PROMPT = VOCABULARY.encode("<｜User｜>hello<｜Assistant｜>")


def run(params: SamplingParams, room: int = 8000, reasons: bool = False, form: str = "scripted") -> list[Step]:
    answer = answer_for(VOCABULARY, form, PROMPT, 0, reasons=reasons, json_object=False)
    generation = Generation(VOCABULARY, PROMPT, params, answer, index=0, room=room, reasons=reasons)
    steps = []
    while not generation.finish:
        steps.append(generation.step())
    return steps


def test_the_script_is_the_recorded_answer() -> None:
    """40 tokens, the last one the end of sentence; 19 are reasoning; the text is whole."""
    steps = run(SamplingParams())
    assert "".join(step.text for step in steps) == SCRIPT
    assert (steps[-1].completion, steps[-1].reasoning, steps[-1].finish) == (40, 19, "stop")


@given(st.integers(1, 60))
def test_a_limit_is_a_length(limit: int) -> None:
    """At most as many tokens as asked; ``length`` unless the sentence ended first."""
    steps = run(SamplingParams(max_tokens=limit))
    assert len(steps) == min(limit, 40)
    assert steps[-1].finish == ("length" if limit < 40 else "stop")


def test_the_models_length_is_a_limit_too() -> None:
    assert len(run(SamplingParams(max_tokens=100, ignore_eos=True), room=50)) == 50


def test_an_ignored_end_is_generated_and_counted_but_ends_nothing() -> None:
    steps = run(SamplingParams(max_tokens=45, ignore_eos=True))
    assert steps[39].token == VOCABULARY.eos
    assert (steps[39].text, steps[39].finish) == ("", None)
    assert [step.text for step in steps[40:]] == [" the"] * 5


def test_a_least_length_puts_the_end_off() -> None:
    """No end of sentence before ``min_tokens``; the tokens in its place are counted."""
    steps = run(SamplingParams(min_tokens=44, max_tokens=60))
    assert VOCABULARY.eos not in [step.token for step in steps[:44]]


@given(st.text(alphabet="fine12 requests🎉令牌 budget", min_size=1, max_size=4), st.booleans())
def test_no_character_of_a_stop_string_is_ever_sent(stop: str, include: bool) -> None:
    """The deltas are the text up to the first stop string (or with it), however tokens cut it."""
    steps = run(SamplingParams(stop=(stop,), include_stop=include))
    at = SCRIPT.find(stop)
    text = "".join(step.text for step in steps)
    if at < 0:
        assert text == SCRIPT
    else:
        assert text == SCRIPT[: at + len(stop) * include]
        assert (steps[-1].finish, steps[-1].stop_reason) == ("stop", stop)


def test_a_stop_token_ends_without_its_text() -> None:
    fine = VOCABULARY.encode(" fine")[0]
    steps = run(SamplingParams(stop_token_ids=frozenset({fine})))
    assert (steps[-1].token, steps[-1].text, steps[-1].stop_reason) == (fine, "", fine)


def test_a_character_is_sent_when_its_last_byte_is_there() -> None:
    """🎉 is three tokens: two empty deltas, then the character; a stream cut between them never shows half of it."""
    texts = [step.text for step in run(SamplingParams())]
    at = texts.index(" 🎉")
    assert texts[at - 2 : at] == ["", ""]
    cut = run(SamplingParams(max_tokens=at))
    assert "".join(step.text for step in cut) == SCRIPT[: SCRIPT.index(" 🎉")]


def test_thinking_marks_are_neither_reasoning_nor_content() -> None:
    kinds = [step.kind for step in run(SamplingParams(), reasons=True)]
    assert kinds == [Kind.MARKER, *[Kind.REASONING] * 19, Kind.MARKER, *[Kind.CONTENT] * 19]
    assert {step.kind for step in run(SamplingParams())} == {Kind.CONTENT}


def test_a_strong_bias_wins_every_token_and_a_weak_one_none() -> None:
    """The recorded logits leave 45.25 between the scripted token and the rest."""
    assert [step.token for step in run(SamplingParams(logit_bias={VOCABULARY.eos: 100.0}))] == [VOCABULARY.eos]
    assert len(run(SamplingParams(logit_bias={VOCABULARY.eos: 40.0}))) == 40


@given(st.integers(1, 200), st.integers(0, 2**64 - 1))
def test_a_planned_answer_is_exactly_as_long_as_told(tokens: int, seed: int) -> None:
    """Its only end of sentence is its last token, and thinking is closed where it was opened."""
    plan = PlannedAnswer(VOCABULARY, tokens, seed)
    said = [plan.following(0, position, True) for position in range(tokens)]
    assert said.index(VOCABULARY.eos) == tokens - 1
    assert said.count(VOCABULARY.think) == said.count(VOCABULARY.end_think) == (tokens >= 8)


@pytest.mark.parametrize("reasons", [True, False])
def test_joined_steps_say_the_same_with_fewer_chunks(reasons: bool) -> None:
    """Text by kind, last counts and the finish survive; markers and kinds are never joined into one."""
    steps = run(SamplingParams(), reasons=reasons)
    joined = merged(steps, SamplingParams())
    assert len(joined) == (4 if reasons else 1)
    for kind in Kind:
        texts = ["".join(step.text for step in some if step.kind is kind) for some in (steps, joined)]
        assert texts[0] == texts[1]
    assert (joined[-1].completion, joined[-1].finish) == (40, "stop")
    assert merged(steps, SamplingParams(token_ids=True)) == steps

"""Bodies and flags: what is refused, in whose words, and what becomes of the rest."""

from __future__ import annotations

from typing import Any

import pytest

from kong_plugins.engine_sim.errors import ApiError
from kong_plugins.engine_sim.faults import DieHow, Faults, changed
from kong_plugins.engine_sim.fields import Fields
from kong_plugins.engine_sim.options import EngineOptions, parse_arguments
from kong_plugins.engine_sim.prompting import chat_messages, check_prompt_length, content_text, sampling_params
from kong_plugins.engine_sim.vocabulary import r1_vocabulary, render_chat


@pytest.mark.parametrize(("value", "read"), [(5, 5), ("5", 5), (5.0, 5), (True, 1), (None, None)])
def test_an_integer_is_read_as_leniently_as_vllm_does(value: object, read: int | None) -> None:
    assert Fields({"n": value}).integer("n") == read


@pytest.mark.parametrize("value", ["x", 1.5, [1], {}, float("inf"), float("nan")])
def test_what_is_no_integer_is_a_400_that_names_the_field(value: object) -> None:
    with pytest.raises(ApiError) as refused:
        Fields({"max_tokens": value}).integer("max_tokens")
    assert (refused.value.status, refused.value.param) == (400, "body.max_tokens")


@pytest.mark.parametrize(
    "body",
    [
        {"n": 0},
        {"n": 10**9},
        {"temperature": -0.5},
        {"temperature": []},
        {"stop": ""},
        {"stop": [1]},
        {"stop": 7},
        {"stop_token_ids": [{}]},
        {"stop_token_ids": 3},
        {"logit_bias": {"x": 1}},
        {"logit_bias": []},
        {"min_tokens": -1},
        {"min_tokens": 11},
        {"ignore_eos": "perhaps"},
        {"response_format": "json"},
    ],
)
def test_bad_sampling_is_a_400_and_never_a_500(body: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as refused:
        sampling_params(Fields(body), 10)
    assert refused.value.status == 400


@pytest.mark.parametrize("limit", [0, -5])
def test_no_output_at_all_is_refused(limit: int) -> None:
    with pytest.raises(ApiError, match=f"max_tokens must be at least 1, got {limit}"):
        sampling_params(Fields({}), limit)


@pytest.mark.parametrize(
    ("prompt", "limit", "fits"),
    [(99, None, True), (100, None, False), (90, 10, True), (91, 10, False), (101, 1, False)],
)
def test_a_prompt_must_leave_room_for_its_answer(prompt: int, limit: int | None, fits: bool) -> None:
    if fits:
        check_prompt_length([1] * prompt, limit, 100)
    else:
        with pytest.raises(ApiError, match="maximum context length is 100 tokens"):
            check_prompt_length([1] * prompt, limit, 100)


@pytest.mark.parametrize(
    "messages",
    [
        "hi",
        [],
        ["hi"],
        [{"content": "x"}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        [{"role": "assistant", "content": None, "tool_calls": [{}]}],
        [{"role": "assistant", "content": None, "tool_calls": 1}],
    ],
)
def test_messages_that_cannot_be_rendered_are_a_400(messages: object) -> None:
    with pytest.raises(ApiError) as refused:
        chat_messages(messages)
    assert refused.value.status == 400


def test_text_parts_are_joined_by_newlines() -> None:
    assert content_text([{"type": "text", "text": "a"}, "b", {"type": "input_text", "text": "c"}]) == "a\nb\nc"
    assert content_text(None) == ""


def test_the_template_renders_a_whole_conversation() -> None:
    """Systems first and joined, old thinking dropped, tool calls and outputs between their marks."""
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "system", "content": "A"},
        {"role": "developer", "content": "B"},
        {"role": "assistant", "content": "<think>no</think>yes"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "1"},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "done"},
        {"role": "user", "content": "more"},
    ]
    assert render_chat(chat_messages(messages)) == (
        "<｜begin▁of▁sentence｜>A\n\nB<｜User｜>hi<｜Assistant｜>yes<｜end▁of▁sentence｜>"
        "<｜Assistant｜><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{}\n```"
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>"
        "<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>1<｜tool▁output▁end｜><｜tool▁output▁begin｜>2<｜tool▁output▁end｜>"
        "<｜tool▁outputs▁end｜>done<｜end▁of▁sentence｜><｜User｜>more<｜Assistant｜>"
    )


def test_a_conversation_that_ends_in_tool_output_has_no_assistant_mark() -> None:
    assert render_chat([{"role": "tool", "content": "1"}]).endswith("<｜tool▁output▁end｜><｜tool▁outputs▁end｜>")


def test_tokens_go_to_text_and_back() -> None:
    """Special tokens keep their names, unknown ids are nothing, names are the vocabulary's own."""
    vocabulary = r1_vocabulary()
    text = "<｜begin▁of▁sentence｜><｜User｜>Hello 令牌 🎉<think>"
    assert vocabulary.text(vocabulary.encode(text)) == text
    assert vocabulary.raw(10**9) == b""
    assert vocabulary.names(vocabulary.encode("<think>a b")) == ["<think>", "a", "Ġb"]
    assert [vocabulary.is_special(token) for token in (0, 1, 2, 128798, 19923)] == [True, True, True, False, False]


def test_vllms_flags_are_understood() -> None:
    line = (
        "--port 9000 --served-model-name m --api-key k --max-model-len 10 --block-size 16 --max-num-seqs 3 "
        "--reasoning-parser deepseek_r1 --enable-force-include-usage --enable-prompt-tokens-details "
        "--enable-request-id-headers --no-enable-prefix-caching --answer 12 --die-after-tokens 4 --die-how eof"
    )
    options = parse_arguments(line.split())
    expected = EngineOptions(
        port=9000,
        served_model_name="m",
        api_key="k",
        max_model_len=10,
        block_size=16,
        max_num_seqs=3,
        reasoning_parser="deepseek_r1",
        enable_force_include_usage=True,
        enable_prompt_tokens_details=True,
        enable_request_id_headers=True,
        enable_prefix_caching=False,
        answer="12",
        faults=Faults(die_after_tokens=4, die_how=DieHow.EOF),
    )
    assert options == expected


@pytest.mark.parametrize(
    "arguments", ["--answer often", "--answer 0", "--reasoning-parser other", "--max-num-seqs 0", "--status 200"]
)
def test_a_flag_that_cannot_be_is_a_usage_error(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse_arguments(arguments.split())
    assert stopped.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_a_fingerprint_tells_configurations_apart() -> None:
    assert EngineOptions().fingerprint == EngineOptions().fingerprint
    assert EngineOptions().fingerprint != EngineOptions(block_size=16).fingerprint


def test_faults_change_field_by_field() -> None:
    faults = changed(Faults(status=503, requests=2), {"requests": None, "die_how": "reset"})
    assert faults == Faults(status=503, die_how=DieHow.RESET)


def test_an_engine_can_be_told_to_report_no_usage() -> None:
    """argparse's own boolean options read every `--no-…` as False: this one has to be a flag."""
    assert parse_arguments(["--no-usage"]).faults.no_usage
    assert not parse_arguments([]).faults.no_usage

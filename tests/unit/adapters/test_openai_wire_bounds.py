"""Bounds and counts against the model's own tokenizer: never too low, whatever the text."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from kong_plugins.adapters.openai_wire import (
    DEEPSEEK_R1,
    WireRules,
    count_prompt,
    parse,
    texts_for_counting,
    usage_bound,
)
from kong_plugins.adapters.tokenizers import encoding_for
from kong_plugins.adapters.tokenizers.deepseek import tokenizer_file
from kong_plugins.domain.demand import Endpoint

R1 = WireRules(allowance=DEEPSEEK_R1, default_max_tokens=1)
GENERIC = WireRules(default_max_tokens=1)
Count = Callable[[str], int]


@pytest.fixture(scope="module")
def oracle() -> Count:
    tokenizer = Tokenizer.from_file(str(tokenizer_file()))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.fixture(scope="module")
def count_text() -> Count:
    return encoding_for("deepseek-r1")


def r1_prompt(messages: list[dict[str, str]], think: bool) -> str:
    """What R1's template makes of a conversation of text: system texts first, a mark before each turn."""
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    turns = ""
    for message in messages:
        if message["role"] == "user":
            turns += "<｜User｜>" + message["content"]
        elif message["role"] == "assistant":
            turns += "<｜Assistant｜>" + message["content"].split("</think>")[-1] + "<｜end▁of▁sentence｜>"
    return "<｜begin▁of▁sentence｜>" + system + turns + "<｜Assistant｜>" + ("<think>\n" if think else "")


_texts = st.text(max_size=60) | st.text("あ゛一 \n\t1aZ.\x00\u0301\u3097<>｜", max_size=60) | st.sampled_from(
    ["", "Hello", "<｜User｜>", "</think>", "\\u0041", '"', "a\\n" * 9, "\U0001f468\u200d\U0001f469", " " * 40]
)  # fmt: skip
_messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": _texts}),
    min_size=1,
    max_size=6,
)


@settings(deadline=None)
@given(_messages, st.booleans(), st.booleans())
def test_no_conversation_takes_more_than_its_count_or_its_bound(
    oracle: Count, count_text: Count, messages: list[dict[str, str]], think: bool, ascii_only: bool
) -> None:
    body = json.dumps({"model": "m", "messages": messages}, ensure_ascii=ascii_only, separators=(",", ":")).encode()
    real = oracle(r1_prompt(messages, think))
    request = parse(Endpoint.CHAT, body, R1)
    counted = count_prompt(request, R1, count_text)
    assert real <= counted <= request.demand.prompt_bound
    assert real <= parse(Endpoint.CHAT, body, GENERIC).demand.prompt_bound


@settings(deadline=None)
@given(
    st.lists(_texts.filter(bool), min_size=1, max_size=5), st.sampled_from([Endpoint.COMPLETIONS, Endpoint.EMBEDDINGS])
)
def test_no_plain_prompts_take_more_than_their_count_or_their_bound(
    oracle: Count, count_text: Count, prompts: list[str], endpoint: Endpoint
) -> None:
    name = "prompt" if endpoint is Endpoint.COMPLETIONS else "input"
    request = parse(endpoint, json.dumps({"model": "m", name: prompts}).encode(), R1)
    real = sum(oracle(prompt) + 1 for prompt in prompts)  # with a start token each
    assert real <= count_prompt(request, R1, count_text) <= request.demand.prompt_bound
    assert request.demand.prompts == len(prompts)


_schemas = st.recursive(
    st.text(max_size=12) | st.integers() | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


def nested(depth: int) -> Any:
    return [nested(depth - 1), 1, 2, 3] if depth else 0


@settings(deadline=None)
@example(schema="é" * 300, escape=True, indent=None)
@example(schema="一" * 300, escape=True, indent=None)
@example(schema=nested(55), escape=False, indent=4)
@example(schema=[0] * 300, escape=False, indent=4)
@given(schema=_schemas, escape=st.booleans(), indent=st.sampled_from([None, 2, 4]))
def test_tools_are_bounded_however_a_template_prints_them(
    oracle: Count, count_text: Count, schema: Any, escape: bool, indent: int | None
) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"x": schema}}}]
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "tools": tools}
    rules = replace(R1, tools_preamble=0)
    request = parse(Endpoint.CHAT, json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode(), rules)
    printed = json.dumps(tools, ensure_ascii=escape, indent=indent)
    twice = oracle(
        r1_prompt([{"role": "system", "content": printed * 2}, {"role": "user", "content": "hi"}], think=True)
    )
    assert twice <= count_prompt(request, rules, count_text) <= request.demand.prompt_bound


def test_tool_calls_and_their_results_are_bounded(oracle: Count, count_text: Count) -> None:
    arguments = json.dumps({"城市": ["北京"] * 20, "n": list(range(50))}, separators=(",", ":"))
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    request = parse(Endpoint.CHAT, json.dumps({"model": "m", "messages": messages}).encode(), R1)
    printed = json.dumps(json.loads(arguments), ensure_ascii=True)
    real = oracle(
        "<｜begin▁of▁sentence｜><｜User｜>weather?<｜Assistant｜><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function"
        f"<｜tool▁sep｜>weather\n```json\n{printed}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>"
        "<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>rain<｜tool▁output▁end｜><｜tool▁outputs▁end｜>"
    )
    assert real <= count_prompt(request, R1, count_text) <= request.demand.prompt_bound


def test_token_ids_are_their_own_count() -> None:
    request = parse(Endpoint.COMPLETIONS, b'{"model":"m","prompt":[[1,2,3],[4,5]]}', R1)
    assert count_prompt(request, R1, len) == 5 + 2  # and a start token each
    assert (request.demand.prompts, request.demand.choices) == (2, 2)


def test_a_media_part_counts_by_its_allowance_and_not_by_its_bytes() -> None:
    rules = WireRules(default_max_tokens=1, part_tokens={"image_url": 1000})
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 50_000}}
    body = {"model": "m", "messages": [{"role": "user", "content": [image, {"type": "text", "text": "what?"}]}]}
    bound = parse(Endpoint.CHAT, json.dumps(body).encode(), rules).demand.prompt_bound
    assert 1000 < bound < 1500


def test_texts_are_those_the_template_prints() -> None:
    body = {
        "model": "m",
        "system": "s",
        "max_tokens": 5,
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a\u00e9"}, "b"]},
            {"role": "user", "content": [{"type": "tool_result", "content": [{"type": "text", "text": "c"}]}]},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "d"}]},
        ],
    }
    request = parse(Endpoint.MESSAGES, json.dumps(body).encode(), R1)
    assert sorted(texts_for_counting(request)) == ["a\u00e9", "b", "c", "d", "s"]


@pytest.mark.parametrize(
    ("body", "rules", "prompt", "completion"),
    [
        ({"max_tokens": 10}, WireRules(context_tokens=8192), None, 10),
        ({"max_tokens": 10, "n": 3}, WireRules(context_tokens=8192), None, 30),
        ({"max_tokens": 10, "n": 2, "best_of": 5}, WireRules(context_tokens=8192), None, 50),
        ({}, WireRules(context_tokens=8192), None, 8192),
        ({"n": 64}, WireRules(context_tokens=8192), None, 64 * 8192),
        ({"max_tokens": 2**31 - 1}, WireRules(context_tokens=8192), None, 8192),
        ({}, WireRules(context_tokens=100), 100, 100),  # the body is longer than the context
    ],
)
def test_the_bound_is_the_prompt_and_every_choice_at_its_limit(
    body: dict[str, Any], rules: WireRules, prompt: int | None, completion: int
) -> None:
    chat = {"model": "m", "messages": [{"role": "user", "content": "hi there"}], **body}
    demand = parse(Endpoint.CHAT, json.dumps(chat).encode(), rules).demand
    bound = usage_bound(demand, rules)
    assert bound.completion == completion
    assert bound.prompt == (demand.prompt_bound if prompt is None else prompt)


def test_an_exact_count_and_a_clamp_lower_the_bound() -> None:
    rules = WireRules(context_tokens=8192)
    body = b'{"model":"m","messages":[{"role":"user","content":"hi"}],"n":2}'
    demand = parse(Endpoint.CHAT, body, rules).demand
    bound = usage_bound(demand, rules, prompt_tokens=5, max_tokens=100)
    assert (bound.prompt, bound.completion) == (5, 200)
    assert usage_bound(demand, rules, prompt_tokens=10**9).prompt == demand.prompt_bound


def test_several_prompts_are_generated_for_each() -> None:
    rules = WireRules(context_tokens=8192)
    body = b'{"model":"m","prompt":["a","b","c"],"n":2,"max_tokens":10}'
    demand = parse(Endpoint.COMPLETIONS, body, rules).demand
    assert (demand.prompts, demand.choices, usage_bound(demand, rules).completion) == (3, 6, 60)


def test_embeddings_generate_nothing() -> None:
    demand = parse(Endpoint.EMBEDDINGS, b'{"model":"m","input":"hi"}', WireRules()).demand
    assert usage_bound(demand, WireRules()).completion == 0

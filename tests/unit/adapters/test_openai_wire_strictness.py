"""Bad input: each is refused with a status and a field, and nothing that is refused would have been metered wrongly."""

from __future__ import annotations

import contextlib
import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kong_plugins.adapters.openai_wire import BadRequest, WireRules, check_media_type, parse
from kong_plugins.domain.demand import Endpoint

RULES = WireRules(context_tokens=8192)
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
PROMPT: dict[str, Any] = {"model": "m", "prompt": "hi"}


def _keys(count: int) -> bytes:
    return b"".join(b',"x%d":1' % n for n in range(count))


def refusal(endpoint: Endpoint, body: bytes | dict[str, Any], rules: WireRules = RULES) -> BadRequest:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(BadRequest) as caught:
        parse(endpoint, raw, rules)
    return caught.value


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "empty_body"),
        (b" ", "invalid_json"),
        (b'{"model": "m", "messages": [', "invalid_json"),
        (b'{"model":"m"} x', "invalid_json"),
        (b'{"model":"m"}{"model":"n"}', "invalid_json"),
        (b'[{"model":"m"}]', "invalid_json"),
        (b"null", "invalid_json"),
        (b'"model"', "invalid_json"),
        (b'{"model":"m","temperature":NaN}', "invalid_json"),
        (b'{"model":"m","temperature":-Infinity}', "invalid_json"),
        (b'{"model":"m","stop":[1,]}', "invalid_json"),
        (b'{"model":"m","n":01}', "invalid_json"),
        (b"{'model':'m'}", "invalid_json"),
        (b'{"model":"m"/**/}', "invalid_json"),
        (b'\xef\xbb\xbf{"model":"m"}', "invalid_json"),
        ('{"model":"m"}'.encode("utf-16"), "invalid_utf8"),
        ('{"model":"m"}'.encode("utf-16-le"), "invalid_json"),
        (b'{"model":"m","user":"\xff"}', "invalid_utf8"),
        (b'{"model":"m","user":"\xed\xa0\x80"}', "invalid_utf8"),
        (b'{"model":"m","user":"\\ud800"}', "invalid_json"),
        (b'{"model":"m","user":"a\x00b"}', "invalid_json"),
        (b'{"model":"m","metadata":' + b"[" * 100 + b"]" * 100 + b"}", "nested_too_deep"),
        (b'{"model":"m","metadata":' + b'{"a":' * 70 + b"1" + b"}" * 70 + b"}", "nested_too_deep"),
        (b'{"model":"m","metadata":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested_too_deep"),
    ],
)
def test_a_body_that_is_not_one_plain_json_object_is_a_400(body: bytes, code: str) -> None:
    error = refusal(Endpoint.CHAT, body)
    assert (error.status, error.code) == (400, code)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a","model":"b"}',
        b'{"max_tokens":1,"model":"a","max_tokens":9999}',
        b'{"stream":false , "x" : [1,{"a":2}] , "stream" : true}',
        b'{"n":1,"\\u006e":64}',
        b'{"a":1,"a":1}',
        b'{"a":"x","b":"y","a":"x"}',
        b'{"a":1,"b":2,"a":12}',
        b'{"a":12,"b":2,"a":1}',
    ],
)
def test_a_field_given_twice_is_a_400_whatever_its_spelling_and_values(body: bytes) -> None:
    assert refusal(Endpoint.CHAT, body).code == "duplicate_field"


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.tuples(st.text(max_size=4), _json), max_size=6), st.booleans(), st.randoms(use_true_random=False))
def test_duplicates_are_found_exactly(members: list[tuple[str, Any]], ascii_only: bool, rng: random.Random) -> None:
    """No object without a repeated name is refused for one, and none with a repeated name passes."""

    def space() -> str:
        return "".join(rng.choices(" \t\n\r", k=rng.randrange(3)))

    def write(value: Any) -> str:
        return json.dumps(value, ensure_ascii=ascii_only)

    text = ",".join(f"{space()}{write(k)}{space()}:{space()}{write(v)}{space()}" for k, v in members)
    body = f"{space()}{{{text or space()}}}{space()}".encode("utf-8", "surrogatepass")
    repeated = len({name for name, _ in members}) < len(members)
    assert (refusal(Endpoint.CHAT, body).code == "duplicate_field") is repeated


def test_nesting_is_measured_outside_of_strings_only() -> None:
    content = '[{"\\' * 500 + "]}" * 700
    parse(Endpoint.CHAT, json.dumps({**CHAT, "messages": [{"role": "user", "content": content}]}).encode(), RULES)


@pytest.mark.parametrize("value", [0, -1, -(10**30), 2**31, 10**30, 1.0, 5.5, 1e3, "5", True, False, [], {}])
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "n", "best_of"])
def test_counts_are_positive_json_integers(name: str, value: Any) -> None:
    error = refusal(Endpoint.CHAT, {**CHAT, name: value})
    assert error.status == 400
    assert error.param == name


@pytest.mark.parametrize("written", [b"1e3", b"1.0", b"1E0", b"10e-1"])
def test_an_integer_written_with_fraction_or_exponent_is_a_400(written: bytes) -> None:
    body = b'{"model":"m","prompt":"hi","max_tokens":' + written + b"}"
    assert refusal(Endpoint.COMPLETIONS, body).code == "invalid_type"


def test_the_largest_count_is_taken_and_the_next_is_not() -> None:
    taken = parse(Endpoint.CHAT, json.dumps({**CHAT, "max_tokens": 2**31 - 1}).encode(), RULES)
    assert taken.demand.max_tokens == 2**31 - 1
    assert "at most 2147483647" in refusal(Endpoint.CHAT, {**CHAT, "max_tokens": 2**31}).message


def test_choices_are_bounded_by_the_operator() -> None:
    rules = WireRules(context_tokens=8192, max_choices=8)
    assert refusal(Endpoint.CHAT, {**CHAT, "n": 64}, rules).param == "n"
    assert parse(Endpoint.CHAT, json.dumps({**CHAT, "n": 8}).encode(), rules).demand.choices == 8


@pytest.mark.parametrize("value", ["true", 1, 0, "", [], 1.0])
def test_stream_is_a_boolean(value: Any) -> None:
    assert refusal(Endpoint.CHAT, {**CHAT, "stream": value}).param == "stream"


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"stream": True, "stream_options": "usage"}, "stream_options"),
        ({"stream": True, "stream_options": []}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        (
            {"stream": True, "stream_options": {"continuous_usage_stats": "yes"}},
            "stream_options.continuous_usage_stats",
        ),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": False, "stream_options": {"include_usage": True}}, "stream_options"),
    ],
)
def test_stream_options_have_one_shape(options: dict[str, Any], param: str) -> None:
    assert refusal(Endpoint.CHAT, {**CHAT, **options}).param == param


@pytest.mark.parametrize("model", [None, 5, "", "m" * 257, "ü" * 129, "a\nb", "a\x00", ["m"]])
def test_the_model_is_a_short_printable_name(model: Any) -> None:
    assert refusal(Endpoint.CHAT, {**CHAT, "model": model}).param == "model"


def test_a_missing_model_is_a_400() -> None:
    error = refusal(Endpoint.CHAT, {"messages": CHAT["messages"]})
    assert (error.status, error.code, error.param) == (400, "missing_field", "model")


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"),
        ("hi", "messages"),
        ([], "messages"),
        (["hi"], "messages[0]"),
        ([{"content": "hi"}], "messages[0].role"),
        ([{"role": 5, "content": "hi"}], "messages[0].role"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": {"type": "text", "text": "x"}}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": [{"text": "x"}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [5]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "hologram", "hologram": "x"}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "video_url"}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "file"}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "image_embeds"}]}], "messages[0].content[0].type"),
    ],
)
def test_content_that_cannot_be_metered_is_a_400_that_names_its_place(messages: Any, param: str) -> None:
    assert refusal(Endpoint.CHAT, {**CHAT, "messages": messages}).param == param


@pytest.mark.parametrize(
    "prompt",
    [None, 5, [], [[]], ["a", 1], [1, "a"], [[1], "a"], [[1], 2], [-1], [1.5], [[1], [-2]], [True], {}, [None]],
)
def test_a_prompt_is_text_or_token_ids_never_a_mixture(prompt: Any) -> None:
    assert refusal(Endpoint.COMPLETIONS, {**PROMPT, "prompt": prompt}).param == "prompt"


def test_prompts_are_bounded_in_number() -> None:
    rules = WireRules(context_tokens=8192, max_prompts=3)
    assert refusal(Endpoint.COMPLETIONS, {**PROMPT, "prompt": ["a"] * 4}, rules).code == "too_many_prompts"
    assert parse(Endpoint.COMPLETIONS, b'{"model":"m","prompt":["a","b","c"]}', rules).demand.prompts == 3


@pytest.mark.parametrize(
    ("endpoint", "body", "param"),
    [
        (Endpoint.CHAT, {**CHAT, "chat_template": "{{ 'x' * 10000 }}"}, "chat_template"),
        (Endpoint.CHAT, {**CHAT, "use_beam_search": True}, "use_beam_search"),
        (Endpoint.CHAT, {**CHAT, "mm_processor_kwargs": {"num_crops": 100}}, "mm_processor_kwargs"),
        (Endpoint.CHAT, {**CHAT, "prompt": "x"}, "prompt"),
        (Endpoint.COMPLETIONS, {**PROMPT, "prompt_embeds": "AAAA"}, "prompt_embeds"),
        (Endpoint.COMPLETIONS, {**PROMPT, "messages": CHAT["messages"]}, "messages"),
        (Endpoint.EMBEDDINGS, {"model": "m", "input": "x", "messages": []}, "messages"),
        (Endpoint.EMBEDDINGS, {"model": "m", "input": "x", "padding": "max_length"}, "padding"),
        (Endpoint.RESPONSES, {"model": "m", "input": "x", "previous_response_id": "r"}, "previous_response_id"),
        (Endpoint.RESPONSES, {"model": "m", "input": "x", "conversation": "c"}, "conversation"),
        (Endpoint.RESPONSES, {"model": "m", "input": "x", "prompt": {"id": "p"}}, "prompt"),
        (Endpoint.RESPONSES, {"model": "m", "input": "x", "background": True}, "background"),
        (Endpoint.RESPONSES, {"model": "m", "input": [{"type": "item_reference", "id": "i"}]}, "input[0].type"),
        (Endpoint.RESPONSES, {"model": "m", "input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type"),
        (Endpoint.MESSAGES, {**CHAT, "max_tokens": 5, "mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        (Endpoint.MESSAGES, {**CHAT, "max_tokens": 5, "tools": [{"type": "bash_20250124"}]}, "tools[0].type"),
        (Endpoint.MESSAGES, CHAT, "max_tokens"),
        (
            Endpoint.MESSAGES,
            {**CHAT, "max_tokens": 5, "messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            "messages[0].content[0].type",
        ),
    ],
)
def test_what_brings_tokens_that_are_not_in_the_request_is_a_400(
    endpoint: Endpoint, body: dict[str, Any], param: str
) -> None:
    error = refusal(endpoint, body)
    assert (error.status, error.param) == (400, param)


@pytest.mark.parametrize("value", [None, False])
def test_a_refused_field_that_is_off_is_let_through(value: Any) -> None:
    parse(Endpoint.CHAT, json.dumps({**CHAT, "use_beam_search": value}).encode(), RULES)


def test_an_allowed_field_is_bounded_by_the_context() -> None:
    rules = WireRules(context_tokens=8192, allow=frozenset({"chat_template"}))
    body = json.dumps({**CHAT, "chat_template": "{{ 'x' * 10000 }}"}).encode()
    assert parse(Endpoint.CHAT, body, rules).demand.prompt_bound == 8192


def test_fields_are_allowed_only_where_the_context_bounds_them() -> None:
    with pytest.raises(ValueError, match="context_tokens"):
        WireRules(allow=frozenset({"chat_template"}))


def test_without_any_bound_on_the_completion_max_tokens_is_required() -> None:
    error = refusal(Endpoint.CHAT, CHAT, WireRules())
    assert (error.code, error.param) == ("missing_field", "max_tokens")
    assert refusal(Endpoint.CHAT, {**CHAT, "max_tokens": 2**24 + 1}, WireRules()).param == "max_tokens"


@pytest.mark.parametrize(
    ("endpoint", "body", "code"),
    [
        (Endpoint.CHAT, b'{"messages":[' + b'{"role":"user","content":""},' * 20_000 + b"{}]", "too_many_items"),
        (Endpoint.CHAT, b'{"messages":[{"role":"u","content":[' + b'"",' * 30_000 + b'""]}]', "too_many_items"),
        (Endpoint.CHAT, b'{"messages":[{"role":"u"' + _keys(30_000) + b"}]", "too_many_items"),
        (Endpoint.RESPONSES, b'{"input":[' + b"{}," * 30_000 + b"{}]", "too_many_items"),
        (Endpoint.COMPLETIONS, b'{"prompt":[' + b'"",' * 30_000 + b'""]', "too_many_prompts"),
        (Endpoint.COMPLETIONS, b'{"prompt":[' + b"[1]," * 30_000 + b"[1]]", "too_many_prompts"),
        (Endpoint.CHAT, b'{"prompt":1' + _keys(300), "too_many_fields"),
    ],
)
def test_what_would_hold_up_everyone_else_is_a_400(endpoint: Endpoint, body: bytes, code: str) -> None:
    assert refusal(endpoint, body + b',"model":"m"}').code == code


def test_a_value_that_indenting_would_blow_up_is_bounded_without_indenting_it() -> None:
    """Ten megabytes of brackets at the deepest nesting would print as gigabytes of spaces."""
    schema = b"[" * 50 + b"0," * 5_000_000 + b"0" + b"]" * 50
    body = b'{"model":"m","messages":[{"role":"user","content":"x"}],"documents":' + schema + b"}"
    assert parse(Endpoint.CHAT, body, WireRules(default_max_tokens=1)).demand.prompt_bound > 2_000_000_000


def test_a_million_token_ids_are_read_at_once() -> None:
    body = b'{"model":"m","prompt":[' + b"1," * 1_000_000 + b"1]}"
    assert parse(Endpoint.COMPLETIONS, body, RULES).prompt.token_ids == 1_000_001


def test_a_body_of_ten_megabytes_is_read_like_a_small_one() -> None:
    body = json.dumps({**CHAT, "messages": [{"role": "user", "content": "word " * 2_000_000}]}).encode()
    assert parse(Endpoint.CHAT, body, WireRules(default_max_tokens=5)).demand.prompt_bound >= 10_000_000
    assert parse(Endpoint.CHAT, body, RULES).demand.prompt_bound == 8192


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "GZIP", "gzip, identity", "identity, gzip"])
def test_a_compressed_body_is_a_415(encoding: str) -> None:
    with pytest.raises(BadRequest) as caught:
        check_media_type("application/json", encoding)
    assert (caught.value.status, caught.value.code) == (415, "unsupported_encoding")


@pytest.mark.parametrize(
    "content_type",
    [None, "", "text/plain", "multipart/form-data", "application/json; charset=utf-16", "application/jsonx", "json"],
)
def test_a_body_that_is_not_declared_as_json_is_a_415(content_type: str | None) -> None:
    with pytest.raises(BadRequest) as caught:
        check_media_type(content_type, None)
    assert (caught.value.status, caught.value.code) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "Application/JSON", 'application/json; charset="UTF-8"', "application/json;x=y"],
)
def test_json_in_utf8_is_taken_as_its_headers_may_say_it(content_type: str) -> None:
    check_media_type(content_type, None)
    check_media_type(content_type, "identity")


def test_a_refusal_does_not_repeat_what_the_client_sent() -> None:
    secret = "s3cret-prompt"
    for body in (
        f'{{"model":"m","messages":[{{"role":"user","content":"{secret}"}}],"n":"{secret}"}}',
        f'{{"model":"{secret}\\n"}}',
        f'{{"model":"m","messages":"{secret}"}}',
        f'{{"model":"m","messages":[{{"role":"user","content":"{secret}',
    ):
        assert secret not in refusal(Endpoint.CHAT, body.encode()).message


@given(st.binary(max_size=200))
def test_no_bytes_at_all_make_it_fail_otherwise(body: bytes) -> None:
    for endpoint in Endpoint:
        with pytest.raises(BadRequest):
            parse(endpoint, body, RULES)


VALID: dict[Endpoint, dict[str, Any]] = {
    Endpoint.CHAT: CHAT,
    Endpoint.COMPLETIONS: PROMPT,
    Endpoint.EMBEDDINGS: {"model": "m", "input": "hi"},
    Endpoint.RESPONSES: {"model": "m", "input": "hi"},
    Endpoint.MESSAGES: {**CHAT, "max_tokens": 5},
}
FIELDS = ["best_of", "documents", "input", "instructions", "max_output_tokens", "max_tokens", "messages", "model", "n"]
FIELDS += ["prompt", "stream", "stream_options", "suffix", "system", "text", "tool_choice", "tools"]
CONTENTS = _json | st.fixed_dictionaries({"role": st.just("user"), "content": _json})


@given(st.sampled_from(Endpoint), st.sampled_from(FIELDS), CONTENTS | st.lists(CONTENTS, max_size=2))
def test_a_valid_request_with_any_value_in_any_field_is_metered_or_refused(
    endpoint: Endpoint, field: str, value: Any
) -> None:
    body = json.dumps({**VALID[endpoint], field: value}).encode("utf-8", "surrogatepass")
    with contextlib.suppress(BadRequest):
        assert parse(endpoint, body, RULES).demand.prompt_bound > 0

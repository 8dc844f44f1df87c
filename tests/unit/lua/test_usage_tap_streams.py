"""usage-tap on answers no recording has: hostile values, odd framing, huge events, failures of its own."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from lua_replays import started, streamed

from kong_plugins.local_gateway.lua_host import LuaHost

JSON = "application/json"
USAGE = '{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}'
FINAL = f'data: {{"id":"c1","choices":[],"usage":{USAGE}}}\n\n'


def chunk(content: str, usage: str | None = None, index: int = 0, finish: str = "null") -> str:
    tail = "" if usage is None else f',"usage":{usage}'
    delta = json.dumps({"content": content}, ensure_ascii=False)
    return f'data: {{"id":"c1","choices":[{{"index":{index},"delta":{delta},"finish_reason":{finish}}}]{tail}}}\n\n'


def counts(prompt: int, completion: int) -> str:
    return json.dumps({"prompt_tokens": prompt, "completion_tokens": completion})


def tap_of(
    host: LuaHost, body: str | bytes, endpoint: str = "chat", *, eof: bool = True, **options: Any
) -> dict[str, Any]:
    request = started(host, endpoint, **options)
    raw = body.encode() if isinstance(body, str) else body
    assert streamed(host, request, [raw], eof=eof) == raw
    tap: dict[str, Any] = request.shared_get("usage_tap")
    return tap


def hidden(host: LuaHost, body: str, size: int | None = None, **options: Any) -> str:
    raw = body.encode()
    request = started(host, hide=True, **options)
    chunks = [raw] if size is None else [raw[i : i + size] for i in range(0, len(raw), size)]
    return streamed(host, request, chunks).decode()


@pytest.mark.parametrize(
    "value",
    [
        "null",
        "-1",
        "1.5",
        "1e3",
        '"5"',
        "0x10",
        "99999999999",
        "true",
        "[]",
        "{}",
        "[5]",
        "1" * 400,
        '"' + "9" * 5000 + '"',
        "NaN",
    ],
)
@pytest.mark.parametrize("field", ["prompt_tokens", "completion_tokens"])
def test_counts_that_cannot_be_are_not_believed(host: LuaHost, field: str, value: str) -> None:
    """A usage with a prompt or completion that is no plausible integer is no usage, in a body and in a stream."""
    other = "completion_tokens" if field == "prompt_tokens" else "prompt_tokens"
    usage = f'{{"{field}":{value},"{other}":4}}'
    assert "usage" not in tap_of(host, f'{{"choices":[],"usage":{usage}}}', content_type=JSON)
    tap = tap_of(host, f'data: {{"choices":[],"usage":{usage}}}\n\n')
    assert ("usage" in tap, tap.get("evidence")) == (False, None)


@pytest.mark.parametrize("usage", ["null", '"7"', "7", "[]", "[{}]", "{}", '{"prompt_tokens":', "}", ""])
def test_a_usage_that_is_no_object_is_no_usage(host: LuaHost, usage: str) -> None:
    """Null, strings, numbers, lists, cut and broken ones: bytes pass, nothing is believed."""
    assert "usage" not in tap_of(host, f'{{"id":"x","choices":[],"usage":{usage}}}', content_type=JSON)
    assert "usage" not in tap_of(host, f'data: {{"id":"x","choices":[],"usage":{usage}}}\n\n')


def test_parts_larger_than_their_whole_are_left_out(host: LuaHost) -> None:
    """Cached beyond the prompt and reasoning beyond the completion are dropped, the totals stay."""
    usage = (
        '{"prompt_tokens":7,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":8},'
        '"completion_tokens_details":{"reasoning_tokens":4}}'
    )
    assert tap_of(host, f'{{"usage":{usage}}}', content_type=JSON)["usage"] == {"prompt": 7, "completion": 3}


def test_only_the_top_level_usage_counts(host: LuaHost) -> None:
    """`usage` in a string, in a nested object, or below choices is text, not usage."""
    fake = '{"prompt_tokens":900,"completion_tokens":900}'
    body = json.dumps(
        {"id": "x", "meta": {"usage": json.loads(fake)}, "choices": [{"message": {"content": f'"usage":{fake}'}}]}
    )
    assert "usage" not in tap_of(host, body, content_type=JSON)
    assert tap_of(host, f'{{"a":{body},"usage":{USAGE}}}', content_type=JSON)["usage"] == {"prompt": 7, "completion": 3}
    assert tap_of(host, chunk(f'"usage":{fake}}}') + FINAL)["usage"] == {"prompt": 7, "completion": 3}


def test_a_megabyte_of_answer_is_not_kept(host: LuaHost) -> None:
    """Usage at the end of a 2 MB body in 4 KB chunks is found, and the scanner keeps no more than it was asked for."""
    body = json.dumps({"data": [{"embedding": [0.123456] * 1000}] * 200, "usage": {"prompt_tokens": 9}}).encode()
    request = started(host, "embeddings", stream=False, content_type=JSON)
    chunks = [body[i : i + 4096] for i in range(0, len(body), 4096)]
    tap = host.plugin("usage-tap", {})
    used = host.lua.eval(b"function() collectgarbage() collectgarbage() return collectgarbage('count') end")
    before = used()
    for piece in chunks[:-1]:
        assert request.body_filter(tap, piece, False) == piece
    assert used() - before < 200, "KiB held while 2 MB passed"
    request.body_filter(tap, chunks[-1], True)
    assert request.shared_get("usage_tap")["usage"] == {"prompt": 9, "completion": 0}


WHOLE_ANSWERS = {
    "chat": '{"id":"c","choices":[{"index":0,"message":{"role":"assistant","content":"TEXT"}}],"usage":USAGE}',
    "completions": '{"id":"c","choices":[{"index":0,"text":"TEXT"}],"usage":USAGE}',
    "responses": '{"output":[{"type":"message","content":[{"type":"output_text","text":"TEXT"}]}],"usage":RESPONSES}',
    "messages": '{"type":"message","content":[{"type":"text","text":"TEXT"}],"usage":RESPONSES}',
}


def whole_answer(endpoint: str, text: str) -> bytes:
    answer = WHOLE_ANSWERS[endpoint].replace("RESPONSES", '{"input_tokens":7,"output_tokens":3}')
    return answer.replace("USAGE", USAGE).replace("TEXT", text).encode()


@pytest.mark.parametrize("endpoint", WHOLE_ANSWERS)
def test_text_of_a_whole_answer_that_was_left_before_its_usage_is_kept(host: LuaHost, endpoint: str) -> None:
    """The text comes before the usage: a client that reads it and leaves has had it."""
    body = whole_answer(endpoint, "h\\u00e9llo " * 40)
    for kept in (body[: body.index(b'"usage"')], body[:-1]):
        tap = tap_of(host, kept, endpoint, content_type=JSON, eof=False)
        assert ("usage" in tap, "evidence" in tap) == (False, False)
        assert tap["text"] == "h\u00e9llo " * 40
        assert tap["text_bytes"] == len(tap["text"].encode())
    half = body[: body.index(b"llo") + 30]
    assert tap_of(host, half, endpoint, content_type=JSON, eof=False)["text_bytes"] > 20
    tap = tap_of(host, body, endpoint, content_type=JSON)
    assert (tap["usage"], tap["evidence"], "text" in tap) == ({"prompt": 7, "completion": 3}, "exact", False)


def test_a_whole_answer_without_usage_has_its_text(host: LuaHost) -> None:
    """An engine that tells no usage: the text is all there is to count."""
    body = '{"id":"c","choices":[{"message":{"content":"abc"}},{"message":{"reasoning":"de"}}]}'
    tap = tap_of(host, body, content_type=JSON)
    assert (tap["text"], tap["text_bytes"], tap["ended"]) == ("abcde", 5, True)


@pytest.mark.parametrize("size", [1_000, 65_534, 65_535, 65_536, 300_000])
@pytest.mark.parametrize("cut", [True, False])
def test_of_a_long_text_the_beginning_and_the_length_are_kept(host: LuaHost, size: int, cut: bool) -> None:
    """In 4 KB chunks, whole or cut: every byte is counted once, and enough is there to count tokens by."""
    body = whole_answer("chat", "x" * size)
    body = body[: body.index(b'"}}') + (0 if cut else 1)]
    request = started(host, stream=False, content_type=JSON)
    streamed(host, request, [body[i : i + 4096] for i in range(0, len(body), 4096)], eof=False)
    tap = request.shared_get("usage_tap")
    assert tap["text_bytes"] == size
    assert tap["text"] == "x" * len(tap["text"])
    assert len(tap["text"]) >= min(size, 65_534)


def test_each_prompt_of_several_is_counted(host: LuaHost) -> None:
    """A running usage of a completion with several prompts tells its own prompt; two choices share one."""

    def completion(index: int, prompt: int, done: int) -> str:
        return f'data: {{"choices":[{{"index":{index},"text":"a"}}],"usage":{counts(prompt, done)}}}\n\n'

    body = completion(0, 100, 1) + completion(1, 100, 2) + completion(3, 30, 4) + completion(2, 30, 1)
    body += completion(19_999, 5, 1) + completion(0, 100, 2)
    tap = tap_of(host, body, "completions", eof=False, choices_per_prompt=2)
    assert (tap["usage"], tap["evidence"]) == ({"prompt": 135, "completion": 10}, "continuous")
    tap = tap_of(host, body + FINAL + "data: [DONE]\n\n", "completions", choices_per_prompt=2)
    assert (tap["usage"], tap["evidence"]) == ({"prompt": 7, "completion": 3}, "exact")


def test_usage_of_a_cut_body_is_not_claimed(host: LuaHost) -> None:
    """A JSON body that ends before its last bracket has no usage, even when the usage was in it."""
    assert "usage" not in tap_of(host, f'{{"id":"x","usage":{USAGE}', content_type=JSON, eof=False)


def test_line_ends_comments_and_split_data_lines_are_read(host: LuaHost) -> None:
    """CRLF, comments, event and id fields, no space after `data:`, and a document over two data lines."""
    crlf = (": ping\n\n" + chunk("a", counts(7, 1)) + FINAL + "data: [DONE]\n\n").replace("\n", "\r\n")
    assert tap_of(host, crlf)["usage"] == {"prompt": 7, "completion": 3}
    odd = f'id: 1\nevent: x\ndata:{{"choices":[],\ndata: "usage":{USAGE}}}\n\n'
    tap = tap_of(host, odd)
    assert (tap["usage"], tap["evidence"]) == ({"prompt": 7, "completion": 3}, "exact")


def test_last_event_without_an_empty_line_counts_when_whole(host: LuaHost) -> None:
    """EOF ends an event whose document is complete."""
    assert tap_of(host, FINAL.rstrip("\n"))["evidence"] == "exact"
    assert "usage" not in tap_of(host, FINAL.rstrip("\n")[:-1])


def test_running_usage_ends_as_exact_only_when_the_engine_finished(host: LuaHost) -> None:
    """Usage in the finish chunk and [DONE] after it: final. Without [DONE], or after an error: a running one."""
    body = chunk("a", counts(7, 1)) + chunk("", counts(7, 2), finish='"stop"')
    assert tap_of(host, body)["evidence"] == "continuous"
    assert tap_of(host, body + "data: [DONE]\n\n")["evidence"] == "exact"
    assert tap_of(host, body + 'data: {"error":{"message":"x"}}\n\ndata: [DONE]\n\n')["evidence"] == "continuous"


def test_several_choices_are_summed(host: LuaHost) -> None:
    """Running usage is per choice: the prompt counts once, completions add up; a count that goes back is not."""
    body = chunk("a", counts(7, 1)) + chunk("b", counts(7, 4), 1) + chunk("a", counts(7, 2)) + chunk("a", counts(7, 1))
    tap = tap_of(host, body, eof=False)
    assert (tap["usage"], tap["choices"]) == ({"prompt": 7, "completion": 6}, {"0": 2, "1": 4})
    assert (tap["evidence"], tap["ended"]) == ("continuous", False)


def test_text_no_usage_covers_is_kept_and_forgotten(host: LuaHost) -> None:
    """Text before the only usage is there on an abort and gone after it; escapes and tool arguments are text too."""
    call = '{"index":0,"delta":{"tool_calls":[{"function":{"name":"f","arguments":"{\\"a\\":1}"}}]}}'
    body = chunk("h\u00e9\n") + 'data: {"choices":[{"index":0,"delta":{"content":"\\ud83d\\ude00"}}]}\n\n'
    body += f'data: {{"choices":[{call}]}}\n\n'
    text = 'h\u00e9\n😀f{"a":1}'
    tap = tap_of(host, body, eof=False)
    assert (tap["text"], tap["text_bytes"]) == (text, len(text.encode()))
    tap = tap_of(host, body + FINAL)
    assert (tap["text_bytes"], "text" in tap, tap["evidence"]) == (0, False, "exact")


def test_text_after_a_running_usage_takes_the_evidence_away(host: LuaHost) -> None:
    """Anthropic's message_start tells the prompt; text after it is uncovered until message_delta."""
    usage = '{"input_tokens":5,"cache_read_input_tokens":3,"output_tokens":0}'
    start = f'data: {{"type":"message_start","message":{{"id":"m","usage":{usage}}}}}\n\n'
    text = 'data: {"type":"content_block_delta","delta":{"type":"text_delta","text":"abc"}}\n\n'
    end = 'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":4}}\n\n'
    tap = tap_of(host, start + text, "messages", eof=False)
    assert (tap["usage"], tap["text"], "evidence" in tap) == ({"prompt": 8, "completion": 0, "cached": 3}, "abc", False)
    tap = tap_of(host, start + text + end, "messages")
    assert (tap["usage"], tap["evidence"]) == ({"prompt": 8, "completion": 4, "cached": 3}, "exact")
    assert (tap["text_bytes"], tap["finish"]) == (0, "end_turn")


def test_kept_text_is_bounded(host: LuaHost) -> None:
    """Beyond text_bytes_max only the length is known, also of one giant delta."""
    request = started(host, config={"text_bytes_max": 10})
    tap = host.plugin("usage-tap", {"text_bytes_max": 10})
    request.body_filter(tap, (chunk("abcdef") * 5 + chunk("x" * 200_000)).encode(), False)
    request.log(tap)
    shared = request.shared_get("usage_tap")
    assert shared["text"] == "abcdefabcd"
    assert shared["text_bytes"] == 30 + 200_000


@pytest.mark.parametrize("size", [64, 10**7])
def test_members_beyond_their_bound_are_not_kept(host: LuaHost, size: int) -> None:
    """An id of a megabyte is no id, in one chunk or many; what comes after it is read."""
    body = f'{{"id":"{"x" * 1_000_000}","usage":{USAGE}}}'.encode()
    request = started(host, stream=False, content_type=JSON)
    assert streamed(host, request, [body[i : i + size] for i in range(0, len(body), size)]) == body
    tap = request.shared_get("usage_tap")
    assert ("engine_id" in tap, tap["usage"]) == (False, {"prompt": 7, "completion": 3})


@pytest.mark.parametrize(
    ("event", "seen"),
    [
        (f'{{"a":1,"usage":{USAGE},"b":2}}', '{"a":1,"b":2}'),
        (f'{{"usage":{USAGE},"b":2}}', '{"b":2}'),
        (f'{{ "usage" : {USAGE} , "b":2}}', '{ "b":2}'),
        (f'{{"usage":{USAGE}}}', "{}"),
        (f'{{"a":1, "usage": {USAGE} }}', '{"a":1 }'),
        ('{"a":1,"usage":null}', '{"a":1}'),
        ('{"usage":null,"usage":7,"b":2}', '{"b":2}'),
        ('{"a":1,"usage":"}","usage":[1,{"x":"]"}],"b":2}', '{"a":1,"b":2}'),
        (r'{"a":"\"usage\":{","usage":1}', r'{"a":"\"usage\":{"}'),
        (r'{"a":"\\\",\"usage\":{}}","usage":1}', r'{"a":"\\\",\"usage\":{}}"}'),
        ('{"a":{"usage":1},"b":[{"usage":2}]}', '{"a":{"usage":1},"b":[{"usage":2}]}'),
        ('{"choices":[],"usage":null}', '{"choices":[]}'),
    ],
)
@pytest.mark.parametrize("size", [None, 1, 3, 7])
def test_hiding_cuts_the_member_and_nothing_else(host: LuaHost, event: str, seen: str, size: int | None) -> None:
    """The top-level member goes with one comma; spaces, order, nested and quoted look-alikes stay as sent."""
    assert hidden(host, f"data: {event}\n\ndata: [DONE]\n\n", size) == f"data: {seen}\n\ndata: [DONE]\n\n"


def test_hiding_drops_the_usage_chunk_only(host: LuaHost) -> None:
    """The event with no choices and usage goes with its empty line; comments and all others stay."""
    body = ": hi\r\n\r\n" + chunk("a") + "event: x\n" + FINAL + chunk("b")
    for size in (None, 1, 5):
        assert hidden(host, body, size) == ": hi\r\n\r\n" + chunk("a") + chunk("b")


def test_an_event_leaves_in_the_call_of_its_last_byte(host: LuaHost) -> None:
    """While usage is hidden, nothing waits once an event is whole, and nothing of an unfinished one is shown."""
    tap = host.plugin("usage-tap", {})
    request = started(host, hide=True)
    raw = chunk("a", counts(7, 1)).encode()
    assert request.body_filter(tap, raw[:-1], False) == b""
    assert request.body_filter(tap, raw[-1:], False) == chunk("a").encode()
    both = chunk("b").encode() + raw[:20]
    assert request.body_filter(tap, both, False) == chunk("b").encode()
    assert request.body_filter(tap, raw[20:], True) == chunk("a").encode()


def test_an_event_beyond_the_bound_passes_as_it_comes(host: LuaHost) -> None:
    """Longer than event_bytes_max: out with usage and all; the events after it are cut again."""
    config = {"event_bytes_max": 1024}
    tap = host.plugin("usage-tap", config)
    request = started(host, hide=True, config=config)
    big, small = chunk("x" * 3000, counts(7, 1)).encode(), chunk("a", counts(7, 2)).encode()
    out = b"".join(request.body_filter(tap, (big + small)[i : i + 100], False) for i in range(0, len(big + small), 100))
    assert out == big + chunk("a").encode()
    assert request.shared_get("usage_tap")["usage"]["completion"] == 2


def test_random_bytes_never_hurt(host: LuaHost) -> None:
    """Noise, and recorded shapes with bytes flipped, pass untouched in any chunks; nothing is logged as an error."""
    rng = random.Random(7)
    seed = (chunk('hé"\\', counts(7, 1)) + FINAL + "data: [DONE]\n\n").encode()
    for round_ in range(300):
        raw = bytearray(seed if round_ % 3 else rng.randbytes(200))
        for _ in range(rng.randrange(6)):
            raw[rng.randrange(len(raw))] = rng.choice(b'{}[]",:\\\n\r x0')
        cuts = sorted(rng.sample(range(len(raw)), 3))
        pieces = [bytes(raw[a:b]) for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
        for content_type in ("text/event-stream", JSON):
            request = started(host, content_type=content_type)
            assert streamed(host, request, pieces) == raw
        streamed(host, started(host, hide=True), pieces)


def test_own_failure_passes_every_byte_and_claims_nothing(host: LuaHost, logged: list[tuple[str, str]]) -> None:
    """When reading fails inside, held and new bytes go out as they came, it is logged once, evidence is withdrawn."""
    tap = host.plugin("usage-tap", {})
    request = started(host, hide=True)
    first, second = chunk("a", counts(7, 1)).encode(), chunk("b", counts(7, 2)).encode()
    out = request.body_filter(tap, first + second[:30], False)
    assert out == chunk("a").encode()
    break_reader = host.lua.eval(b"function(space) space.meter.event = function() error('boom') end end")
    break_reader(request._table[b"spaces"][b"plugin:usage-tap"])
    assert request.body_filter(tap, second[30:] + first, False) == second + first
    assert request.body_filter(tap, first, True) == first
    assert [level for level, text in logged if "boom" in text] == ["err"]
    assert "evidence" not in request.shared_get("usage_tap")

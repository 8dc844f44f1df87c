"""Every recorded vLLM answer through usage-tap, cut everywhere: the engine's usage, the engine's bytes."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from lua_replays import Recording, load, metered, started, streamed

from kong_plugins.local_gateway.lua_host import LuaHost

WHOLE = 0  # a cut that leaves the body in one piece
EVERY_CUT_BYTES_MAX = 6000  # two-way cuts cost the square of the length
RECORDINGS = [name for group in ("main", "plain", "extra", "kill", "warm") for name in metered(group)]


@lru_cache
def recording(name: str) -> Recording:
    return load(name)


@pytest.fixture(scope="module")
def replay(host: LuaHost) -> Any:
    tap = host.plugin("usage-tap", {})
    source = (Path(__file__).parent / "replay.lua").read_bytes()
    return host.lua.globals()[b"loadstring"](source, b"@replay.lua")(host._host, tap.handler, tap.lua_config)


def final_usage(answer: Recording) -> dict[str, int] | None:
    """The engine's last word on usage, read with Python's json."""
    if answer.endpoint == "responses":
        usages = [(doc.get("response") or doc).get("usage") for doc in answer.documents()]
    else:
        usages = [doc.get("usage") for doc in answer.documents()]
    usage = next((u for u in reversed(usages) if u), None)
    if usage is None:
        return None
    prompt_details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    completion_details = usage.get("completion_tokens_details") or usage.get("output_tokens_details") or {}
    # Anthropic's input_tokens leaves out what was read from the cache or written to it.
    of_cache = usage.get("cache_read_input_tokens", 0) + usage.get("cache_creation_input_tokens", 0)
    found = {
        "prompt": usage.get("prompt_tokens", usage.get("input_tokens")) + of_cache,
        "completion": usage.get("completion_tokens", usage.get("output_tokens")),
        "cached": prompt_details.get("cached_tokens", usage.get("cache_read_input_tokens")),
        "reasoning": completion_details.get("reasoning_tokens"),
    }
    return {key: value for key, value in found.items() if value is not None}


def without_usage(answer: Recording) -> list[bytes]:
    """The stream's events as a client that did not ask for usage gets them: usage chunk gone, usage cut out as text."""
    events = answer.body.split(b"\n\n")
    kept = []
    for event in events:
        _, prefix, data = event.partition(b"data: ")
        if prefix and data.startswith(b"{") and data.endswith(b"}"):
            document = json.loads(data)
            if document.get("choices") == [] and document.get("usage"):
                continue
            if "usage" in document:
                text = json.dumps(document["usage"], separators=(",", ":"), ensure_ascii=False).encode()
                assert event.count(b',"usage":' + text) == 1
                kept.append(event.replace(b',"usage":' + text, b""))
                continue
        kept.append(event)
    return kept


def published(host: LuaHost, name: str) -> dict[str, Any]:
    answer = recording(name)
    request = started(host, answer.endpoint, stream=answer.is_stream, content_type=answer.content_type)
    assert streamed(host, request, [answer.body], eof=answer.complete) == answer.body
    tap: dict[str, Any] = request.shared_get("usage_tap")
    return tap


@pytest.mark.parametrize("name", RECORDINGS)
def test_usage_is_the_engines_last_word(host: LuaHost, name: str) -> None:
    """Prompt, completion, cached and reasoning as in the last usage sent; nothing where none was."""
    tap = published(host, name)
    assert tap.get("usage") == final_usage(recording(name))


@pytest.mark.parametrize("name", RECORDINGS)
def test_evidence_says_how_usage_is_known(host: LuaHost, name: str) -> None:
    """Exact with a final usage, continuous after a cut with usage in every chunk, none with text no usage covers."""
    tap, answer = published(host, name), recording(name)
    documents = answer.documents()
    if final_usage(answer) is None:
        text = "".join(choice["delta"].get("content", "") for doc in documents for choice in doc.get("choices", []))
        assert "evidence" not in tap
        assert (tap.get("text", ""), tap["text_bytes"]) == (text, len(text.encode()))
        return
    ends = {"response.completed", "message_delta"}
    final = not answer.is_stream or any(doc.get("choices") == [] or doc.get("type") in ends for doc in documents)
    assert tap["evidence"] == ("exact" if final else "continuous")
    assert tap["text_bytes"] == 0
    assert "text" not in tap


@pytest.mark.parametrize("name", RECORDINGS)
def test_ids_finish_reasons_and_errors_are_published(host: LuaHost, name: str) -> None:
    """engine_id and finish as the engine sent them; error only where an error event came."""
    tap, answer = published(host, name), recording(name)
    documents = answer.documents()
    first = documents[0]
    assert tap["engine_id"] == (first.get("response") or first.get("message") or first)["id"]
    choices = [choice for doc in documents for choice in doc.get("choices", []) if choice["index"] == 0]
    if choices or answer.endpoint not in ("responses", "messages"):
        reasons = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
        assert tap.get("finish") == (reasons[0] if reasons else None)
    assert tap.get("error", False) == any(doc.get("error") for doc in documents)


@pytest.mark.parametrize("name", RECORDINGS)
@pytest.mark.parametrize("hide", [False, True], ids=["shown", "hidden"])
def test_cuts_anywhere_change_nothing(replay: Any, host: LuaHost, name: str, hide: bool) -> None:
    """Byte by byte, cut at every place of every event, and (short ones) at every place of the body: the same result,
    and the very same chunks where usage is not hidden."""
    answer = recording(name)
    arguments = (answer.complete, answer.endpoint.encode(), answer.is_stream, hide, answer.content_type.encode())
    expected, expected_out, _ = replay[b"replay"](answer.body, WHOLE, *arguments)
    longest = max(len(event) for event in answer.body.split(b"\n\n")) + 2
    cuts: list[int | bytes] = [b"bytes"]
    if answer.is_stream:
        # The three 140 kB recordings repeat one event 400 times: every fifth place of it covers them.
        cuts += [-offset for offset in range(1, longest, 5 if len(answer.body) > 100_000 else 1)]
    if len(answer.body) <= EVERY_CUT_BYTES_MAX:
        cuts += list(range(len(answer.body)))
    untouched = not (hide and answer.is_stream and answer.endpoint in ("chat", "completions"))
    difference = replay[b"first_difference"](
        answer.body, host.lua.table_from(cuts), expected, expected_out, untouched, *arguments
    )
    assert difference is None
    assert (expected_out == answer.body) or not untouched


@pytest.mark.parametrize("name", [name for name in RECORDINGS if recording(name).is_stream])
def test_hidden_usage_leaves_every_other_byte(host: LuaHost, name: str) -> None:
    """A client that did not ask sees the engine's bytes less the usage member and the usage-only chunk."""
    answer = recording(name)
    request = started(host, answer.endpoint, hide=True)
    out = streamed(host, request, [answer.body], eof=answer.complete)
    if answer.endpoint in ("responses", "messages"):  # usage is part of these shapes
        assert out == answer.body
        return
    expected = without_usage(answer)
    if not answer.complete:  # an event whose end never came stays behind: no client could read it
        out, expected = out.removesuffix(b"\n\n"), expected[:-1]
    assert out == b"\n\n".join(expected)
    assert b'"usage"' not in out
    assert request.shared_get("usage_tap").get("usage") == final_usage(answer)


def test_two_way_cuts_everywhere_in_a_whole_stream(replay: Any, host: LuaHost) -> None:
    """One full-length stream with usage in every chunk, hidden, at every one of its two-way cuts."""
    answer = recording("plain/21-stream-usage")
    arguments = (True, b"chat", True, True, answer.content_type.encode())
    expected, expected_out, _ = replay[b"replay"](answer.body, WHOLE, *arguments)
    cuts = host.lua.table_from(list(range(len(answer.body))))
    assert replay[b"first_difference"](answer.body, cuts, expected, expected_out, False, *arguments) is None

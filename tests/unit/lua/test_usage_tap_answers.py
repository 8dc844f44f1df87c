"""usage-tap keeps a whole answer for retries: only where asked, as the client got it, and never beyond its bound."""

from __future__ import annotations

from typing import Any

import pytest
from lua_replays import started, streamed

from kong_plugins.local_gateway.lua_host import LuaHost, LuaRequest

WHOLE = b'{"id":"c","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3},"x":"\xff"}'
EVENTS = [
    b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}\n\n',
    b"data: [DONE]\n\n",
]
BOUND = 4096


def kept(request: LuaRequest) -> tuple[str | None, Any]:
    """What the log phase finds."""
    return request.shared_get("usage_tap").get("answer"), request.shared_get("usage_tap_answer")


def test_a_whole_answer_is_kept_with_its_type(host: LuaHost) -> None:
    """Every byte, also those that are no UTF-8, over chunks that end anywhere."""
    request = started(host, stream=False, content_type="application/json; charset=utf-8", keep=BOUND)
    streamed(host, request, [WHOLE[:9], WHOLE[9:40], WHOLE[40:]])
    answer, table = kept(request)
    assert answer == "kept"
    assert table == {
        "v": 1,
        "status": 200,
        "type": "application/json; charset=utf-8",
        "body": WHOLE.decode("utf-8", "surrogateescape"),
    }


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_stream_is_kept_as_the_client_got_it(host: LuaHost, size: int) -> None:
    """With usage hidden from a client that did not ask for it, whatever the chunks."""
    request = started(host, hide=True, keep=BOUND)
    body = b"".join(EVENTS)
    out = streamed(host, request, [body[at : at + size] for at in range(0, len(body), size)])
    assert out == EVENTS[0] + EVENTS[2]
    answer, table = kept(request)
    assert (answer, table["body"].encode()) == ("kept", out)


@pytest.mark.parametrize(
    ("bound", "answer"), [(len(WHOLE), "kept"), (len(WHOLE) - 1, "too_large"), (0, "too_large"), (None, None)]
)
def test_the_bound_is_to_the_byte(host: LuaHost, bound: int | None, answer: str | None) -> None:
    """One byte more and nothing is kept, not even a part; without a bound nothing was asked for."""
    request = started(host, stream=False, content_type="application/json", keep=bound)
    assert streamed(host, request, [WHOLE[:30], WHOLE[30:]]) == WHOLE
    assert kept(request)[0] == answer
    assert (kept(request)[1] is not None) == (answer == "kept")


@pytest.mark.parametrize("bound", [BOUND, 10])
def test_of_an_answer_cut_short_nothing_is_kept(host: LuaHost, bound: int) -> None:
    """The client left: its retry is to get the whole, also where what came was too large already."""
    request = started(host, keep=bound)
    streamed(host, request, EVENTS[:2], eof=False)
    assert kept(request) == (None, None)


@pytest.mark.parametrize("status", [201, 400, 500])
def test_only_a_200_is_kept(host: LuaHost, status: int) -> None:
    """An error is not what a retry is for."""
    request = started(host, stream=False, content_type="application/json", status=status, keep=BOUND)
    streamed(host, request, [WHOLE])
    assert kept(request) == (None, None)


def test_an_answer_that_is_not_read_is_not_kept(host: LuaHost, logged: list[tuple[str, str]]) -> None:
    """An encoded one would need its encoding told again."""
    request = started(
        host, stream=False, content_type="application/json", keep=BOUND, headers=((b"Content-Encoding", b"gzip"),)
    )
    streamed(host, request, [WHOLE])
    assert kept(request) == (None, None)
    assert len(logged) == 1


def test_a_stream_of_a_thousand_chunks_is_joined_once(host: LuaHost) -> None:
    """Beyond what a Lua function takes as arguments, and in order."""
    chunks = [b'data: {"choices":[{"delta":{"content":"%d"}}]}\n\n' % n for n in range(20_000)]
    request = started(host, keep=4 << 20)
    out = streamed(host, request, chunks)
    assert kept(request)[1]["body"].encode() == out == b"".join(chunks)

"""`python -m tests.bench.tap`: what usage-tap adds to a stream, for the first byte and for every chunk.

The recorded vLLM streams, chunk by chunk as they were on the wire, through the very handler Kong runs, in LuaJIT. The
figures hold the crossing from Python into Lua and back, so Kong's own are lower.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from kong_plugins.local_gateway.lua_host import LuaHost, RequestState

ROOT = Path(__file__).resolve().parent.parent.parent
STREAMS = {
    "usage in every chunk": "main/22-stream-continuous.resp",
    "long, usage in every chunk": "extra/10-queued-0.resp",
    "messages": "main/66-messages-stream.resp",
    "responses": "main/64-responses-stream.resp",
}
ENDPOINTS = {"messages": "messages", "responses": "responses"}
SSE_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8")]


def chunks(name: str) -> list[bytes]:
    """The HTTP chunks of a recorded answer, without their framing."""
    _, _, rest = (ROOT / "tests" / "data" / "vllm" / name).read_bytes().partition(b"\r\n\r\n")
    found = []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            break
        found.append(rest[:length])
        rest = rest[length + 2 :]
    return found


def replay(host: LuaHost, tap: Any, endpoint: str, stream: list[bytes], *, hide: bool) -> tuple[float, list[float]]:
    """Seconds from the answer's head to its first byte out, and for each chunk."""
    state = RequestState(id="0" * 32, method="POST", path="/v1/chat/completions", headers=[], body=b"{}")
    request = host.new_request(state)
    meter = {"endpoint": endpoint, "stream": True, "hide_usage": hide}
    request.shared_set("token_quota", {"v": 1, "allow": True, "meter": meter, "log": {"hold": "0" * 32}})
    request.access(tap)
    request.start_response(200, SSE_HEADERS, upstream_status="200", source="service")
    began = time.perf_counter()
    request.header_filter(tap)
    request.body_filter(tap, stream[0], False)
    first = time.perf_counter() - began
    each = []
    for chunk in stream[1:]:
        began = time.perf_counter()
        request.body_filter(tap, chunk, False)
        each.append(time.perf_counter() - began)
    request.body_filter(tap, b"", True)
    request.log(tap)
    return first, each


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.tap", description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    rounds = parser.parse_args().rounds
    host = LuaHost(ROOT / "kong" / "plugins", log=lambda level, text: print(level, text, file=sys.stderr))
    tap = host.plugin("usage-tap", {})
    print(f"{'stream':<30} {'hidden':>6} {'chunks':>7} {'first ms p50':>13} {'p99':>7} {'chunk µs p50':>13} {'p99':>7}")
    for name, recording in STREAMS.items():
        stream = chunks(recording)
        endpoint = ENDPOINTS.get(name, "chat")
        for hide in (False, True) if endpoint == "chat" else (False,):
            firsts: list[float] = []
            each: list[float] = []
            for _ in range(rounds):
                first, rest = replay(host, tap, endpoint, stream, hide=hide)
                firsts.append(first)
                each += rest
            firsts.sort()
            each.sort()
            print(
                f"{name:<30} {'yes' if hide else 'no':>6} {len(stream):>7} "
                f"{1e3 * firsts[len(firsts) // 2]:>13.3f} {1e3 * firsts[int(0.99 * len(firsts))]:>7.3f} "
                f"{1e6 * each[len(each) // 2]:>13.1f} {1e6 * each[int(0.99 * len(each))]:>7.1f}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Recorded answers of a real vLLM, and what can be said about them without the code under test."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kong_plugins.local_gateway.lua_host import LuaHost, LuaRequest, RequestState

PLUGINS = Path(__file__).parents[3] / "kong" / "plugins"
RECORDINGS = Path(__file__).parents[2] / "data" / "vllm"
ENDPOINTS = {"responses": "responses", "messages": "messages", "completions": "completions"}


@dataclass(frozen=True)
class Recording:
    """``complete``: the engine ended the body itself (its last chunk, or the whole content length, arrived)."""

    name: str
    status: int
    content_type: str
    endpoint: str
    body: bytes
    complete: bool

    @property
    def is_stream(self) -> bool:
        return self.content_type.startswith("text/event-stream")

    def documents(self) -> list[dict[str, Any]]:
        """The JSON documents of the body, in order."""
        if not self.is_stream:
            return [json.loads(self.body)]
        events = [event.partition(b"data: ")[2] for event in self.body.split(b"\n\n")]
        return [json.loads(data) for data in events if data.startswith(b"{") and data.endswith(b"}")]


def load(name: str) -> Recording:
    raw = (RECORDINGS / f"{name}.resp").read_bytes()
    head, _, rest = raw.partition(b"\r\n\r\n")
    headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head.decode().split("\r\n")[1:])}
    body, complete = rest, True
    if headers.get("transfer-encoding") == "chunked":
        body, complete = _dechunk(rest)
    elif "content-length" in headers:
        complete = len(rest) == int(headers["content-length"])
    stem = name.split("/")[1]
    endpoint = next((value for key, value in ENDPOINTS.items() if f"-{key}" in stem), "chat")
    return Recording(name, int(head.split()[1]), headers.get("content-type", ""), endpoint, body, complete)


def _dechunk(raw: bytes) -> tuple[bytes, bool]:
    body = b""
    while raw:
        size, _, raw = raw.partition(b"\r\n")
        length = int(size or b"0", 16)
        if not length:
            return body, True
        body, raw = body + raw[:length], raw[length + 2 :]
    return body, False


def metered(group: str) -> list[str]:
    """Names of a group's 200 answers of metered endpoints."""
    skipped = (
        "metrics",
        "health",
        "models",
        "version",
        "ping",
        "load",
        "tokenize",
        "render",
        "count-tokens",
        "keepalive",
    )
    answered = [path for path in sorted((RECORDINGS / group).glob("*.resp")) if b"\r\n\r\n" in path.read_bytes()]
    names = [f"{group}/{path.stem}" for path in answered]
    names = [name for name in names if not any(word in name for word in skipped)]
    return [name for name in names if load(name).status == 200]


def started(
    host: LuaHost,
    endpoint: str = "chat",
    *,
    stream: bool = True,
    hide: bool = False,
    content_type: str = "text/event-stream; charset=utf-8",
    status: int = 200,
    config: dict[str, Any] | None = None,
    headers: tuple[tuple[bytes, bytes], ...] = (),
    choices_per_prompt: int | None = None,
    keep: int | None = None,
) -> LuaRequest:
    """A request that was allowed, with the answer's head there."""
    tap = host.plugin("usage-tap", config or {})
    request = host.new_request(RequestState(id="r1", method="POST", path="/v1/chat/completions"))
    meter: dict[str, Any] = {"endpoint": endpoint, "stream": stream, "hide_usage": hide}
    if choices_per_prompt is not None:
        meter["choices_per_prompt"] = choices_per_prompt
    if keep is not None:
        meter["keep"] = keep
    request.shared_set("token_quota", {"v": 1, "allow": True, "meter": meter})
    assert request.access(tap) is None
    request.start_response(status, ((b"Content-Type", content_type.encode()), *headers), upstream_status=str(status))
    assert request.header_filter(tap) is None
    return request


def streamed(host: LuaHost, request: LuaRequest, chunks: list[bytes], *, eof: bool = True) -> bytes:
    """What the client gets of ``chunks``."""
    tap = host.plugin("usage-tap", {})
    out = b"".join(request.body_filter(tap, chunk, False) for chunk in chunks)
    if eof:
        out += request.body_filter(tap, b"", True)
    request.log(tap)
    return out

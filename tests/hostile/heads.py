"""A body in a request on the wire: framing that two servers read differently, headers and targets that forge."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

CASE_HEADER = "x-hostile-case"

# Put before the body's own framing; what the gateway understands of it is its to decide.
ODD_HEADERS: tuple[bytes, ...] = (
    b"_method: plugin.CloseInstance\r\n",
    b"_method: x\r\n_method: y\r\n",
    b"x_request_id: forged\r\nX-Request-Id: forged\r\n",
    b"X-Request-Id: a\r\nX-Request-Id: b\r\n",
    b"X-Kong-Request-Id: forged\r\n",
    b"X-Consumer-ID: 1\r\nX-Consumer-Username: victim\r\nX-Credential-Identifier: victim\r\n",
    b"x-authenticated-userid: victim\r\nx_authenticated_userid: victim\r\n",
    b"x-data-parallel-rank: 1\r\nX_Data_Parallel_Rank: 1\r\n",
    b"X-Vllm-Priority: -5\r\n",
    b"Connection: x-request-id\r\n",
    b"Connection: content-length\r\n",
    b"Connection: keep-alive, upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
    b"Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n",
    b"Expect: 100-continue\r\n",
    b"Expect: 200-ok\r\n",
    b"Content-Encoding: gzip\r\n",
    b"Content-Encoding: identity\r\n",
    b"Content-Encoding: identity, gzip\r\n",
    b"Accept-Encoding: gzip, br\r\n",
    b"Accept: application/problem+json\r\n",
    b"Accept: text/html;\x01\r\n",
    b"X-Odd: \xff\xfe\x80\r\n",
    b"X-Odd: a\x00b\r\n",
    b"X-Od\x00d: a\r\n",
    b"X-Odd : space before the colon\r\n",
    b"X-Odd: folded\r\n onto the next line\r\n",
    b" leading: space\r\n",
    b"no colon here\r\n",
    b": no name\r\n",
    b"X-Odd: bare line feed\nX-Second: a\n",
    b"X-Odd: carriage\rreturn\r\n",
    b"X-Long: " + b"a" * 9_000 + b"\r\n",
    b"X-Longer: " + b"a" * 70_000 + b"\r\n",
    b"".join(b"x-h%d: v\r\n" % number for number in range(150)),
    b"Forwarded: for=1.1.1.1\r\nX-Forwarded-For: 1.1.1.1, 2.2.2.2\r\nX-Real-IP: 1.1.1.1\r\n",
    b"X-Forwarded-Prefix: /admin\r\nX-Original-URL: /metrics\r\nX-Rewrite-URL: /metrics\r\n",
    b"X-HTTP-Method-Override: GET\r\n",
    b"Host: other\r\n",
    b"Cookie: apikey=sk-guess\r\n",
    b"x-stainless-retry-count: 0\r\n",
    b"x-stainless-retry-count: 1\r\n",
    b"x-stainless-retry-count: 999\r\n",
    b"x-stainless-retry-count: -1\r\n",
    b"x-stainless-retry-count: 1e9\r\n",
    b"x-stainless-retry-count: 1\r\nx-stainless-retry-count: 0\r\n",
    b"Idempotency-Key: " + b"k" * 255 + b"\r\n",
    b"Idempotency-Key: " + b"k" * 6_000 + b"\r\n",
    b"Idempotency-Key: a\r\nIdempotency-Key: b\r\n",
    b'Idempotency-Key: "unterminated\r\n',
    b"Idempotency-Key: \xff\r\n",
    b"Idempotency-Key:\r\n",
    b"Idempotency-Key: {tag}:hold:*/../x\r\n",
    b"idempotency_key: shared-1\r\n",
)

KEYS = tuple(b"Idempotency-Key: shared-%d\r\n" % number for number in range(8))
"""Every tenant uses these, as a client could that knows another's."""

CONTENT_TYPES: tuple[bytes, ...] = (
    b"application/json", b"application/json; charset=utf-8", b"application/json; charset=utf-16", b"text/plain",
    b"application/json, text/plain", b"APPLICATION/JSON", b"application/vnd.api+json", b"", b"application/json;",
    b"application/json; charset=utf-7", b"multipart/form-data; boundary=x", b"application/x-www-form-urlencoded",
)  # fmt: skip

TARGETS: tuple[bytes, ...] = (
    b"%s", b"%s?_method=plugin.StepError", b"%s?_method", b"%s?a=%%00&b=%%ff", b"%s?apikey=guess", b"%s/", b"/%s",
    b"%s;x=1", b"%s%%00", b"%s%%2f..%%2f..%%2fmetrics", b"%s/../embeddings", b"%s/render", b"%s#f", b"%s%%20",
    b"http://127.0.0.1%s", b"http://other.example%s", b"/v1%%2fchat%%2fcompletions", b"/V1/chat/completions",
    b"/v1//chat/completions", b"/v1/./chat/completions", b"/v1/../metrics", b"/v1/tokenize", b"/v1/models", b"/metrics",
    b"/sim/faults", b"/v1/sim/requests", b"/v1/%%6dessages", b"*", b"/", b"/v1", b"%s?" + b"a=b&" * 3_000,
    b"/v1/chat/completions/%%2e%%2e/completions", b"/v1/\xff", b"/untapped/chat/completions",
)  # fmt: skip

METHODS = (b"POST", b"post", b"GET", b"PUT", b"HEAD", b"OPTIONS", b"DELETE", b"PATCH", b"TRACE", b"CONNECT", b"QUERY")


@dataclass
class Wire:
    """Bytes for one connection. ``pause_at`` cuts them in two sends; ``leave_after``: the client reads so many bytes of
    the answer and is gone."""

    data: bytes
    path: str
    tenant: str
    case: str
    body: bytes = b""
    pause_at: int | None = None
    leave_after: int | None = None
    notes: list[str] = field(default_factory=list)


def wire(choose: Random, *, path: str, body: bytes, tenant: str, key: str, case: str) -> Wire:
    """A request with that body, framed and addressed as ``choose`` has it; most often as it should be."""
    method, target, version, content_type = b"POST", path.encode(), b"HTTP/1.1", b"application/json"
    extra, notes = b"", []
    roll = choose.random()
    if roll < 0.25:
        extra = choose.choice(ODD_HEADERS)
        notes.append(repr(extra[:60]))
    elif roll < 0.40:
        extra = choose.choice(KEYS) + choose.choice((b"", b"x-stainless-retry-count: 1\r\n"))
        notes.append(repr(extra))
    elif roll < 0.48:
        shape = choose.choice(TARGETS)
        target = shape.replace(b"%s", target).replace(b"%%", b"%")
        notes.append(repr(target[:60]))
    elif roll < 0.52:
        content_type = choose.choice(CONTENT_TYPES)
        notes.append(repr(content_type))
    elif roll < 0.54:
        method = choose.choice(METHODS)
        notes.append(repr(method))
    elif roll < 0.56:
        version = choose.choice((b"HTTP/1.0", b"HTTP/0.9", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/3", b"http/1.1", b""))
        notes.append(repr(version))
    head = b"%s %s %s\r\nHost: gateway\r\n" % (method, target, version)
    head += f"{CASE_HEADER}: {case}\r\n".encode() + credentials(choose, key.encode(), notes) + extra
    if content_type:
        head += b"Content-Type: " + content_type + b"\r\n"
    framed = framing(choose, body, case, key, notes) if choose.random() < 0.25 else decent(body)
    data = head + framed
    made = Wire(data, path, tenant, case, body, notes=notes)
    if choose.random() < 0.05:
        made.pause_at = choose.randrange(1, len(data)) if len(data) > 1 else None
        notes.append(f"paused at {made.pause_at}")
    if choose.random() < 0.06:
        made.leave_after = choose.choice((0, 1, 200, 600, 1500))
        notes.append(f"left after {made.leave_after} bytes")
    return made


def credentials(choose: Random, key: bytes, notes: list[str]) -> bytes:
    roll = choose.random()
    if roll < 0.9:
        return b"apikey: " + key + b"\r\n"
    forms = (
        b"Authorization: Bearer " + key + b"\r\n",
        b"x-api-key: " + key + b"\r\n",
        b"apikey: wrong\r\nAuthorization: Bearer " + key + b"\r\n",
        b"apikey: " + key + b"\r\napikey: wrong\r\n",
        b"apikey: " + key + b"\r\nAuthorization: Bearer wrong\r\nx-api-key: wrong\r\n",
        b"apikey: wrong\r\n",
        b"apikey: \x00\r\n",
        b"apikey: " + b"w" * 5000 + b"\r\n",
        b"",
    )
    form = choose.choice(forms)
    notes.append(repr(form.replace(key, b"KEY")[:60]))
    return form


def decent(body: bytes) -> bytes:
    return b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body


def framing(choose: Random, body: bytes, case: str, key: str, notes: list[str]) -> bytes:
    """Lengths and chunks that two readers may take differently, often with a request inside the body."""
    length = b"%d" % len(body)
    inner = smuggled(case, key)
    chunked = b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"
    forms: tuple[bytes, ...] = (
        b"Content-Length: " + length + b"\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked,
        b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n" + chunked + inner,
        b"Content-Length: " + length + b"\r\nContent-Length: " + length + b"\r\n\r\n" + body,
        b"Content-Length: 0\r\nContent-Length: " + length + b"\r\n\r\n" + body + inner,
        b"Content-Length: +" + length + b"\r\n\r\n" + body,
        b"Content-Length: " + length + b", " + length + b"\r\n\r\n" + body,
        b"Content-Length: 0x10\r\n\r\n" + body,
        b"Content-Length: -1\r\n\r\n" + body,
        b"Content-Length: " + b"9" * 30 + b"\r\n\r\n" + body,
        b"Content-Length : " + length + b"\r\n\r\n" + body,
        b"Content-Length:\t" + length + b"\t\r\nConnection: close\r\n\r\n" + body,
        b"\r\n" + body,
        b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + chunked,
        b"Transfer-Encoding: xchunked\r\n\r\n" + chunked + inner,
        b"Transfer-Encoding: chunked, identity\r\n\r\n" + chunked + inner,
        b"Transfer-Encoding: identity, chunked\r\n\r\n" + chunked + inner,
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n" + chunked + inner,
        b"Transfer-Encoding:\x0bchunked\r\n\r\n" + chunked + inner,
        b"Transfer-Encoding : chunked\r\n\r\n" + chunked + inner,
        b"transfer_encoding: chunked\r\nContent-Length: " + length + b"\r\nConnection: close\r\n\r\n" + body,
        b"X: a\nTransfer-Encoding: chunked\r\nContent-Length: " + length + b"\r\n\r\n" + body + inner,
        _chunks(choose, body, b'%x;ext="a\\\r\n"', inner),
        _chunks(choose, body, b"%X ; a=b", b""),
        _chunks(choose, body, b"0000000000%x", b""),
        _chunks(choose, body, b"0x%x", inner),
        _chunks(choose, body, b"-%x", inner),
        _chunks(choose, body, b"%x\n", inner),
        _chunks(choose, body, b"ffffffffffffffff%x", inner),
        b"Transfer-Encoding: chunked\r\n\r\n"
        + chunked[:-5]
        + b"0\r\nX-Trailer: a\r\nContent-Length: 5\r\n\r\n"
        + inner,
        b"Transfer-Encoding: chunked\r\n\r\n" + chunked[:-2],
        b"Transfer-Encoding: chunked\r\n\r\n" + chunked[: len(chunked) // 2],
        b"Content-Length: " + length + b"\r\n\r\n" + body + inner,  # pipelined: two requests, both to be metered
        b"Content-Length: %d\r\n\r\n" % (len(body) + len(inner)) + body + inner,
        b"Content-Length: %d\r\n\r\n" % max(0, len(body) - 5) + body,
        b"Content-Length: %d\r\n\r\n" % (len(body) + 50) + body,
    )
    at = choose.randrange(len(forms))
    notes.append(f"framing {at}: {forms[at][:60]!r}")
    return forms[at]


def _chunks(choose: Random, body: bytes, size: bytes, after: bytes) -> bytes:
    middle = choose.randrange(len(body) + 1)
    parts = [part for part in (body[:middle], body[middle:]) if part]
    framed = b"".join(size % len(part) + b"\r\n" + part + b"\r\n" for part in parts)
    return b"Transfer-Encoding: chunked\r\n\r\n" + framed + b"0\r\n\r\n" + after


def smuggled(case: str, key: str) -> bytes:
    """A request inside another's bytes, with the sender's own key: should a server run it, it has to be metered."""
    body = b'{"model":"deepseek-r1","messages":[{"role":"user","content":"smuggled"}],"max_tokens":16}'
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\n{CASE_HEADER}: {case}-inner\r\napikey: {key}\r\n"
        f"Content-Type: application/json\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body

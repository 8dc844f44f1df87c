"""Answers and headers that SDKs understand: OpenAI's and Anthropic's error shapes, RFC 9457 where asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus
from types import MappingProxyType

from kong_plugins.domain.budgets import Mode
from kong_plugins.domain.concurrency import SlotState
from kong_plugins.domain.demand import Endpoint
from kong_plugins.domain.holds import LineState
from kong_plugins.domain.planning import Counts, PlannedLine
from kong_plugins.domain.refusals import Reason, Refusal, explain, timestamp, window_seconds
from kong_plugins.domain.shares import PlaceState

_NONE: Mapping[str, str] = MappingProxyType({})
_SECOND_US = 1_000_000

_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 500: "server_error", 503: "server_error"}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}
# type and code of a 429. Clients retry rate_limit_exceeded, and not insufficient_quota.
_REFUSAL_CODES = {
    Reason.WAIT: ("tokens", "rate_limit_exceeded"),
    Reason.SPENT: ("insufficient_quota", "insufficient_quota"),
    Reason.TOO_LARGE: ("insufficient_quota", "request_exceeds_limit"),
}
_QUOTA_EXCEEDED = (
    "https://iana.org/assignments/http-problem-types#quota-exceeded"  # draft-ietf-httpapi-ratelimit-headers
)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer in place of the engine's."""

    status: int
    body: str | bytes
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Problem:
    """What went wrong, before it takes a client's shape. ``details`` are extra members of the error object."""

    status: int
    code: str
    message: str
    param: str | None = None
    kind: str | None = None  # OpenAI's `type`, where the status alone does not give it
    details: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Caller:
    """Whom a reply is for: its request's id, endpoint and ``Accept``."""

    request_id: str | None = None
    endpoint: Endpoint | None = None
    accept: str | None = None


def reply(problem: Problem, caller: Caller, headers: Mapping[str, str] = _NONE) -> Reply:
    """The problem in the shape that the caller reads."""
    if _wants_problem_json(caller.accept):
        content_type, document = "application/problem+json", _rfc9457(problem)
    elif caller.endpoint is Endpoint.MESSAGES:
        content_type, document = "application/json", _anthropic(problem, caller.request_id)
    else:
        content_type, document = "application/json", _openai(problem)
    all_headers = {"Content-Type": content_type, **headers}
    if caller.request_id is not None:
        all_headers["X-Request-Id"] = caller.request_id
    return Reply(problem.status, json.dumps(document), {name: header_value(v) for name, v in all_headers.items()})


def refusal_reply(refusal: Refusal, caller: Caller, quota: Mapping[str, str]) -> Reply:
    """A 429. ``quota`` are the headers of :func:`quota_headers`."""
    kind, code = _REFUSAL_CODES[refusal.reason]
    details = {
        "budget": refusal.budget,
        "window": refusal.window,
        "unit": refusal.unit,
        "limit": refusal.limit,
        "asked": refusal.asked,
        "remaining": refusal.remaining,
        "reset": timestamp(refusal.reset_us),
    }
    headers = dict(quota)
    if refusal.retry_us is None:
        headers["x-should-retry"] = "false"
    else:
        headers |= _retry_after(refusal.retry_us)
    return reply(Problem(429, code, explain(refusal), kind=kind, details=details), caller, headers)


def crowded_reply(state: SlotState, model: str, wait_us: int, caller: Caller) -> Reply:
    """A 429 for one request too many at a time. ``wait_us``: until it would have its turn."""
    whose = f" for model {model!r}" if "|model=" in state.key else ""
    headers = slot_headers((state,), wait_us) | _retry_after(wait_us)
    seconds = headers["Retry-After"]
    message = (
        f"{state.taken} of your requests{whose} run already; {state.limit} may run at a time. Try again in {seconds} s,"
        " or wait for one of them to end."
    )
    details = {"limit": state.limit, "running": state.taken, "unit": "concurrent-requests"}
    problem = Problem(429, "concurrency_limit", message, kind="rate_limit_exceeded", details=details)
    return reply(problem, caller, headers)


def full_reply(state: PlaceState, wait_us: int, caller: Caller) -> Reply:
    """A 429 of an engine that is full, or of which this tenant holds the most. What others hold is not told."""
    headers = _retry_after(wait_us)
    why = "full" if state.full else f"nearly full, and none holds more of it than your {state.mine} requests do"
    message = f"The engine is {why}. Try again in {headers['Retry-After']} s."
    details = {"running": state.mine, "unit": "concurrent-requests"}
    return reply(Problem(429, "engine_full", message, kind="rate_limit_exceeded", details=details), caller, headers)


def _retry_after(wait_us: int) -> dict[str, str]:
    """At least a millisecond: zero tells a client to try again at once."""
    return {
        "Retry-After": str(max(1, -(-wait_us // _SECOND_US))),
        "retry-after-ms": str(max(1, -(-wait_us // 1000))),
    }


def slot_headers(states: Sequence[SlotState], wait_us: int | None = None) -> dict[str, str]:
    """How many more requests may run: OpenAI's headers, of the scarcest. ``wait_us``: until one could start, where
    none could now."""
    if not states:
        return {}
    scarcest = min(states, key=lambda state: state.remaining)
    headers = {
        "x-ratelimit-limit-requests": str(scarcest.limit),
        "x-ratelimit-remaining-requests": str(scarcest.remaining),
    }
    if wait_us is not None:
        headers["x-ratelimit-reset-requests"] = duration(wait_us)
    return headers


def quota_headers(planned: Sequence[PlannedLine], states: Sequence[LineState], now_us: int) -> dict[str, str]:
    """What is left: the tightest hard token budget for OpenAI clients, every hard one in the IETF draft's form."""
    hard = [(each, state) for each, state in zip(planned, states, strict=True) if each.line.mode is Mode.HARD]
    if not hard:
        return {}
    headers = {
        "RateLimit-Policy": ", ".join(_policy_item(each) for each, _ in hard),
        "RateLimit": ", ".join(_limit_item(state, now_us) for _, state in hard),
    }
    tokens = [state for each, state in hard if each.rule.counts is not Counts.COST]
    if tokens:
        tightest = min(tokens, key=lambda state: state.remaining)
        headers["x-ratelimit-limit-tokens"] = str(tightest.limit)
        headers["x-ratelimit-remaining-tokens"] = str(tightest.remaining)
        headers["x-ratelimit-reset-tokens"] = duration(tightest.reset_us - now_us)
    return headers


def duration(span_us: int) -> str:
    """OpenAI's form: ``6m0s``, ``1h0m2s``, ``320ms``; never shorter than the span."""
    span_us = max(0, span_us)
    if span_us < _SECOND_US:
        return f"{-(-span_us // 1000)}ms"
    minutes, seconds = divmod(-(-span_us // _SECOND_US), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{seconds}s"
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"


def header_value(value: str) -> str:
    """Printable ASCII only: nothing that a client or an operator wrote can end a header or begin another."""
    if value.isascii() and value.isprintable():
        return value
    return "".join(char if " " <= char <= "~" else "?" for char in value)


def _policy_item(planned: PlannedLine) -> str:
    line = planned.line
    seconds = window_seconds(line.window)
    width = "" if seconds is None else f";w={seconds}"
    return f'{_quoted(line.key)};q={line.limit}{width};qu="{planned.rule.counts.unit}"'


def _limit_item(state: LineState, now_us: int) -> str:
    return f"{_quoted(state.key)};r={state.remaining};t={max(0, -(-(state.reset_us - now_us) // _SECOND_US))}"


@lru_cache(maxsize=4096)  # names of budgets, with what they are scoped by
def _quoted(text: str) -> str:
    """A structured field's string (RFC 9651)."""
    return '"' + header_value(text).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _openai(problem: Problem) -> dict[str, object]:
    kind = problem.kind or _OPENAI_TYPES.get(problem.status, "invalid_request_error")
    error = {"message": problem.message, "type": kind, "param": problem.param, "code": problem.code}
    return {"error": {**error, **problem.details}}


def _anthropic(problem: Problem, request_id: str | None) -> dict[str, object]:
    kind = _ANTHROPIC_TYPES.get(problem.status, "invalid_request_error")
    error = {"type": kind, "message": problem.message, "code": problem.code, **problem.details}
    return {"type": "error", "error": error, "request_id": request_id}


def _rfc9457(problem: Problem) -> dict[str, object]:
    document: dict[str, object] = {
        "type": _QUOTA_EXCEEDED if problem.status == HTTPStatus.TOO_MANY_REQUESTS else "about:blank",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.message,
        "code": problem.code,
        **problem.details,
    }
    if problem.param is not None:
        document["param"] = problem.param
    if "budget" in problem.details:
        document["violated-policies"] = [problem.details["budget"]]
    return document


def _wants_problem_json(accept: str | None) -> bool:
    for item in (accept or "").lower().split(","):
        media_type, *parameters = (part.strip() for part in item.split(";"))
        if media_type == "application/problem+json":
            return not any(p.replace(" ", "") in {"q=0", "q=0.0", "q=0.00", "q=0.000"} for p in parameters)
    return False

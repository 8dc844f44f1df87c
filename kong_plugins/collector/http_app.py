"""The collector's HTTP side: POST /log and /events, and what an operator's tools ask for."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from kong_plugins.application.ports import LedgerUnavailable
from kong_plugins.collector.access import TOKEN_ENV, Tokens
from kong_plugins.collector.cloud_events import NotCloudEvents, read_body
from kong_plugins.collector.intake import Intake, Taken

_log = logging.getLogger(__name__)

BODY_BYTES_MAX = 8 * 1024 * 1024  # http-log sends up to 200 records, each with every header of its request
BODY_S = 30.0  # for all of it
RETRY_AFTER_S = "1"
VERDICTS_SHOWN = 100

Count = Callable[[str, Counter[str]], None]


class _TooLarge(Exception):  # noqa: N818 - what it is
    pass


class _TooSlow(Exception):  # noqa: N818 - what it is
    pass


def _decoded(body: bytes) -> object:
    """Kong's serializer writes a client's header bytes as they came: one that is no UTF-8 must not cost a whole batch.

    Raises:
        msgspec.DecodeError: no JSON.
        RecursionError: nested too deeply.
    """
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return msgspec.json.decode(body.decode("utf-8", "replace"))


def make_app(
    intake: Intake,
    tokens: Tokens,
    *,
    metrics: Callable[[], tuple[bytes, str]],
    not_ready: Callable[[], str],
    count: Count,
    body_bytes_max: int = BODY_BYTES_MAX,
) -> Starlette:
    """``metrics``: Prometheus' page and its content type. ``not_ready``: why not, empty when it is. ``count``: told the
    path and how many of its records or events there were of each kind."""

    async def log(request: Request) -> Response:
        if (refusal := _refused(request, tokens)) is not None:
            return refusal
        try:
            records = _decoded(await _body(request, body_bytes_max))
        except (msgspec.DecodeError, RecursionError) as error:
            return _problem(400, f"the body is no JSON: {error}")
        if not isinstance(records, list):
            records = [records]
        counts = await run_in_threadpool(intake.records, records)
        count("/log", counts)
        return JSONResponse(dict(counts))

    async def events(request: Request) -> Response:
        if (refusal := _refused(request, tokens)) is not None:
            return refusal
        body = await _body(request, body_bytes_max)
        try:
            found = read_body(request.headers.get("content-type", ""), request.headers.items(), body)
        except NotCloudEvents as error:
            return _problem(400, str(error))
        verdicts = await run_in_threadpool(intake.events, found)
        counts = Counter(verdict.taken.value for verdict in verdicts)
        count("/events", counts)
        answer: dict[str, object] = dict(counts)
        bad = [(at, verdict) for at, verdict in enumerate(verdicts) if verdict.taken is Taken.REJECTED]
        if not bad:
            return JSONResponse(answer)
        answer["errors"] = [
            {"index": at, "id": verdict.event_id, "reason": verdict.reason} for at, verdict in bad[:VERDICTS_SHOWN]
        ]
        return JSONResponse(answer, 422)

    async def healthz(_request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_request: Request) -> Response:
        why = not_ready()
        return PlainTextResponse(f"{why}\n" if why else "ready\n", 503 if why else 200)

    async def metrics_page(_request: Request) -> Response:
        page, content_type = await run_in_threadpool(metrics)
        return Response(page, headers={"Content-Type": content_type})

    async def ledger_away(_request: Request, error: Exception) -> Response:
        _log.warning("posted events are refused, the ledger is out of reach: %s", error)
        return _problem(503, "the ledger is out of reach: send it again", {"Retry-After": RETRY_AFTER_S})

    async def too_large(_request: Request, _error: Exception) -> Response:
        return _problem(413, f"a body has at most {body_bytes_max} bytes: send smaller batches")

    async def too_slow(_request: Request, _error: Exception) -> Response:
        return _problem(408, f"a body is sent within {BODY_S:g} seconds", {"Connection": "close"})

    async def gone(_request: Request, _error: Exception) -> Response:
        return Response(status_code=400)  # to nobody

    return Starlette(
        routes=[
            Route("/log", log, methods=["POST", "PUT", "PATCH"]),  # http-log's choice
            Route("/events", events, methods=["POST"]),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", metrics_page),
        ],
        exception_handlers={
            LedgerUnavailable: ledger_away,
            _TooLarge: too_large,
            _TooSlow: too_slow,
            ClientDisconnect: gone,
        },
    )


def _refused(request: Request, tokens: Tokens) -> Response | None:
    if not tokens:
        return _problem(403, f"nothing is taken here without a token: start it with --token-file or {TOKEN_ENV}")
    if not tokens.allow(request.headers):
        return _problem(401, "send the collector's token: Authorization: Bearer …", {"WWW-Authenticate": "Bearer"})
    return None


async def _body(request: Request, bytes_max: int) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > bytes_max:
                    raise _TooLarge
    except TimeoutError:
        raise _TooSlow from None
    return bytes(body)


def _problem(status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse(
        {"title": _TITLES[status], "status": status, "detail": detail},
        status,
        headers,
        media_type="application/problem+json",
    )


_TITLES = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    408: "Request Timeout",
    413: "Content Too Large",
    503: "Service Unavailable",
}

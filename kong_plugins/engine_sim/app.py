"""The ASGI application: routes, and the layers around them in vLLM's order (request id, key, CORS)."""

from __future__ import annotations

import re
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kong_plugins.engine_sim import plain_endpoints as plain
from kong_plugins.engine_sim.chat import chat
from kong_plugins.engine_sim.completions import completions
from kong_plugins.engine_sim.embeddings import embeddings
from kong_plugins.engine_sim.engine import Engine
from kong_plugins.engine_sim.errors import ENGINE_DIED, ApiError, ConnectionCut
from kong_plugins.engine_sim.messages import count_tokens, messages
from kong_plugins.engine_sim.metrics import EngineMetrics
from kong_plugins.engine_sim.options import EngineOptions
from kong_plugins.engine_sim.responses import responses
from kong_plugins.engine_sim.service import JsonResponse, Service
from kong_plugins.engine_sim.streaming import cut
from kong_plugins.engine_sim.vocabulary import r1_vocabulary

Handler = Callable[[Service, Request], Awaitable[Response]]

_ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("/health", "GET", plain.health),
    ("/ping", "GET", plain.health),
    ("/load", "GET", plain.load),
    ("/version", "GET", plain.version),
    ("/metrics", "GET", plain.metrics),
    ("/tokenize", "POST", plain.tokenize),
    ("/detokenize", "POST", plain.detokenize),
    ("/v1/models", "GET", plain.models),
    ("/v1/chat/completions", "POST", chat),
    ("/v1/chat/completions/render", "POST", plain.render),
    ("/v1/completions", "POST", completions),
    ("/v1/embeddings", "POST", embeddings),
    ("/v1/responses", "POST", responses),
    ("/v1/messages", "POST", messages),
    ("/v1/messages/count_tokens", "POST", count_tokens),
    ("/sim/faults", "GET", plain.show_faults),
    ("/sim/faults", "POST", plain.set_faults),
    ("/sim/refuse", "POST", plain.refuse),
    ("/sim/reset", "POST", plain.reset),
    ("/sim/requests", "GET", plain.seen_requests),
)
BODY_KEPT_BYTES = 1 << 20  # a thousand remembered bodies of 10 MB would be the whole machine
_GENERATING = {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages"}
_REFUSAL_KINDS = {429: "RateLimitError", 500: "InternalServerError", 503: "ServiceUnavailableError"}


def build_service(options: EngineOptions) -> Service:
    """An engine and everything around it; the engine's ticker is not started."""
    metrics = EngineMetrics(options.served_model_name, options.block_size, options.num_gpu_blocks)
    vocabulary = r1_vocabulary()
    seen: deque[dict[str, Any]] = deque(maxlen=options.requests_kept)
    return Service(options, vocabulary, metrics, Engine(options, vocabulary, metrics), seen, int(time.time()))


def build_app(service: Service) -> ASGIApp:
    """The application as vLLM layers it, with the stand-in's own notes outermost."""
    routes = [Route(path, _endpoint(service, handler), methods=[method]) for path, method, handler in _ROUTES]
    handlers: dict[Any, Any] = {
        ApiError: _api_error,
        HTTPException: _http_error,
        ConnectionCut: _connection_cut,
    }
    app: ASGIApp = Starlette(routes=routes, exception_handlers=handlers)
    app = CORSMiddleware(app, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"])
    app = AnswerCounts(app, service)
    if service.options.api_key is not None:
        app = ApiKey(app, service.options.api_key)
    if service.options.enable_request_id_headers:
        app = RequestIds(app)
    return Notes(app, service)


def _endpoint(service: Service, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        if request.url.path in _GENERATING:
            request.state.faults = faults = service.engine.take_faults()
            if faults.status is not None:
                message = ENGINE_DIED if faults.status == 500 else "The engine was told to refuse."
                raise ApiError(faults.status, message, _REFUSAL_KINDS.get(faults.status, "InternalServerError"))
        return await handler(service, request)

    return endpoint


async def _api_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JsonResponse(error.body(), status_code=error.status)


async def _http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JsonResponse({"detail": error.detail}, status_code=error.status_code, headers=error.headers)


class _Cut(Response):
    def __init__(self, fault: ConnectionCut) -> None:
        super().__init__()
        self._fault = fault

    async def __call__(self, scope: Scope, receive: Receive, _send: Send) -> None:
        await cut(scope, receive, self._fault)


async def _connection_cut(_request: Request, fault: Exception) -> Response:
    assert isinstance(fault, ConnectionCut)
    return _Cut(fault)


def _with_headers(send: Send, headers: list[tuple[bytes, bytes]]) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *headers]
        await send(message)

    return sending


class RequestIds:
    """Every answer carries the request's ``X-Request-Id``, or a new one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            known = dict(scope["headers"]).get(b"x-request-id") or uuid.uuid4().hex.encode()
            send = _with_headers(send, [(b"x-request-id", known)])
        await self._app(scope, receive, send)


class ApiKey:
    """A bearer token is required below /v1, and only there."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._expected = f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/v1") and scope["method"] != "OPTIONS":
            given = dict(scope["headers"]).get(b"authorization", b"")
            if given != self._expected:
                await JsonResponse({"error": "Unauthorized"}, status_code=401)(scope, receive, send)
                return
        await self._app(scope, receive, send)


class AnswerCounts:
    """Counts answers in ``http_requests_total``; below the key check, as in vLLM: a 401 is not counted."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._metrics = service.metrics
        self._paths = {path for path, _, _ in _ROUTES}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                known = scope["path"] in self._paths and message["status"] != 405
                self._metrics.answered(scope["path"] if known else "none", scope["method"], message["status"])
            await send(message)

        await self._app(scope, receive, sending if scope["type"] == "http" else send)


class Notes:
    """Remembers requests as they came, and counts those in flight."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope.get("path", "")
        if scope["type"] != "http" or re.match(r"/(sim/|metrics$|health$)", path):
            await self._app(scope, receive, send)
            return
        note: dict[str, Any] = {
            "method": scope["method"],
            "path": path,
            "query": scope["query_string"].decode("latin-1"),
            "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]],
            "body": "",
            "size": 0,
        }
        body = bytearray()

        async def receiving() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                body.extend(message.get("body", b""))
                if not message.get("more_body"):
                    note["body"] = body[:BODY_KEPT_BYTES].decode("utf-8", "backslashreplace")
                    note["size"] = len(body)
            return message

        self._service.seen.append(note)
        self._service.in_flight += 1
        try:
            await self._app(scope, receiving, send)
        finally:
            self._service.in_flight -= 1

"""Endpoints that generate nothing: health, models, tokens, counters, and the stand-in's own controls under /sim."""

from __future__ import annotations

import json

from starlette.requests import Request
from starlette.responses import Response

from kong_plugins.engine_sim.completions import prompts_of
from kong_plugins.engine_sim.errors import ApiError, invalid_field
from kong_plugins.engine_sim.faults import changed
from kong_plugins.engine_sim.fields import Fields, read_fields
from kong_plugins.engine_sim.options import VLLM_VERSION
from kong_plugins.engine_sim.prompting import chat_messages
from kong_plugins.engine_sim.service import JsonResponse, Service, random_id
from kong_plugins.engine_sim.vocabulary import render_chat


async def health(service: Service, _request: Request) -> Response:
    """Empty; 503 after the engine died."""
    return Response(status_code=503 if service.engine.dead else 200)


async def version(_service: Service, _request: Request) -> Response:
    return JsonResponse({"version": VLLM_VERSION})


async def load(service: Service, _request: Request) -> Response:
    """Requests in flight; 0 unless the server was told to count them, as in vLLM."""
    return JsonResponse({"server_load": service.in_flight if service.options.enable_server_load_tracking else 0})


async def metrics(service: Service, _request: Request) -> Response:
    headers = {"content-type": service.metrics.content_type}
    return Response(service.metrics.text(), headers=headers)


async def models(service: Service, _request: Request) -> Response:
    permission = {
        "id": f"modelperm-{random_id()}",
        "object": "model_permission",
        "created": service.started,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    model = {
        "id": service.options.served_model_name,
        "object": "model",
        "created": service.started,
        "owned_by": "vllm",
        "root": service.options.model,
        "parent": None,
        "max_model_len": service.options.max_model_len,
        "permission": [permission],
    }
    return JsonResponse({"object": "list", "data": [model]})


async def tokenize(service: Service, request: Request) -> Response:
    """Token ids of a prompt or of messages through the chat template."""
    fields = await read_fields(request)
    service.check_model(fields)
    if fields.has("messages"):
        tokens = service.vocabulary.encode(render_chat(chat_messages(fields.data["messages"])))
    else:
        text = fields.required("prompt")
        if not isinstance(text, str):
            raise invalid_field("string_type", "body.prompt", "Input should be a valid string", text)
        tokens = service.vocabulary.encode(text)
    names = service.vocabulary.names(tokens) if fields.boolean("return_token_strs") else None
    body = {
        "count": len(tokens),
        "max_model_len": service.options.max_model_len,
        "tokens": tokens,
        "token_strs": names,
    }
    return JsonResponse(body)


async def detokenize(service: Service, request: Request) -> Response:
    fields = await read_fields(request)
    service.check_model(fields)
    fields.required("tokens")
    tokens = fields.items("tokens")
    if not tokens:
        return JsonResponse({"prompt": ""})
    [ids] = prompts_of(service.vocabulary, Fields({"tokens": tokens}), "tokens")
    return JsonResponse({"prompt": service.vocabulary.text(ids)})


async def render(_service: Service, _request: Request) -> Response:
    message = "Scale-out endpoints are disabled. Restart vllm serve with --enable-scale-out to enable them."
    raise ApiError(403, message, "PermissionDeniedError")


async def set_faults(service: Service, request: Request) -> Response:
    """Change the faults that requests take on from now: a JSON object with fields of `Faults`. Answers with all."""
    try:
        service.engine.faults = changed(service.engine.faults, json.loads(await request.body()))
    except ValueError as error:
        raise ApiError(400, str(error), "BadFault") from error
    return JsonResponse(service.engine.faults.as_json())


async def refuse(service: Service, request: Request) -> Response:
    """Close the listening socket for ``{"for_ms": N}`` milliseconds. Connections that are open stay."""
    fields = await read_fields(request)
    fields.required("for_ms")
    pause_ms = fields.integer("for_ms") or 0
    if pause_ms < 1:
        raise ApiError(400, f"for_ms is at least 1, not {pause_ms}", "BadFault")
    if service.refuse_for is None:
        raise ApiError(400, "Nothing listens that could refuse.", "BadFault")
    service.refuse_for(pause_ms / 1000)
    return JsonResponse({"refusing_for_ms": pause_ms})


async def show_faults(service: Service, _request: Request) -> Response:
    return JsonResponse(service.engine.faults.as_json())


async def reset(service: Service, _request: Request) -> Response:
    """No faults, a living engine, an empty prefix cache and no remembered requests. Counters stay: they only grow."""
    service.engine.reset()
    service.seen.clear()
    return JsonResponse(service.engine.faults.as_json())


async def seen_requests(service: Service, request: Request) -> Response:
    """The last requests (``?last=N``, default all kept) as they came, oldest first.

    Each has ``method``, ``path``, ``query``, ``headers`` (pairs, in order), ``body`` (text, 1 MiB at most; bytes
    that are no UTF-8 appear as backslash escapes) and ``size`` (the body's bytes).
    """
    last = request.query_params.get("last", "")
    if last and not last.isdigit():
        raise ApiError(400, f"last is a number of requests, not {last!r}")
    kept = list(service.seen)
    return JsonResponse({"requests": kept[-int(last) :] if last and int(last) else [] if last else kept})

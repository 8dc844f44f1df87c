"""``/v1/embeddings``, in the shape of vLLM's and OpenAI's documentation: it was not recorded.

The vectors are made up from the tokens: equal texts get equal vectors, and nothing else can be said of them.
"""

from __future__ import annotations

import base64
import hashlib
import math
import struct

from starlette.requests import Request
from starlette.responses import Response

from kong_plugins.engine_sim.completions import prompts_of
from kong_plugins.engine_sim.errors import ApiError, engine_died
from kong_plugins.engine_sim.fields import read_fields
from kong_plugins.engine_sim.prompting import check_prompt_length
from kong_plugins.engine_sim.service import JsonResponse, Service, now, request_id

DIMENSIONS = 64


def vector(tokens: list[int], dimensions: int) -> list[float]:
    """A unit vector that depends on the tokens alone."""
    seed = hashlib.shake_128(repr(tokens).encode()).digest(dimensions * 2)
    raw = [value / 32768 for (value,) in struct.iter_unpack("<h", seed)]
    length = math.sqrt(sum(value * value for value in raw)) or 1.0
    return [value / length for value in raw]


async def embeddings(service: Service, request: Request) -> Response:
    """Answer an embedding request: one vector per input."""
    fields = await read_fields(request)
    prompts = prompts_of(service.vocabulary, fields, "input")
    service.check_model(fields)
    if service.engine.dead:
        raise engine_died()
    for prompt in prompts:
        check_prompt_length(prompt, None, service.options.max_model_len)
    dimensions = fields.integer("dimensions")
    dimensions = DIMENSIONS if dimensions is None else dimensions
    if not 1 <= dimensions <= 8192:
        raise ApiError(400, f"dimensions must be between 1 and 8192, got {dimensions}.", param="dimensions")
    encoding = fields.string("encoding_format") or "float"
    if encoding not in {"float", "base64"}:
        raise ApiError(400, f"encoding_format is float or base64, got {encoding}.", param="encoding_format")
    data = []
    for index, prompt in enumerate(prompts):
        values = vector(prompt, dimensions)
        packed = base64.b64encode(struct.pack(f"<{dimensions}f", *values)).decode()
        embedding = values if encoding == "float" else packed
        data.append({"index": index, "object": "embedding", "embedding": embedding})
        service.metrics.prefilled(len(prompt), 0)
    tokens = sum(map(len, prompts))
    usage = {
        "prompt_tokens": tokens,
        "total_tokens": tokens,
        "completion_tokens": 0,
        "prompt_tokens_details": None,
    }
    return JsonResponse(
        {
            "id": f"embd-{request_id(request, fields)}",
            "object": "list",
            "created": now(),
            "model": service.options.served_model_name,
            "data": data,
            **({} if request.state.faults.no_usage else {"usage": usage}),
        }
    )

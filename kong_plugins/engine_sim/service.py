"""What every generating endpoint shares: the request's identity, its faults, its job, and how usage is told."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from kong_plugins.engine_sim.engine import Engine, Job
from kong_plugins.engine_sim.errors import ApiError, bad_parameter
from kong_plugins.engine_sim.faults import Faults
from kong_plugins.engine_sim.fields import Fields
from kong_plugins.engine_sim.metrics import EngineMetrics
from kong_plugins.engine_sim.options import EngineOptions
from kong_plugins.engine_sim.prompting import check_prompt_length
from kong_plugins.engine_sim.sequence import Kind, SamplingParams, Step
from kong_plugins.engine_sim.vocabulary import Vocabulary

ANSWER_HEADER = "x-sim-answer-tokens"


def random_id() -> str:
    """Sixteen hex digits, as vLLM's ids have."""
    return uuid.uuid4().hex[16:]


def dump(value: object) -> bytes:
    """Compact JSON in UTF-8, as vLLM writes its answers."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


class JsonResponse(Response):
    """Compact JSON."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        return dump(content)


@dataclass(slots=True)
class Service:
    """The running engine and what is around it."""

    options: EngineOptions
    vocabulary: Vocabulary
    metrics: EngineMetrics
    engine: Engine
    seen: deque[dict[str, Any]]
    started: int
    in_flight: int = 0
    refuse_for: Callable[[float], None] | None = None  # set by the server that listens; seconds

    def check_model(self, fields: Fields) -> None:
        """Refuse a model that is not served; none at all means the served one."""
        model = fields.string("model")
        if model and model != self.options.served_model_name:
            message = f"The model `{model}` does not exist. Valid aliases: {self.options.served_model_name}."
            raise ApiError(404, message, "NotFoundError", "model")

    def begin(
        self, request: Request, prompts: Sequence[Sequence[int]], params: SamplingParams, salt: str | None = None
    ) -> Job:
        """Hand the prompts to the engine with the request's faults.

        Raises:
            ApiError: a prompt is too long, or the engine is dead.
        """
        for prompt in prompts:
            check_prompt_length(prompt, params.max_tokens, self.options.max_model_len)
        faults: Faults = request.state.faults
        form = request.headers.get(ANSWER_HEADER, self.options.answer)
        if form not in {"scripted", "varied"} and not (form.isdigit() and int(form) > 0):
            raise ApiError(400, f"{ANSWER_HEADER} is scripted, varied or a number of tokens, not {form!r}")
        return self.engine.submit(prompts, params, salt, faults, form)


@dataclass(frozen=True, slots=True)
class UsagePolicy:
    """When usage is told: in the last chunk (or the body), and in every chunk."""

    final: bool
    running: bool
    prompt_details: bool

    def whole(self, job: Job, reasons: bool) -> dict[str, Any]:
        """Usage of a whole chat answer; details are null where the server's flags leave them out."""
        usage = self.counts(job)
        details = {"cached_tokens": job.cached_tokens, "created_cache_tokens": job.created_tokens}
        usage["prompt_tokens_details"] = {**details, "multimodal_tokens": None} if self.prompt_details else None
        usage["completion_tokens_details"] = {"reasoning_tokens": job.reasoning_tokens} if reasons else None
        return usage

    def counts(self, job: Job) -> dict[str, Any]:
        prompt, completion = job.prompt_tokens, job.generated
        return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}


def usage_policy(service: Service, fields: Fields, faults: Faults) -> UsagePolicy:
    """vLLM's rules: the forced form wins over the client's; running usage only together with a final one."""
    details = service.options.enable_prompt_tokens_details
    if faults.no_usage:
        return UsagePolicy(False, False, details)
    if not fields.boolean("stream"):
        return UsagePolicy(True, False, details)
    asked = fields.mapping("stream_options") or Fields({})
    forced = service.options.enable_force_include_usage
    final = forced or asked.boolean("include_usage")
    return UsagePolicy(final, final and (forced or asked.boolean("continuous_usage_stats")), details)


def check_stream_options(fields: Fields) -> None:
    if fields.has("stream_options") and not fields.boolean("stream"):
        raise bad_parameter("Stream options can only be defined when `stream=True`.", "stream_options")


def cache_salt(fields: Fields) -> str | None:
    salt = fields.string("cache_salt")
    if salt == "":
        raise bad_parameter("Parameter 'cache_salt' must be a non-empty string if provided.", "cache_salt")
    return salt


def request_id(request: Request, fields: Fields) -> str:
    """The client's own id, from the header before the body, else a new one."""
    return request.headers.get("x-request-id") or fields.string("request_id") or random_id()


def now() -> int:
    """``created``: seconds since the epoch."""
    return int(time.time())


async def disconnected(request: Request) -> None:
    """Wait until the client has gone. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def finish(service: Service, request: Request, job: Job) -> bool:
    """Wait for a job's end, or abort it when the client goes. False: it was aborted.

    Raises:
        ApiError, ConnectionCut: as `Job.batches`.
    """
    ending = asyncio.ensure_future(job.finished())
    leaving = asyncio.ensure_future(disconnected(request))
    try:
        await asyncio.wait({ending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not ending.done():
            service.engine.abort(job)
        await ending
    finally:
        leaving.cancel()
    return not job.aborted


def merged(steps: list[Step], params: SamplingParams) -> list[Step]:
    """Steps of one choice and kind joined, as vLLM does for a reader that lags. Not where tokens are shown singly."""
    if params.token_ids or params.logprobs is not None:
        return steps
    joined: list[Step] = []
    for step in steps:
        last = joined[-1] if joined else None
        if last is None or last.index != step.index or last.kind is not step.kind or step.kind is Kind.MARKER:
            joined.append(step)
        else:
            joined[-1] = Step(
                step.index,
                step.token,
                last.text + step.text,
                step.kind,
                step.completion,
                step.reasoning,
                step.finish,
                step.stop_reason,
            )
    return joined


def logprob_entry(vocabulary: Vocabulary, token: int, alternatives: int) -> dict[str, Any]:
    """A token's log probability: the scripted token is certain, all others are as unlikely as recorded."""

    def one(candidate: int, logprob: float) -> dict[str, Any]:
        raw = vocabulary.raw(candidate)
        return {"token": raw.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(raw)}

    others = [other for other in range(alternatives) if other != token][: max(0, alternatives - 1)]
    top = [one(token, 0.0), *(one(other, -45.25) for other in others)]
    return {**one(token, 0.0), "top_logprobs": top if alternatives else []}

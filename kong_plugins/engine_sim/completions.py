"""``/v1/completions``. `logprobs` here follows OpenAI's documentation; it was not recorded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from kong_plugins.engine_sim.chat import Head
from kong_plugins.engine_sim.engine import Job
from kong_plugins.engine_sim.errors import ApiError, invalid_field
from kong_plugins.engine_sim.fields import Fields, read_fields
from kong_plugins.engine_sim.prompting import check_output_length, sampling_params
from kong_plugins.engine_sim.sequence import Generation, SamplingParams, Step
from kong_plugins.engine_sim.service import (
    JsonResponse,
    Service,
    UsagePolicy,
    cache_salt,
    check_stream_options,
    dump,
    finish,
    logprob_entry,
    merged,
    now,
    request_id,
    usage_policy,
)
from kong_plugins.engine_sim.streaming import DONE, EventStream, error_events
from kong_plugins.engine_sim.vocabulary import Vocabulary

DEFAULT_MAX_TOKENS = 16


def prompts_of(vocabulary: Vocabulary, fields: Fields, name: str) -> list[list[int]]:
    """Prompts as token ids: a text, token ids, or a list of either.

    Raises:
        ApiError: anything else, or none.
    """
    value = fields.required(name)
    if isinstance(value, str):
        return [vocabulary.encode(value)]
    if not isinstance(value, list) or not value:
        raise invalid_field("string_type", f"body.{name}", "Input should be a valid string", value)
    if all(type(item) is int for item in value):
        return [_ids(vocabulary, value, name)]
    prompts: list[list[int]] = []
    for item in value:
        if isinstance(item, str):
            prompts.append(vocabulary.encode(item))
        elif isinstance(item, list) and item and all(type(token) is int for token in item):
            prompts.append(_ids(vocabulary, item, name))
        else:
            raise invalid_field("string_type", f"body.{name}", "Input should be a valid string", item)
    return prompts


def _ids(vocabulary: Vocabulary, tokens: list[int], name: str) -> list[int]:
    for token in tokens:
        if not 0 <= token < vocabulary.size:
            raise ApiError(400, f"Token id {token} is out of vocabulary", param=name)
    return tokens


async def completions(service: Service, request: Request) -> Response:
    """Answer a raw completion: one choice per prompt and n."""
    fields = await read_fields(request)
    prompts = prompts_of(service.vocabulary, fields, "prompt")
    check_stream_options(fields)
    salt = cache_salt(fields)
    policy = usage_policy(service, fields, request.state.faults)
    service.check_model(fields)
    limit = fields.integer("max_tokens")
    limit = DEFAULT_MAX_TOKENS if limit is None else limit
    check_output_length(limit, service.options.max_model_len)
    params = sampling_params(fields, limit, fields.integer("logprobs"))
    echo = fields.boolean("echo")
    job = service.begin(request, prompts, params, salt)
    head = Head(f"cmpl-{request_id(request, fields)}", now(), service.options.served_model_name)
    if fields.boolean("stream"):
        return EventStream(service, request, job, CompletionEvents(service, job, head, params, policy, echo=echo))
    if not await finish(service, request, job):
        return JsonResponse(None)
    usage: dict[str, Any] = {}
    if policy.final:
        usage["usage"] = {**policy.counts(job), "prompt_tokens_details": None, "completion_tokens_details": None}
        if policy.prompt_details:
            details = {"cached_tokens": job.cached_tokens, "created_cache_tokens": None, "multimodal_tokens": None}
            usage["usage"]["prompt_tokens_details"] = details
    return JsonResponse(
        {
            **head.fields("text_completion"),
            "choices": [_choice(service, sequence, params, echo) for sequence in job.sequences],
            "service_tier": None,
            "system_fingerprint": service.options.fingerprint,
            **usage,
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "metrics": None,
        }
    )


def _choice(service: Service, sequence: Generation, params: SamplingParams, echo: bool) -> dict[str, Any]:
    prompt = service.vocabulary.text(sequence.prompt) if echo else ""
    return {
        "index": sequence.index,
        "text": prompt + sequence.text,
        "logprobs": _logprobs(service.vocabulary, sequence.tokens, params, len(prompt)),
        "finish_reason": sequence.finish,
        "stop_reason": sequence.stop_reason,
        "token_ids": sequence.tokens if params.token_ids else None,
        "prompt_logprobs": None,
        "prompt_token_ids": list(sequence.prompt) if params.token_ids else None,
        "routed_experts": None,
    }


def _logprobs(vocabulary: Vocabulary, tokens: list[int], params: SamplingParams, offset: int) -> dict[str, Any] | None:
    if params.logprobs is None:
        return None
    entries = [logprob_entry(vocabulary, token, params.logprobs) for token in tokens]
    offsets = []
    for entry in entries:
        offsets.append(offset)
        offset += len(entry["token"])
    return {
        "text_offset": offsets,
        "token_logprobs": [entry["logprob"] for entry in entries],
        "tokens": [entry["token"] for entry in entries],
        "top_logprobs": [{top["token"]: top["logprob"] for top in entry["top_logprobs"]} for entry in entries],
    }


class CompletionEvents:
    """Chunks of a raw completion stream: texts, usage, [DONE]. There is no role chunk."""

    def __init__(
        self, service: Service, job: Job, head: Head, params: SamplingParams, policy: UsagePolicy, *, echo: bool
    ) -> None:
        self._service = service
        self._job = job
        self._params = params
        self._policy = policy
        self._opening = f"data: {dump(head.fields('text_completion')).decode()[:-1]}"
        self._open = len(job.sequences)
        self._offsets = [0] * len(job.sequences)
        self._echo = {sequence.index for sequence in job.sequences} if echo else set[int]()

    def events(self, steps: list[Step]) -> Iterator[bytes]:
        for step in merged(steps, self._params) if self._service.options.coalesce else steps:
            yield self._chunk(step)

    def _chunk(self, step: Step) -> bytes:
        sequence = self._job.sequences[step.index]
        first = self._offsets[step.index] == 0
        text = step.text
        if step.index in self._echo:
            self._echo.discard(step.index)
            text = self._service.vocabulary.text(sequence.prompt) + text
        choice = {
            "index": step.index,
            "text": text,
            "logprobs": _logprobs(self._service.vocabulary, [step.token], self._params, self._offsets[step.index]),
            "finish_reason": step.finish,
            "stop_reason": step.stop_reason,
            "prompt_token_ids": list(sequence.prompt) if self._params.token_ids and first else None,
            "token_ids": [step.token] if self._params.token_ids else None,
        }
        self._offsets[step.index] += len(text)
        tail = ""
        if self._policy.running:
            prompt = len(sequence.prompt)
            told = {
                "prompt_tokens": prompt,
                "total_tokens": prompt + step.completion,
                "completion_tokens": step.completion,
            }
            tail = f',"usage":{dump(told).decode()}'
        if step.finish:
            self._open -= 1
            if not self._open and not self._policy.final:
                tail += f',"system_fingerprint":"{self._service.options.fingerprint}"'
        return f'{self._opening},"choices":[{dump(choice).decode()}]{tail}}}\n\n'.encode()

    def ending(self) -> Iterator[bytes]:
        if self._policy.final:
            usage = self._policy.counts(self._job)
            if self._policy.prompt_details:
                usage["prompt_tokens_details"] = {"cached_tokens": self._job.sequences[0].cached}
            fingerprint = f'"system_fingerprint":"{self._service.options.fingerprint}"'
            yield f'{self._opening},"choices":[],"usage":{dump(usage).decode()},{fingerprint}}}\n\n'.encode()
        yield DONE

    def failed(self, error: ApiError) -> Iterator[bytes]:
        return error_events(error)

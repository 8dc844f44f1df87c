"""``/v1/chat/completions``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from kong_plugins.engine_sim.engine import Job
from kong_plugins.engine_sim.errors import ApiError, bad_parameter
from kong_plugins.engine_sim.fields import Fields, read_fields
from kong_plugins.engine_sim.prompting import chat_messages, check_output_length, sampling_params
from kong_plugins.engine_sim.sequence import Generation, Kind, SamplingParams, Step
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
from kong_plugins.engine_sim.vocabulary import render_chat

_NULL_TAIL = dict.fromkeys(
    ("prompt_logprobs", "prompt_token_ids", "prompt_text", "kv_transfer_params", "ec_transfer_params")
)


@dataclass(frozen=True, slots=True)
class Head:
    """What every chunk and body of one answer begins with."""

    id: str
    created: int
    model: str

    def fields(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


async def chat(service: Service, request: Request) -> Response:
    """Answer a chat completion."""
    fields = await read_fields(request)
    messages = fields.required("messages")
    check_stream_options(fields)
    salt = cache_salt(fields)
    stream = fields.boolean("stream")
    policy = usage_policy(service, fields, request.state.faults)
    service.check_model(fields)
    _check_tools(fields)
    prompt = service.vocabulary.encode(render_chat(chat_messages(messages)))
    limit = fields.integer("max_completion_tokens")
    limit = fields.integer("max_tokens") if limit is None else limit
    check_output_length(limit, service.options.max_model_len)
    params = sampling_params(fields, limit, _logprobs(fields))
    job = service.begin(request, [prompt], params, salt)
    head = Head(f"chatcmpl-{request_id(request, fields)}", now(), service.options.served_model_name)
    if stream:
        return EventStream(service, request, job, ChatEvents(service, job, head, params, policy))
    if not await finish(service, request, job):
        return JsonResponse(None)
    return JsonResponse(_body(service, job, head, params, policy))


def _check_tools(fields: Fields) -> None:
    tools = fields.items("tools")
    if tools and fields.data.get("tool_choice", "auto") == "auto":
        raise ApiError(400, '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set')


def _logprobs(fields: Fields) -> int | None:
    top = fields.integer("top_logprobs")
    if top and not fields.boolean("logprobs"):
        raise bad_parameter("when using `top_logprobs`, `logprobs` must be set to true.", "top_logprobs")
    return (top or 0) if fields.boolean("logprobs") else None


def _choice(service: Service, sequence: Generation, params: SamplingParams) -> dict[str, Any]:
    reasoning, content = sequence.split()
    logprobs = None
    if params.logprobs is not None:
        entries = [logprob_entry(service.vocabulary, token, params.logprobs) for token in sequence.tokens]
        logprobs = {"content": entries}
    return {
        "index": sequence.index,
        "message": {
            "role": "assistant",
            "content": content,
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "reasoning": reasoning,
        },
        "logprobs": logprobs,
        "finish_reason": sequence.finish,
        "stop_reason": sequence.stop_reason,
        "token_ids": sequence.tokens if params.token_ids else None,
        "routed_experts": None,
    }


def _body(service: Service, job: Job, head: Head, params: SamplingParams, policy: UsagePolicy) -> dict[str, Any]:
    usage = {"usage": policy.whole(job, service.options.reasoning_parser is not None)} if policy.final else {}
    tail: dict[str, Any] = {**_NULL_TAIL, "metrics": None}
    if params.token_ids:
        tail["prompt_token_ids"] = list(job.sequences[0].prompt)
    return {
        **head.fields("chat.completion"),
        "choices": [_choice(service, sequence, params) for sequence in job.sequences],
        "service_tier": None,
        "system_fingerprint": service.options.fingerprint,
        **usage,
        **tail,
    }


@lru_cache(maxsize=4096)
def _delta(kind: Kind, text: str) -> str:
    field = "reasoning" if kind is Kind.REASONING else "content"
    return f'{{"{field}":{json.dumps(text, ensure_ascii=False)}}}'


class ChatEvents:
    """Chunks of a chat stream: role chunks, deltas, the finish, usage, [DONE]."""

    def __init__(self, service: Service, job: Job, head: Head, params: SamplingParams, policy: UsagePolicy) -> None:
        self._service = service
        self._job = job
        self._params = params
        self._policy = policy
        self._reasons = service.options.reasoning_parser is not None
        self._prompt_tokens = job.prompt_tokens
        opening = dump(head.fields("chat.completion.chunk")).decode()
        self._opening = f'data: {opening[:-1]},"choices":['
        self._fingerprint = f'"system_fingerprint":"{service.options.fingerprint}"'
        self._begun = False
        self._open = len(job.sequences)

    def events(self, steps: list[Step]) -> Iterator[bytes]:
        if not self._begun:
            self._begun = True
            for index in range(len(self._job.sequences)):
                yield self._role(index)
        for step in merged(steps, self._params) if self._service.options.coalesce else steps:
            if step.kind is not Kind.MARKER or step.finish or self._params.token_ids:
                yield self._chunk(step)

    def _role(self, index: int) -> bytes:
        prompt = json.dumps(list(self._job.sequences[0].prompt), separators=(",", ":"))
        return (
            f'{self._opening}{{"index":{index},"delta":{{"role":"assistant","content":""}},"logprobs":null,'
            f'"finish_reason":null}}]{self._running(0, 0)},"prompt_token_ids":'
            f'{prompt if self._params.token_ids else "null"},"prompt_text":null}}\n\n'
        ).encode()

    def _chunk(self, step: Step) -> bytes:
        delta = "{}" if step.kind is Kind.MARKER else _delta(step.kind, step.text)
        logprobs = "null"
        if self._params.logprobs is not None:
            entry = logprob_entry(self._service.vocabulary, step.token, self._params.logprobs)
            logprobs = dump({"content": [entry]}).decode()
        ending, last = '"finish_reason":null', ""
        if step.finish:
            ending = f'"finish_reason":"{step.finish}","stop_reason":{json.dumps(step.stop_reason, ensure_ascii=False)}'
            self._open -= 1
            if not self._open and not self._policy.final:
                last = f",{self._fingerprint}"
        tokens = f"[{step.token}]" if self._params.token_ids else "null"
        return (
            f'{self._opening}{{"index":{step.index},"delta":{delta},"logprobs":{logprobs},{ending},'
            f'"token_ids":{tokens}}}]{self._running(step.completion, step.reasoning)}{last}}}\n\n'
        ).encode("utf-8", "surrogatepass")

    def _running(self, completion: int, reasoning: int) -> str:
        if not self._policy.running:
            return ""
        details = f'{{"reasoning_tokens":{reasoning}}}' if self._reasons else "null"
        prompt = self._prompt_tokens
        return (
            f',"usage":{{"prompt_tokens":{prompt},"total_tokens":{prompt + completion},'
            f'"completion_tokens":{completion},"completion_tokens_details":{details}}}'
        )

    def ending(self) -> Iterator[bytes]:
        if self._policy.final:
            usage = self._policy.whole(self._job, self._reasons)
            told = {name: value for name, value in usage.items() if value is not None}
            if "prompt_tokens_details" in told:
                del told["prompt_tokens_details"]["multimodal_tokens"]
            yield f'{self._opening}],"usage":{dump(told).decode()},{self._fingerprint}}}\n\n'.encode()
        yield DONE

    def failed(self, error: ApiError) -> Iterator[bytes]:
        return error_events(error)

"""``/v1/messages`` and ``/v1/messages/count_tokens`` (Anthropic's shape). The error event of a stream whose engine died
was not recorded; it follows Anthropic's documentation."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from kong_plugins.engine_sim.engine import Job
from kong_plugins.engine_sim.errors import ApiError
from kong_plugins.engine_sim.fields import Fields, read_fields
from kong_plugins.engine_sim.prompting import chat_messages, check_output_length, content_text, sampling_params
from kong_plugins.engine_sim.sequence import Kind, SamplingParams, Step
from kong_plugins.engine_sim.service import JsonResponse, Service, cache_salt, dump, finish, merged, request_id
from kong_plugins.engine_sim.streaming import EventStream
from kong_plugins.engine_sim.vocabulary import render_chat

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens"}


def _prompt(service: Service, fields: Fields) -> list[int]:
    given = chat_messages(fields.required("messages"))
    if fields.has("system"):
        given = [{"role": "system", "content": content_text(fields.data["system"], "body.system")}, *given]
    return service.vocabulary.encode(render_chat(given))


async def count_tokens(service: Service, request: Request) -> Response:
    """Count a prompt without running it."""
    fields = await read_fields(request)
    service.check_model(fields)
    count = len(_prompt(service, fields))
    return JsonResponse({"input_tokens": count, "context_management": {"original_input_tokens": count}})


async def messages(service: Service, request: Request) -> Response:
    """Answer a message request."""
    fields = await read_fields(request)
    fields.required("messages")
    fields.required("max_tokens")
    service.check_model(fields)
    prompt = _prompt(service, fields)
    limit = fields.integer("max_tokens")
    check_output_length(limit, service.options.max_model_len)
    params = sampling_params(Fields({**fields.data, "n": 1}), limit, stop="stop_sequences")
    job = service.begin(request, [prompt], params, cache_salt(fields))
    answer_id = f"chatcmpl-{request_id(request, fields)}"
    silent = request.state.faults.no_usage
    if fields.boolean("stream"):
        return EventStream(service, request, job, MessageEvents(service, job, params, answer_id, silent))
    if not await finish(service, request, job):
        return JsonResponse(None)
    reasoning, content = job.sequences[0].split()
    blocks: list[dict[str, Any]] = []
    if reasoning:
        blocks.append({"type": "thinking", "thinking": reasoning, "signature": uuid.uuid4().hex})
    if content:
        blocks.append({"type": "text", "text": content})
    return JsonResponse(
        {
            "id": answer_id,
            "type": "message",
            "role": "assistant",
            "content": blocks,
            "model": service.options.served_model_name,
            "stop_reason": _STOP_REASONS[job.sequences[0].finish or "stop"],
            **({} if silent else {"usage": _usage(service, job)}),
        }
    )


def _usage(service: Service, job: Job) -> dict[str, int]:
    # As Anthropic counts, and vLLM with it: input_tokens is what was neither read from the cache nor written to it.
    details = service.options.enable_prompt_tokens_details
    created, cached = (job.created_tokens, job.cached_tokens) if details else (0, 0)
    return {
        "input_tokens": job.prompt_tokens - created - cached,
        "output_tokens": job.generated,
        "cache_creation_input_tokens": created,
        "cache_read_input_tokens": cached,
    }


class MessageEvents:
    """Named events: message_start, blocks with their deltas, message_delta with the usage, message_stop."""

    def __init__(self, service: Service, job: Job, params: SamplingParams, answer_id: str, silent: bool) -> None:
        self._service = service
        self._job = job
        self._params = params
        self._id = answer_id
        self._silent = silent
        self._begun = False
        self._open: Kind | None = None
        self._place = -1

    @staticmethod
    def _event(kind: str, fields: dict[str, Any]) -> bytes:
        return b"event: " + kind.encode() + b"\ndata: " + dump({"type": kind, **fields}) + b"\n\n"

    def events(self, steps: list[Step]) -> Iterator[bytes]:
        yield from self._begin()
        for step in merged(steps, self._params) if self._service.options.coalesce else steps:
            if step.kind is Kind.MARKER or not step.text:
                continue
            if step.kind is not self._open:
                yield from self._close()
                self._open = step.kind
                self._place += 1
                yield self._event("content_block_start", {"content_block": self._block(""), "index": self._place})
            block = self._block(step.text)
            yield self._delta({**block, "type": f"{block['type']}_delta"})

    def _block(self, text: str) -> dict[str, str]:
        kind = "thinking" if self._open is Kind.REASONING else "text"
        return {"type": kind, kind: text}

    def _delta(self, delta: dict[str, str]) -> bytes:
        return self._event("content_block_delta", {"delta": delta, "index": self._place})

    def _begin(self) -> Iterator[bytes]:
        if self._begun:
            return
        self._begun = True
        # Nothing of the cache is known yet: here input_tokens is the whole prompt.
        usage = {} if self._silent else {"usage": {"input_tokens": self._job.prompt_tokens, "output_tokens": 0}}
        message: dict[str, Any] = {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": self._service.options.served_model_name,
            "stop_reason": None,
            "stop_sequence": None,
            **usage,
        }
        yield self._event("message_start", {"message": message})

    def _close(self) -> Iterator[bytes]:
        if self._open is Kind.REASONING:
            yield self._delta({"type": "signature_delta", "signature": uuid.uuid4().hex})
        if self._open is not None:
            yield self._event("content_block_stop", {"index": self._place})
        self._open = None

    def ending(self) -> Iterator[bytes]:
        yield from self._begin()
        yield from self._close()
        reason = _STOP_REASONS[self._job.sequences[0].finish or "stop"]
        usage = {} if self._silent else {"usage": _usage(self._service, self._job)}
        yield self._event("message_delta", {"delta": {"stop_reason": reason, "stop_sequence": None}, **usage})
        yield self._event("message_stop", {})

    def failed(self, error: ApiError) -> Iterator[bytes]:
        yield self._event("error", {"error": {"type": "api_error", "message": str(error)}})

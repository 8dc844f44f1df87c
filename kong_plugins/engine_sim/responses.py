"""``/v1/responses``: nothing is stored, so answers cannot be fetched again or continued by id."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from kong_plugins.engine_sim.engine import Job
from kong_plugins.engine_sim.errors import ApiError, invalid_field
from kong_plugins.engine_sim.fields import Fields, read_fields
from kong_plugins.engine_sim.prompting import chat_messages, check_output_length, sampling_params
from kong_plugins.engine_sim.sequence import Kind, SamplingParams, Step
from kong_plugins.engine_sim.service import (
    JsonResponse,
    Service,
    cache_salt,
    dump,
    finish,
    merged,
    now,
    random_id,
    request_id,
)
from kong_plugins.engine_sim.streaming import EventStream, error_events
from kong_plugins.engine_sim.vocabulary import render_chat


async def responses(service: Service, request: Request) -> Response:
    """Answer a response request."""
    fields = await read_fields(request)
    messages = _messages(fields)
    salt = cache_salt(fields)
    service.check_model(fields)
    prompt = service.vocabulary.encode(render_chat(chat_messages(messages, "body.input")))
    limit = fields.integer("max_output_tokens")
    check_output_length(limit, service.options.max_model_len)
    params = sampling_params(Fields({**fields.data, "n": 1}), limit)
    job = service.begin(request, [prompt], params, salt)
    answer = ResponseAnswer(service, job, fields, f"resp_{request_id(request, fields)}", request.state.faults.no_usage)
    if fields.boolean("stream"):
        return EventStream(service, request, job, ResponseEvents(service, job, params, answer))
    if not await finish(service, request, job):
        return JsonResponse(None)
    return JsonResponse(answer.body(answer.output(reasoning_status=None)))


def _messages(fields: Fields) -> list[Any]:
    given = fields.required("input")
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not isinstance(given, list):
        raise invalid_field("string_type", "body.input", "Input should be a valid string", given)
    messages = [item for item in given if not isinstance(item, dict) or item.get("type", "message") == "message"]
    instructions = fields.string("instructions")
    return [{"role": "system", "content": instructions}, *messages] if instructions else messages


class ResponseAnswer:
    """The response object at any moment of its life."""

    def __init__(self, service: Service, job: Job, fields: Fields, response_id: str, no_usage: bool) -> None:
        self._service = service
        self._job = job
        self._fields = fields
        self._id = response_id
        self._created = now()
        self._no_usage = no_usage
        self.reasoning_id = f"rs_{random_id()}"
        self.message_id = f"msg_{random_id()}"

    def reasoning_item(self, text: str | None, status: str | None) -> dict[str, Any]:
        content = None if text is None else [{"text": text, "type": "reasoning_text"}]
        return {
            "id": self.reasoning_id,
            "summary": [],
            "type": "reasoning",
            "content": content,
            "encrypted_content": None,
            "status": status,
        }

    def message_item(self, text: str | None, status: str) -> dict[str, Any]:
        part: dict[str, Any] = {"annotations": [], "text": text, "type": "output_text", "logprobs": None}
        return {
            "id": self.message_id,
            "content": [] if text is None else [part],
            "role": "assistant",
            "status": status,
            "type": "message",
            "phase": None,
        }

    def output(self, reasoning_status: str | None) -> list[dict[str, Any]]:
        reasoning, content = self._job.sequences[0].split()
        items = [self.reasoning_item(reasoning, reasoning_status)] if reasoning else []
        return [*items, self.message_item(content, "completed")] if content else items

    def _usage(self) -> dict[str, Any] | None:
        if self._no_usage:
            return None
        job = self._job
        cached = job.cached_tokens if self._service.options.enable_prompt_tokens_details else 0
        return {
            "input_tokens": job.prompt_tokens,
            "input_tokens_details": {
                "cached_tokens": cached,
                "cache_write_tokens": 0,
                "input_tokens_per_turn": [],
                "cached_tokens_per_turn": [],
            },
            "output_tokens": job.generated,
            "output_tokens_details": {
                "reasoning_tokens": job.reasoning_tokens,
                "tool_output_tokens": 0,
                "output_tokens_per_turn": [],
                "tool_output_tokens_per_turn": [],
            },
            "total_tokens": job.prompt_tokens + job.generated,
        }

    def body(self, output: list[dict[str, Any]] | None) -> dict[str, Any]:
        """The whole object; ``output`` None while it is in progress."""
        fields = self._fields
        sequence = self._job.sequences[0]
        short = output is not None and sequence.finish == "length"
        temperature, top_p = fields.number("temperature"), fields.number("top_p")
        status = "in_progress" if output is None else "incomplete" if short else "completed"
        return {
            "id": self._id,
            "created_at": self._created,
            "incomplete_details": {"reason": "max_output_tokens"} if short else None,
            "instructions": fields.string("instructions"),
            "metadata": fields.data.get("metadata"),
            "model": self._service.options.served_model_name,
            "object": "response",
            "output": output or [],
            "parallel_tool_calls": True,
            "temperature": 1.0 if temperature is None else temperature,
            "tool_choice": "none",
            "tools": [],
            "top_p": 1.0 if top_p is None else top_p,
            "background": False,
            "max_output_tokens": sequence.limit,
            "max_tool_calls": None,
            "previous_response_id": None,
            "prompt": None,
            "reasoning": None,
            "service_tier": "auto",
            "status": status,
            "text": None,
            "top_logprobs": None,
            "truncation": "disabled",
            "usage": None if output is None else self._usage(),
            "user": fields.string("user"),
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "input_messages": None,
            "output_messages": None,
        }


class ResponseEvents:
    """Named events with a running sequence number; an item opens with its first text and closes with the next item."""

    def __init__(self, service: Service, job: Job, params: SamplingParams, answer: ResponseAnswer) -> None:
        self._service = service
        self._job = job
        self._params = params
        self._answer = answer
        self._number = 0
        self._begun = False
        self._open: Kind | None = None
        self._place = -1
        self._text = ""

    def _event(self, kind: str, fields: dict[str, Any]) -> bytes:
        body = {**fields, "sequence_number": self._number, "type": kind}
        self._number += 1
        ordered = dict(sorted(body.items()))
        return b"event: " + kind.encode() + b"\ndata: " + dump(ordered) + b"\n\n"

    def events(self, steps: list[Step]) -> Iterator[bytes]:
        yield from self._begin()
        for step in merged(steps, self._params) if self._service.options.coalesce else steps:
            if step.kind is Kind.MARKER or not step.text:
                continue
            if step.kind is not self._open:
                yield from self._close()
                yield from self._begin_item(step.kind)
            self._text += step.text
            yield self._delta(step)

    def _begin(self) -> Iterator[bytes]:
        if not self._begun:
            self._begun = True
            yield self._event("response.created", {"response": self._answer.body(None)})
            yield self._event("response.in_progress", {"response": self._answer.body(None)})

    def _item(self) -> dict[str, Any]:
        item = self._answer.reasoning_id if self._open is Kind.REASONING else self._answer.message_id
        return {"item_id": item, "output_index": self._place, "content_index": 0}

    def _begin_item(self, kind: Kind) -> Iterator[bytes]:
        self._open, self._text = kind, ""
        self._place += 1
        reasoning = kind is Kind.REASONING
        item = (
            self._answer.reasoning_item(None, "in_progress")
            if reasoning
            else self._answer.message_item(None, "in_progress")
        )
        yield self._event("response.output_item.added", {"item": item, "output_index": self._place})
        part: dict[str, Any] = {"annotations": [], "text": "", "type": "output_text", "logprobs": []}
        if reasoning:
            part = {"text": "", "type": "reasoning_text"}
        yield self._event("response.content_part.added", {**self._item(), "part": part})

    def _delta(self, step: Step) -> bytes:
        if step.kind is Kind.REASONING:
            return self._event("response.reasoning_text.delta", {**self._item(), "delta": step.text})
        return self._event("response.output_text.delta", {**self._item(), "delta": step.text, "logprobs": []})

    def _close(self) -> Iterator[bytes]:
        if self._open is None:
            return
        where = self._item()
        if self._open is Kind.REASONING:
            item = self._answer.reasoning_item(self._text, "completed")
            yield self._event("response.reasoning_text.done", {**where, "text": self._text})
        else:
            item = self._answer.message_item(self._text, "completed")
            yield self._event("response.output_text.done", {**where, "logprobs": [], "text": self._text})
        yield self._event("response.content_part.done", {**where, "part": item["content"][0]})
        yield self._event("response.output_item.done", {"item": item, "output_index": self._place})
        self._open = None

    def ending(self) -> Iterator[bytes]:
        yield from self._begin()
        yield from self._close()
        done = self._answer.body(self._answer.output("completed"))
        kind = "response.incomplete" if done["status"] == "incomplete" else "response.completed"
        yield self._event(kind, {"response": done})

    def failed(self, error: ApiError) -> Iterator[bytes]:
        return error_events(error)

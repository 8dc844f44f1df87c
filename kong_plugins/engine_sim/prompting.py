"""From a checked body to what the engine runs: messages to text, sampling parameters, and vLLM's limits on both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kong_plugins.engine_sim.errors import ApiError, bad_parameter, invalid_field
from kong_plugins.engine_sim.fields import Fields
from kong_plugins.engine_sim.sequence import SamplingParams

N_MAX = 16384  # vLLM's own bound (VLLM_MAX_N_SEQUENCES)
_TEXT_PARTS = {"text", "input_text", "output_text", "refusal"}


def content_text(content: object, loc: str = "body.messages") -> str:
    """Text of a message's content: a string, null, or a list of text parts (joined by newlines, as vLLM does)."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid_field("string_type", loc, "Input should be a valid string", content)
    texts: list[str] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(part, str):
            texts.append(part)
        elif kind in _TEXT_PARTS and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "tool_result":
            texts.append(content_text(part.get("content"), loc))
        elif kind in {"thinking", "tool_use", "reasoning_text"}:
            continue
        else:
            raise ApiError(400, f"This model does not take content of type {kind!r}: it is not a multimodal model.")
    return "\n".join(texts)


def chat_messages(messages: object, loc: str = "body.messages") -> list[dict[str, Any]]:
    """Messages with string content, ready for the template.

    Raises:
        ApiError: not a list of messages, or none.
    """
    if not isinstance(messages, list):
        raise invalid_field("list_type", loc, "Input should be a valid list", messages)
    if not messages:
        message = "Cannot apply chat template to an empty conversation. Provide at least one message."
        raise ApiError(400, message)
    rendered: list[dict[str, Any]] = []
    for place, message in enumerate(messages):
        if not isinstance(message, dict):
            raise invalid_field("dict_type", f"{loc}.{place}", "Input should be a valid dictionary", message)
        if not isinstance(message.get("role"), str):
            raise invalid_field("missing", f"{loc}.{place}.role", "Field required", message)
        role = "system" if message["role"] == "developer" else message["role"]
        one: dict[str, Any] = {"role": role, "content": content_text(message.get("content"), loc)}
        if message.get("tool_calls"):
            one["tool_calls"] = _tool_calls(message["tool_calls"], f"{loc}.{place}.tool_calls")
        rendered.append(one)
    return rendered


def _tool_calls(calls: object, loc: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise invalid_field("list_type", loc, "Input should be a valid list", calls)
    for call in calls:
        function = call.get("function") if isinstance(call, dict) else None
        texts = [function.get("name"), function.get("arguments")] if isinstance(function, dict) else [None]
        if not all(isinstance(text, str) for text in texts):
            raise invalid_field("missing", f"{loc}.function", "Field required", call)
    return calls


def _stops(fields: Fields, name: str) -> tuple[str, ...]:
    value = fields.data.get(name)
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise invalid_field("string_type", f"body.{name}", "Input should be a valid string", value)
    if "" in stops:
        raise ApiError(400, "stop cannot contain an empty string.")
    return tuple(stops)


def _token_ids(fields: Fields, name: str) -> frozenset[int]:
    tokens = fields.items(name)
    for token in tokens:
        if type(token) is not int:
            raise invalid_field("int_type", f"body.{name}", "Input should be a valid integer", token)
    return frozenset(tokens)


def _bias(fields: Fields) -> Mapping[int, float] | None:
    bias = fields.mapping("logit_bias")
    if bias is None:
        return None
    try:
        return {int(token): float(value) for token, value in bias.data.items()}
    except (TypeError, ValueError):
        message = "Input should be a valid dictionary of token ids and numbers"
        raise invalid_field("dict_type", "body.logit_bias", message, bias.data) from None


def sampling_params(
    fields: Fields, max_tokens: int | None, logprobs: int | None = None, stop: str = "stop"
) -> SamplingParams:
    """Sampling parameters with vLLM's own checks, in vLLM's order."""
    n = fields.integer("n")
    temperature = fields.number("temperature")
    response_format = fields.mapping("response_format")
    params = SamplingParams(
        n=1 if n is None else n,
        max_tokens=max_tokens,
        min_tokens=fields.integer("min_tokens") or 0,
        stop=_stops(fields, stop),
        stop_token_ids=_token_ids(fields, "stop_token_ids"),
        include_stop=fields.boolean("include_stop_str_in_output"),
        ignore_eos=fields.boolean("ignore_eos"),
        logit_bias=_bias(fields),
        json_object=response_format is not None and response_format.string("type") in {"json_object", "json_schema"},
        logprobs=logprobs,
        token_ids=fields.boolean("return_token_ids"),
    )
    if params.n < 1:
        raise ApiError(400, f"n must be at least 1, got {params.n}.")
    if params.n > N_MAX:
        raise ApiError(400, f"n must be at most {N_MAX}, got {params.n}.")
    if temperature is not None and temperature < 0:
        raise bad_parameter(f"temperature must be non-negative, got {temperature}.", "temperature", temperature)
    if max_tokens is not None and max_tokens < 1:
        raise bad_parameter(f"max_tokens must be at least 1, got {max_tokens}.", "max_tokens", max_tokens)
    if params.min_tokens < 0:
        raise ApiError(400, f"min_tokens must be greater than or equal to 0, got {params.min_tokens}.")
    if max_tokens is not None and params.min_tokens > max_tokens:
        raise ApiError(
            400, f"min_tokens must be less than or equal to max_tokens={max_tokens}, got {params.min_tokens}."
        )
    return params


def check_output_length(max_tokens: int | None, max_model_len: int) -> None:
    """Refuse more output than the model's whole length."""
    if max_tokens is not None and max_tokens > max_model_len:
        raise bad_parameter(
            f"max_tokens={max_tokens} cannot be greater than max_model_len={max_model_len}. "
            "Please request fewer output tokens.",
            "max_tokens",
            max_tokens,
        )


def check_prompt_length(prompt: Sequence[int], max_tokens: int | None, max_model_len: int) -> None:
    """Refuse a prompt that leaves no room for the output asked for. The wording with output tokens is not recorded."""
    room = max_model_len - max(0, max_tokens or 0)
    head = f"This model's maximum context length is {max_model_len} tokens. However, "
    if len(prompt) > max_model_len:
        raise bad_parameter(
            f"{head}your prompt contains at least {max_model_len + 1} input tokens, which exceeds this limit even "
            "without any output tokens. Please reduce the length of the input prompt.",
            "input_tokens",
            max_model_len + 1,
        )
    if len(prompt) > room or len(prompt) == max_model_len:
        asked = max(1, max_tokens or 1)
        raise bad_parameter(
            f"{head}you requested {asked} output tokens and your prompt contains at least {room + 1} input tokens, "
            f"for a total of at least {room + 1 + asked} tokens. Please reduce the length of the input prompt or the "
            "number of requested output tokens.",
            "input_tokens",
            room + 1,
        )
    if not prompt:
        raise ApiError(400, "The prompt is empty: at least one token is needed.")

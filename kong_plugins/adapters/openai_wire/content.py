"""What becomes the prompt: its text, and the most that everything else in it can take."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated

import msgspec

from kong_plugins.adapters.openai_wire.rules import WireRules
from kong_plugins.adapters.openai_wire.strict_json import Fields, is_null, kind, read_fields, read_list, read_text
from kong_plugins.domain.demand import Endpoint
from kong_plugins.domain.errors import BadRequest

_TEXT_PARTS = {  # part type: the field its text is in
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "reasoning_text": "text",
    "summary_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
    "redacted_thinking": "data",
}
_MESSAGE_TEXT = ("name", "reasoning", "reasoning_content", "refusal")  # beside content; templates may print them
_ITEMS = frozenset({"function_call", "function_call_output", "reasoning"})
_TOOL_TYPES = frozenset({"function", "custom"})
_MULTIBYTE_AS_ESCAPE = 3  # a character of 2 bytes printed as an escape takes 6
_INDENT = 4
_FORMATTED_MAX = 2**18  # At the deepest nesting a larger value would be hundreds of megabytes when indented.

_FIRST_ELEMENT = re.compile(rb"\[[ \t\n\r]*(.)", re.DOTALL)
_decode_ids = msgspec.json.Decoder(list[Annotated[int, msgspec.Meta(ge=0)]]).decode
_decode_id_lists = msgspec.json.Decoder(list[list[Annotated[int, msgspec.Meta(ge=0)]]]).decode


@dataclass(slots=True)
class Prompt:
    """The prompt or prompts of one request, sorted by how they can be counted."""

    texts: list[msgspec.Raw] = field(default_factory=list)  # JSON strings, each printed as it is
    roles: list[str] = field(default_factory=list)  # one for each message
    plain: int = 0  # prompts without a template
    token_ids: int = 0  # tokens the client sent as ids
    printed: int = 0  # most tokens of values a template prints in its own way: tools, documents, calls
    calls: int = 0  # tool calls, each with marks of its own
    media: int = 0  # most tokens of media parts
    media_bytes: int = 0  # what those parts take in the body
    items: int = 0  # messages with their fields, parts, prompts: what reading takes time for

    @property
    def prompts(self) -> int:
        return max(1, self.plain)

    def add_items(self, name: str, count: int, rules: WireRules) -> None:
        """
        Raises:
            BadRequest: reading on would keep other requests waiting.
        """
        self.items += count
        if self.items > rules.max_items:
            raise BadRequest(
                400,
                "too_many_items",
                f"The request holds more than {rules.max_items} messages, parts and fields.",
                name,
            )


def printed_bound(raw: msgspec.Raw | bytes, rules: WireRules) -> int:
    """The most bytes, so tokens, of a JSON value that a template prints as JSON, indented and escaped as it likes."""
    text = bytes(raw)
    if len(text) > _FORMATTED_MAX:
        size = len(text) * (1 + _INDENT * rules.max_depth)
    else:
        size = len(msgspec.json.format(text, indent=_INDENT))
    if not text.isascii():
        size *= _MULTIBYTE_AS_ESCAPE
    return size * rules.expansion


def read_prompt(endpoint: Endpoint, fields: Fields, rules: WireRules) -> Prompt:
    """
    Raises:
        BadRequest: the prompt is missing, of another shape than the endpoint's, or of a kind that cannot be bounded.
    """
    prompt = Prompt()
    match endpoint:
        case Endpoint.CHAT:
            _read_messages(_required(fields, "messages"), prompt, rules)
        case Endpoint.COMPLETIONS:
            _read_plain("prompt", _required(fields, "prompt"), prompt, rules)
            if (suffix := fields.get("suffix")) is not None and kind(suffix) == '"':
                prompt.texts.append(suffix)
        case Endpoint.EMBEDDINGS:
            _read_plain("input", _required(fields, "input"), prompt, rules)
        case Endpoint.RESPONSES:
            _read_responses_input(_required(fields, "input"), prompt, rules)
            _read_system(fields, "instructions", prompt, rules)
        case Endpoint.MESSAGES:
            _read_messages(_required(fields, "messages"), prompt, rules)
            _read_system(fields, "system", prompt, rules)
    _read_printed(fields, prompt, rules)
    return prompt


def _required(fields: Fields, name: str) -> msgspec.Raw:
    raw = fields.get(name)
    if raw is None or is_null(raw):
        raise BadRequest(400, "missing_field", f"`{name}` is required.", name)
    return raw


def _elements(name: str, raw: msgspec.Raw, what: str, prompt: Prompt, rules: WireRules) -> list[msgspec.Raw]:
    if kind(raw) != "[":
        raise BadRequest(400, "invalid_type", f"`{name}` must be an array of {what}.", name)
    elements = read_list(raw)
    if not elements:
        raise BadRequest(400, "empty_array", f"`{name}` must not be empty.", name)
    prompt.add_items(name, len(elements), rules)
    return elements


def _object(name: str, raw: msgspec.Raw) -> Fields:
    if kind(raw) != "{":
        raise BadRequest(400, "invalid_type", f"`{name}` must be an object.", name)
    return read_fields(raw)


def _read_plain(name: str, raw: msgspec.Raw, prompt: Prompt, rules: WireRules) -> None:
    """A string, strings, token ids, or lists of token ids: one kind, never mixed."""
    if kind(raw) == '"':
        prompt.texts.append(raw)
        prompt.plain = 1
        return
    first = _FIRST_ELEMENT.match(memoryview(raw))
    if first is None:
        raise _not_plain(name)
    # Ids are decoded at once, by type: one object for each of a million ids would hold up everyone else.
    try:
        match first[1]:
            case b'"':
                prompt.texts = read_list(raw)
                prompt.plain = len(prompt.texts)
            case b"[":
                lists = _decode_id_lists(raw)
                prompt.plain = len(lists) if all(lists) else 0
                prompt.token_ids = sum(map(len, lists))
            case b"]":
                pass
            case _:
                prompt.plain = 1
                prompt.token_ids = len(_decode_ids(raw))
    except msgspec.ValidationError:
        raise _not_plain(name) from None
    if not prompt.plain:
        raise BadRequest(400, "empty_array", f"`{name}` must not be empty, nor hold an empty prompt.", name)
    if prompt.plain > rules.max_prompts:
        raise BadRequest(
            400, "too_many_prompts", f"`{name}` may hold at most {rules.max_prompts} prompts; send them in parts.", name
        )
    if any(kind(text) != '"' for text in prompt.texts):
        raise _not_plain(name)


def _not_plain(name: str) -> BadRequest:
    message = f"`{name}` must be a string, or an array of only strings or only token ids (integers of 0 and more)."
    return BadRequest(400, "invalid_type", message, name)


def _read_messages(raw: msgspec.Raw, prompt: Prompt, rules: WireRules) -> None:
    for index, element in enumerate(_elements("messages", raw, "messages", prompt, rules)):
        at = f"messages[{index}]"
        _read_message(at, _object(at, element), prompt, rules)


def _read_message(at: str, message: Fields, prompt: Prompt, rules: WireRules) -> None:
    role = message.get("role")
    if role is None or kind(role) != '"':
        raise BadRequest(400, "invalid_type", f"`{at}.role` must be a string.", f"{at}.role")
    prompt.roles.append(read_text(role))
    prompt.add_items(at, len(message), rules)
    for name, raw in message.items():
        if name == "content":
            _read_content(f"{at}.content", raw, prompt, rules)
        elif name in _MESSAGE_TEXT and kind(raw) == '"':
            prompt.texts.append(raw)
        elif name == "tool_calls" and kind(raw) == "[":
            prompt.calls += len(read_list(raw))
            prompt.printed += printed_bound(raw, rules)
        elif name not in {"role", "type"} and not is_null(raw):
            prompt.printed += printed_bound(raw, rules)


def _read_content(at: str, raw: msgspec.Raw, prompt: Prompt, rules: WireRules) -> None:
    match kind(raw):
        case '"':
            prompt.texts.append(raw)
        case "n":
            pass
        case "[":
            parts = read_list(raw)
            prompt.add_items(at, len(parts), rules)
            for index, part in enumerate(parts):
                _read_part(f"{at}[{index}]", part, prompt, rules)
        case _:
            raise BadRequest(400, "invalid_type", f"`{at}` must be a string or an array of parts.", at)


def _read_part(at: str, raw: msgspec.Raw, prompt: Prompt, rules: WireRules) -> None:
    if kind(raw) == '"':  # vLLM takes bare strings among the parts
        prompt.texts.append(raw)
        return
    part = _object(at, raw)
    part_type = part.get("type")
    name = read_text(part_type) if part_type is not None and kind(part_type) == '"' else ""
    if name in rules.part_tokens:
        prompt.media += rules.part_tokens[name]
        prompt.media_bytes += len(bytes(raw))
    elif name in _TEXT_PARTS:
        text = part.get(_TEXT_PARTS[name])
        if text is None or kind(text) != '"':
            raise BadRequest(
                400, "invalid_type", f"`{at}.{_TEXT_PARTS[name]}` must be a string.", f"{at}.{_TEXT_PARTS[name]}"
            )
        prompt.texts.append(text)
    elif name == "tool_use":
        prompt.calls += 1
        prompt.printed += printed_bound(raw, rules)
    elif name == "tool_result":
        prompt.roles.append("tool")  # the engine makes it a message of its own
        if (content := part.get("content")) is not None:
            _read_content(f"{at}.content", content, prompt, rules)
    else:
        raise BadRequest(
            400,
            "unsupported_content",
            f"`{at}` is of a type that this route does not meter; send text parts"
            + (f" or {', '.join(sorted(rules.part_tokens))}." if rules.part_tokens else "."),
            f"{at}.type",
        )


def _read_responses_input(raw: msgspec.Raw, prompt: Prompt, rules: WireRules) -> None:
    if kind(raw) == '"':
        prompt.roles.append("user")
        prompt.texts.append(raw)
        return
    for index, element in enumerate(_elements("input", raw, "items", prompt, rules)):
        at = f"input[{index}]"
        item = _object(at, element)
        item_type = item.get("type")
        name = "message" if item_type is None or kind(item_type) != '"' else read_text(item_type)
        if name == "message":
            _read_message(at, item, prompt, rules)
        elif name in _ITEMS:
            prompt.roles.append("tool" if name == "function_call_output" else "assistant")
            prompt.calls += name == "function_call"
            prompt.printed += printed_bound(element, rules)
        else:
            raise BadRequest(
                400,
                "unsupported_content",
                f"`{at}` is an item that this route does not meter; send messages, function calls and their outputs.",
                f"{at}.type",
            )


def _read_system(fields: Fields, name: str, prompt: Prompt, rules: WireRules) -> None:
    raw = fields.get(name)
    if raw is not None and not is_null(raw):
        prompt.roles.append("system")
        _read_content(name, raw, prompt, rules)


def _read_printed(fields: Fields, prompt: Prompt, rules: WireRules) -> None:
    tools = fields.get("tools")
    if tools is not None and not is_null(tools):
        _check_tools(_elements("tools", tools, "tools", prompt, rules))
        prompt.printed += rules.tools_preamble
    for name in rules.allowance.prints & fields.keys():
        if not is_null(fields[name]):
            prompt.printed += printed_bound(fields[name], rules)


def _check_tools(tools: Iterable[msgspec.Raw]) -> None:
    for index, tool in enumerate(tools):
        at = f"tools[{index}]"
        tool_type = _object(at, tool).get("type")
        if tool_type is None:  # Anthropic's own tools have none
            continue
        if kind(tool_type) != '"' or read_text(tool_type) not in _TOOL_TYPES:
            raise BadRequest(
                400,
                "unsupported_tool",
                f"`{at}` runs on the engine's side and adds text that is not in the request; send function tools.",
                f"{at}.type",
            )

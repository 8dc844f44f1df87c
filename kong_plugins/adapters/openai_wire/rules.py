"""What an operator states about the engine, so that requests can be bounded without asking it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

PRINTABLE = frozenset(
    {
        "chat_template_kwargs",
        "documents",
        "function_call",
        "functions",
        "output_config",
        "reasoning",
        "response_format",
        "structured_outputs",
        "text",
        "tool_choice",
        "tools",
    }
)
"""Fields that some chat template prints."""


@dataclass(frozen=True, slots=True)
class TemplateAllowance:
    """Tokens that a model's chat template adds around the client's text.

    ``request`` once (start token, generation prompt, a default system prompt), ``roles`` for each message of that role,
    ``message`` for each message of any other role and for each tool call, ``prompt`` for each plain prompt. ``prints``
    names the request's fields that the template prints in its own way.
    """

    request: int
    message: int
    prompt: int
    roles: Mapping[str, int] = field(default_factory=dict)
    prints: frozenset[str] = PRINTABLE

    def of_message(self, role: str) -> int:
        return self.roles.get(role, self.message)

    @property
    def message_max(self) -> int:
        return max(self.message, *self.roles.values()) if self.roles else self.message


# Llama 3, ChatML and Harmony add at most 5 tokens a message; Harmony's and Llama 3.1's own system texts stay under 100.
GENERIC = TemplateAllowance(request=128, message=16, prompt=2)

# Measured: start token and <｜Assistant｜> (2), and <think> with a newline where the served template ends in
# them (2 more); <｜User｜>; <｜Assistant｜> and end of sentence; a blank line between two system messages. Tool
# outputs take up to 4 marks, a tool call up to 12. Answer formats only constrain the sampling.
DEEPSEEK_R1 = TemplateAllowance(
    request=4,
    message=12,
    prompt=1,
    roles=MappingProxyType({"system": 2, "developer": 2, "user": 1, "assistant": 2}),
    prints=frozenset({"chat_template_kwargs", "documents", "function_call", "functions", "tool_choice", "tools"}),
)


@dataclass(frozen=True, slots=True)
class WireRules:
    """Limits and allowances for one model, in tokens unless named otherwise.

    ``context_tokens``: prompt and completion of one choice never exceed it, because the engine refuses more.
    ``default_max_tokens``: sent when the client sets no limit (None: the engine's default, the rest of the context).
    ``part_tokens``: the most a content part of a type may take (``{"image_url": 1500}``); parts that are neither text
    nor named here are refused. ``tools_preamble``: text a template adds once for tools; ``expansion``: how many times a
    template may print tools, documents and tool calls (their indentation and escapes are counted besides).
    ``allow``: fields admitted although they are refused by default; their requests are bounded by the context.

    Raises:
        ValueError: a limit is not positive, or ``allow`` is used without ``context_tokens``.
    """

    context_tokens: int | None = None
    default_max_tokens: int | None = None
    max_choices: int = 128  # OpenAI's own limit of n
    max_prompts: int = 2048  # OpenAI's own limit of embedding inputs
    max_items: int = 20_000  # messages with their fields, and parts; read in about 30 ms
    max_depth: int = 64
    allowance: TemplateAllowance = GENERIC
    part_tokens: Mapping[str, int] = field(default_factory=dict)
    tools_preamble: int = 512
    expansion: int = 2
    allow: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        limits = [self.context_tokens, self.default_max_tokens, self.max_choices, self.max_prompts]
        limits += [self.max_items, self.max_depth]
        if any(limit is not None and limit < 1 for limit in limits):
            raise ValueError(f"limits are at least 1: {self}")
        if self.allow and self.context_tokens is None:
            raise ValueError("`allow` admits requests that only the context length bounds: set context_tokens too")

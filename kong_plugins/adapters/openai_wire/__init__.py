"""Requests in the wire shapes of the OpenAI and Anthropic APIs, as vLLM serves them.

One strict reading, then one writing: what is forwarded is always encoded anew from what was read here, so the engine
cannot see a field, a duplicate or an encoding that was metered differently.
"""

from kong_plugins.adapters.openai_wire.bounds import usage_bound
from kong_plugins.adapters.openai_wire.counting import count_for_a_bill, count_prompt, texts_for_counting
from kong_plugins.adapters.openai_wire.endpoints import endpoint_of
from kong_plugins.adapters.openai_wire.opening import opening, system_prompt
from kong_plugins.adapters.openai_wire.reading import Request, check_media_type, parse
from kong_plugins.adapters.openai_wire.rewriting import rewrite
from kong_plugins.adapters.openai_wire.rules import DEEPSEEK_R1, GENERIC, TemplateAllowance, WireRules
from kong_plugins.domain.errors import BadRequest

__all__ = [
    "DEEPSEEK_R1",
    "GENERIC",
    "BadRequest",
    "Request",
    "TemplateAllowance",
    "WireRules",
    "check_media_type",
    "count_for_a_bill",
    "count_prompt",
    "endpoint_of",
    "opening",
    "parse",
    "rewrite",
    "system_prompt",
    "texts_for_counting",
    "usage_bound",
]

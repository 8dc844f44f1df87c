"""The most a request can use."""

from __future__ import annotations

from kong_plugins.adapters.openai_wire.rules import WireRules
from kong_plugins.domain.demand import Demand
from kong_plugins.domain.usage import Usage


def usage_bound(
    demand: Demand, rules: WireRules, prompt_tokens: int | None = None, max_tokens: int | None = None
) -> Usage:
    """Upper bound of the usage the engine will report, in each of its parts.

    ``prompt_tokens`` replaces the byte bound once all prompts are counted; ``max_tokens`` is the lower limit per choice
    that ``rewrite`` is going to write. Without any limit a choice can fill the engine's context.

    Raises:
        ValueError: nothing bounds the completion; ``parse`` under the same rules admits no such request.
    """
    prompt = demand.prompt_bound if prompt_tokens is None else min(prompt_tokens, demand.prompt_bound)
    limits = [limit for limit in (demand.max_tokens, max_tokens, rules.context_tokens) if limit is not None]
    if demand.choices and not limits:
        raise ValueError("no max tokens and no context_tokens: nothing bounds the completion")
    return Usage(prompt=prompt, completion=min(limits) * demand.choices if demand.choices else 0)

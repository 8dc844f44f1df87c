"""The prompt as text, for exact counting with the model's own tokenizer."""

from __future__ import annotations

from collections.abc import Callable

from kong_plugins.adapters.openai_wire.reading import Request
from kong_plugins.adapters.openai_wire.rules import WireRules
from kong_plugins.adapters.openai_wire.strict_json import read_text


def texts_for_counting(request: Request) -> tuple[str, ...]:
    """The client's texts as the template prints them, decoded, in no promised order."""
    return tuple(read_text(raw) for raw in request.prompt.texts)


def count_prompt(request: Request, rules: WireRules, count_text: Callable[[str], int]) -> int:
    """Tokens of the prompt: texts counted, what the template adds and prints in its own way bounded. Never too low."""
    prompt, allowance = request.prompt, rules.allowance
    count = sum(map(count_text, texts_for_counting(request)))
    count += prompt.token_ids + prompt.printed + prompt.media + prompt.calls * allowance.message
    if prompt.plain:
        count += prompt.plain * allowance.prompt
    else:
        count += allowance.request + sum(map(allowance.of_message, prompt.roles))
    return min(count, request.demand.prompt_bound)


def count_for_a_bill(request: Request, count_text: Callable[[str], int]) -> int:
    """Tokens of the prompt for a charge, where no engine said: what the client sent, without what a template may add.

    An allowance may be generous where a budget is held, but nobody is charged for it.
    """
    prompt = request.prompt
    count = sum(map(count_text, texts_for_counting(request))) + prompt.token_ids + prompt.printed + prompt.media
    return min(count, request.demand.prompt_bound)

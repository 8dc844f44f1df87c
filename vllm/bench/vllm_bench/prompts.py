"""Prompts of a wanted length in which a wanted share is the same for all, so that a prefix cache has it or has not."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

# Each is one token with its space in DeepSeek's and in Qwen's vocabulary.
TEXT = "the of token budget gateway plugin count stream server model cache prefix time limit user key rate"
WORDS = tuple(TEXT.split(" "))
MODEL = "deepseek-r1"


def texts(tokens: int, shared_percent: int, seed: str, own: str, prefixes: int = 1) -> Iterator[tuple[str, str]]:
    """Endless (shared, own) texts of about ``tokens`` tokens together.

    Texts of one seed have one of ``prefixes`` first ones, drawn anew each time.
    """
    shared = tokens * shared_percent // 100
    firsts = [" ".join(random.Random(f"{seed}#{n}").choices(WORDS, k=shared)) for n in range(prefixes)]  # noqa: S311
    dice = random.Random(f"{seed}/{own}")  # noqa: S311 no secret
    while True:
        yield dice.choice(firsts), " ".join(dice.choices(WORDS, k=tokens - shared))


def chat_body(shared: str, own: str, output_tokens: int, *, stream: bool = True) -> dict[str, Any]:
    """A chat request that generates exactly ``output_tokens``; the shared text is the system prompt."""
    messages = [{"role": "system", "content": shared}] if shared else []
    body: dict[str, Any] = {
        "model": MODEL,
        "messages": [*messages, {"role": "user", "content": own}],
        "max_tokens": output_tokens,
        "ignore_eos": True,
        "temperature": 0.0,
        "stream": stream,
    }
    if stream:
        body["stream_options"] = {"include_usage": True}
    return body

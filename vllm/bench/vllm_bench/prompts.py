"""Prompts of a wanted length in which a wanted share is the same for all, so that a prefix cache has it or has not."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

# Each is one token with its space in DeepSeek's and in Qwen's vocabulary.
TEXT = "the of token budget gateway plugin count stream server model cache prefix time limit user key rate"
WORDS = tuple(TEXT.split(" "))
MODEL = "deepseek-r1"


def texts(tokens: int, shared_percent: int, seed: str, own: str) -> Iterator[tuple[str, str]]:
    """Endless (shared, own) texts of about ``tokens`` tokens together; all with the same seed have the same first."""
    shared = tokens * shared_percent // 100
    prefix = " ".join(random.Random(seed).choices(WORDS, k=shared))  # noqa: S311 no secret
    dice = random.Random(f"{seed}/{own}")  # noqa: S311 no secret
    while True:
        yield prefix, " ".join(dice.choices(WORDS, k=tokens - shared))


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

"""What a request asks of the engine, as far as a budget cares."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Endpoint(StrEnum):
    """Metered endpoints, each with its own wire shape."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"
    RESPONSES = "responses"
    MESSAGES = "messages"


@dataclass(frozen=True, slots=True)
class Demand:
    """Upper bounds in tokens, known without a tokenizer.

    ``prompt_bound`` covers all prompts together (bytes never undercount a byte-level BPE). ``max_tokens`` is per
    choice, as it will be sent to the engine (None: the engine's own default, that is the rest of its context).
    ``choices`` is how many completions the engine will generate in all (n or best_of, times ``prompts``); 0 where
    nothing is generated.
    """

    endpoint: Endpoint
    model: str
    stream: bool
    wants_usage: bool  # the client asked for usage in its stream (always true where the shape always has it)
    prompt_bound: int
    max_tokens: int | None
    choices: int
    prompts: int = 1

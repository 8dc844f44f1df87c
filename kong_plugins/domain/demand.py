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
    """Upper bounds in tokens. ``prompt_bound`` costs nothing to know (bytes never undercount a byte-level BPE);
    ``max_tokens`` is per choice as the client set it (None: the engine's own default); ``choices`` is how many
    completions the engine will generate in all (n, best_of, times the number of prompts)."""

    endpoint: Endpoint
    model: str
    stream: bool
    wants_usage: bool  # the client asked for usage in its stream (always true where the shape always has it)
    prompt_bound: int
    max_tokens: int | None
    choices: int

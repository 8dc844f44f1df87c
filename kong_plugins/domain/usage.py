"""What one request used, and how we know."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Evidence(StrEnum):
    """How a request's usage is known, best first."""

    EXACT = "exact"  # the engine's final usage
    CONTINUOUS = "continuous"  # the engine's last usage before the stream ended early
    TOKENIZED = "tokenized"  # counted by us from the text that passed
    HELD = "held"  # nobody knows: the hold ended by policy or by its own clock


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request. ``cached`` is a subset of ``prompt``, ``reasoning`` of ``completion``; never added twice.

    Raises:
        ValueError: a count is negative, or a subset exceeds its whole.
    """

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    reasoning: int = 0

    def __post_init__(self) -> None:
        if min(self.prompt, self.completion, self.cached, self.reasoning) < 0:
            raise ValueError(f"token counts are never negative: {self}")
        if self.cached > self.prompt:
            raise ValueError(f"cached tokens are part of the prompt: {self}")
        if self.reasoning > self.completion:
            raise ValueError(f"reasoning tokens are part of the completion: {self}")

    @property
    def total(self) -> int:
        return self.prompt + self.completion


NO_USAGE = Usage()

"""One completion being generated: its tokens, its text as it becomes readable, its stop strings, its reasoning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from kong_plugins.engine_sim.answers import Answer
from kong_plugins.engine_sim.vocabulary import Vocabulary

FORCING_BIAS = 45.25  # logits between the scripted token and all others, as the recorded logprobs show


class Kind(Enum):
    """Which field of a chat delta a token's text belongs to."""

    CONTENT = "content"
    REASONING = "reasoning"
    MARKER = "marker"  # <think> and </think>: no text of their own


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """What decides a sequence's tokens and its end. ``max_tokens`` None: up to the model's length."""

    n: int = 1
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    include_stop: bool = False
    ignore_eos: bool = False
    logit_bias: Mapping[int, float] | None = None
    json_object: bool = False
    logprobs: int | None = None  # how many alternatives to report beside the chosen one
    token_ids: bool = False

    @property
    def forced(self) -> int | None:
        """The token that the bias makes win every time."""
        if not self.logit_bias:
            return None
        token, bias = max(self.logit_bias.items(), key=lambda item: item[1])
        return token if bias > FORCING_BIAS else None


@dataclass(frozen=True, slots=True)
class Step:
    """One generated token. ``completion`` and ``reasoning`` count this sequence's tokens up to and with it."""

    index: int
    token: int
    text: str
    kind: Kind
    completion: int
    reasoning: int
    finish: str | None = None
    stop_reason: str | int | None = None


class Generation:
    """A sequence from its prompt to its end. `step` makes the next token; it must not be called after ``finish``."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        prompt: Sequence[int],
        params: SamplingParams,
        answer: Answer,
        *,
        index: int,
        room: int,
        reasons: bool,
    ) -> None:
        self.prompt = prompt
        self.index = index
        self.tokens: list[int] = []
        self.text = ""
        self.reasoning = 0
        self.finish: str | None = None
        self.stop_reason: str | int | None = None
        self.cached = 0
        self.created = 0
        self.scheduled = False
        self._vocabulary = vocabulary
        self._params = params
        self._answer = answer
        self._forced = params.forced
        self._limit = room if params.max_tokens is None else min(params.max_tokens, room)
        self._reasons = reasons
        self._thinking = False
        self._thought = False
        self._pending = b""
        self._sent = 0
        # A stop string may begin in text that was already readable: vLLM keeps back all but its last character.
        self._kept_back = max(map(len, params.stop), default=1) - 1

    @property
    def limit(self) -> int:
        """Most tokens this sequence can have."""
        return self._limit

    def step(self) -> Step:
        position = len(self.tokens)
        last = self.tokens[-1] if self.tokens else self.prompt[-1]
        token = self._forced
        if token is None:
            # With ignore_eos the token itself is generated and counted, it just ends nothing.
            token = self._answer.following(last, position, position >= self._params.min_tokens)
        self.tokens.append(token)
        kind = self._kind_of(token)
        self._read(token)
        self._end(token, position + 1)
        return Step(self.index, token, self._delta(), kind, position + 1, self.reasoning, self.finish, self.stop_reason)

    def _kind_of(self, token: int) -> Kind:
        if token == self._vocabulary.think:
            self._thinking = True
        elif token == self._vocabulary.end_think:
            self._thinking, self._thought = False, True
        else:
            self.reasoning += self._thinking
            return Kind.CONTENT if self._thought or not self._reasons else Kind.REASONING
        return Kind.MARKER if self._reasons else Kind.CONTENT

    def _read(self, token: int) -> None:
        if self._vocabulary.is_special(token) or token in self._params.stop_token_ids:
            return
        self._pending += self._vocabulary.raw(token)
        try:
            self.text += self._pending.decode()
        except UnicodeDecodeError as error:
            if error.end < len(self._pending) or error.reason != "unexpected end of data":
                self.text += self._pending.decode("utf-8", "replace")
                self._pending = b""
            return
        self._pending = b""

    def _end(self, token: int, count: int) -> None:
        params = self._params
        if token == self._vocabulary.eos and not params.ignore_eos:
            self.finish = "stop"
        elif token in params.stop_token_ids and count > params.min_tokens:
            self.finish, self.stop_reason = "stop", token
        elif count > params.min_tokens and self._stopped_by_text():
            self.finish = "stop"
        elif count >= self._limit:
            self.finish = "length"

    def _stopped_by_text(self) -> bool:
        for stop in self._params.stop:
            at = self.text.find(stop, max(0, self._sent - len(stop)))
            if at >= 0:
                self.text = self.text[: at + len(stop) if self._params.include_stop else at]
                self.stop_reason = stop
                return True
        return False

    def _delta(self) -> str:
        readable = len(self.text) if self.finish else len(self.text) - self._kept_back
        if readable <= self._sent:
            return ""
        delta = self.text[self._sent : readable]
        self._sent = readable
        return delta

    def split(self) -> tuple[str | None, str | None]:
        """(reasoning, content) of the text so far, as vLLM's deepseek_r1 parser splits a whole answer."""
        if not self._reasons:
            return None, self.text
        body = self.text.partition("<think>")[2] if "<think>" in self.text else self.text
        reasoning, ended, content = body.partition("</think>")
        return (reasoning, content or None) if ended else (reasoning, None)

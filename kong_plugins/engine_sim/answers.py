"""What the model says. Deterministic: the same prompt gets the same answer in every run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

from kong_plugins.engine_sim.vocabulary import ASSISTANT_TEXT, Vocabulary

SCRIPT = (
    "<think>\nThe user asks about gateways; 令牌 budget matters, so I check it first.</think>\n\n"
    "Hello! Your quota is fine12 requests remain today 🎉 How can help?"
)
VARIED_TOKENS = range(8, 161)
_PROSE = " each tenant has a budget of tokens and the gateway holds an upper bound before it settles what was used"


class Answer(Protocol):
    """One sequence's model."""

    def following(self, last: int, position: int, may_end: bool, /) -> int:
        """The token after ``last`` as the ``position``-th generated one; not the end of sentence unless it may end."""


class ScriptedAnswer:
    """The recorded model: each token of the script is followed by the next one, any other token by `` the``.

    It looks at nothing but the last token, so a raw prompt that ends in a word of the script goes on from there.
    ``json_object`` is the recorded result of vLLM's grammar: an open string that never ends.
    """

    def __init__(self, vocabulary: Vocabulary, reasons: bool, json_object: bool) -> None:
        script = [*vocabulary.encode(ASSISTANT_TEXT + SCRIPT), vocabulary.eos]
        self._after = dict(pairwise(script))
        self._the = vocabulary.encode(" the")[0]
        self._grammar = [vocabulary.encode("{")[0], vocabulary.encode('"')[0]] if json_object else []
        self._grammar_after = vocabulary.end_think if reasons else None
        self._in_grammar = json_object and not reasons
        self._eos = vocabulary.eos

    def following(self, last: int, _position: int, may_end: bool, /) -> int:
        self._in_grammar = self._in_grammar or (bool(self._grammar) and last == self._grammar_after)
        if self._in_grammar:
            return self._grammar.pop(0) if self._grammar else self._the
        token = self._after.get(last, self._the)
        return self._the if token == self._eos and not may_end else token


class PlannedAnswer:
    """An answer of exactly ``tokens`` tokens, end of sentence included; from 8 on it begins with some reasoning."""

    def __init__(self, vocabulary: Vocabulary, tokens: int, seed: int) -> None:
        prose = vocabulary.encode(_PROSE)
        self._the = vocabulary.encode(" the")[0]
        self._eos = vocabulary.eos
        words = [prose[(seed >> (place % 56)) % len(prose)] for place in range(tokens)]
        if tokens >= VARIED_TOKENS.start:
            reasoning = tokens // 3
            words[0], words[reasoning + 1] = vocabulary.think, vocabulary.end_think
            words[1], words[reasoning + 2] = vocabulary.encode("\n")[0], vocabulary.encode("\n\n")[0]
        words[-1] = vocabulary.eos
        self._plan = words

    def following(self, _last: int, position: int, may_end: bool, /) -> int:
        token = self._plan[position] if position < len(self._plan) else self._the
        return self._the if token == self._eos and not may_end else token


def seed_of(prompt: Sequence[int], index: int) -> int:
    """A 64-bit number that depends on the prompt's tokens and the choice's index only."""
    digest = hashlib.blake2b(repr((list(prompt), index)).encode(), digest_size=8).digest()
    return int.from_bytes(digest)


def answer_for(
    vocabulary: Vocabulary, form: str, prompt: Sequence[int], index: int, *, reasons: bool, json_object: bool
) -> Answer:
    """The answer that a form (``scripted``, ``varied``, or a count of tokens in digits) gives to a prompt."""
    if form == "scripted":
        return ScriptedAnswer(vocabulary, reasons, json_object)
    seed = seed_of(prompt, index)
    tokens = VARIED_TOKENS[seed % len(VARIED_TOKENS)] if form == "varied" else int(form)
    return PlannedAnswer(vocabulary, tokens, seed)

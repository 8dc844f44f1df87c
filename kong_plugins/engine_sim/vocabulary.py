"""DeepSeek-R1's vocabulary and chat template: what turns messages into exactly the prompt tokens vLLM counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import tiktoken

from kong_plugins.adapters.tokenizers.deepseek import deepseek_r1
from kong_plugins.engine_sim.errors import ApiError

BOS_TEXT = "<｜begin▁of▁sentence｜>"
EOS_TEXT = "<｜end▁of▁sentence｜>"
USER_TEXT = "<｜User｜>"
ASSISTANT_TEXT = "<｜Assistant｜>"
THINK_TEXT = "<think>"
END_THINK_TEXT = "</think>"
_UNSHOWN = {BOS_TEXT, EOS_TEXT, "<｜▁pad▁｜>"}  # besides the place holders, the only ones that text leaves out


class Vocabulary:
    """Token ids of text and bytes of token ids. Special tokens in a text are recognised, as vLLM does."""

    def __init__(self, encoding: tiktoken.Encoding) -> None:
        self._encoding = encoding
        self._bytes: dict[int, bytes] = {}
        self.eos = encoding.encode_single_token(EOS_TEXT)
        self.think = encoding.encode_single_token(THINK_TEXT)
        self.end_think = encoding.encode_single_token(END_THINK_TEXT)
        self.size = encoding.n_vocab
        self._unshown = {
            encoding.encode_single_token(name)
            for name in encoding.special_tokens_set
            if name in _UNSHOWN or name.startswith("<｜place▁holder▁")
        }

    def encode(self, text: str) -> list[int]:
        """
        Raises:
            ApiError: too many characters in a row that are no letters or digits (some 100,000) for this tokenizer.
        """
        try:
            return self._encoding.encode(text, allowed_special="all")
        except ValueError as error:  # its matcher keeps a frame for each of them
            raise ApiError(400, f"The stand-in's tokenizer cannot read this text: {error}") from None

    def is_special(self, token: int) -> bool:
        """Whether generated text leaves the token out."""
        return token in self._unshown

    def raw(self, token: int) -> bytes:
        """The token's bytes, special ones as their name; empty for an id outside the vocabulary."""
        known = self._bytes.get(token)
        if known is None:
            inside = 0 <= token < self.size
            known = self._bytes[token] = self._encoding.decode_single_token_bytes(token) if inside else b""
        return known

    def text(self, tokens: Sequence[int]) -> str:
        """Text of whole tokens with special ones shown; bytes that form no character become U+FFFD."""
        return b"".join(map(self.raw, tokens)).decode("utf-8", "replace")

    def names(self, tokens: Sequence[int]) -> list[str]:
        """Each token as a byte-level vocabulary writes it: printable bytes as themselves, others from U+0100 on."""
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        hidden = [byte for byte in range(256) if byte not in printable]
        shown = {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + at) for at, byte in enumerate(hidden)}
        special = self._encoding.special_tokens_set
        return [
            name if (name := self.text([token])) in special else "".join(shown[byte] for byte in self.raw(token))
            for token in tokens
        ]


@cache
def r1_vocabulary() -> Vocabulary:
    """DeepSeek-R1's vocabulary, loaded once per process (most of a second)."""
    return Vocabulary(deepseek_r1())


def _called(message: Mapping[str, Any], first: bool) -> str:
    """An assistant message that called tools. The opening is written once per conversation, as the template has it."""
    parts: list[str] = []
    for call in message["tool_calls"]:
        function = call["function"]
        head = "\n" if not first else f"{ASSISTANT_TEXT}{message['content']}<｜tool▁calls▁begin｜>"
        first = False
        parts.append(
            f"{head}<｜tool▁call▁begin｜>{call.get('type', 'function')}<｜tool▁sep｜>{function['name']}\n```json\n"
            f"{function['arguments']}\n```<｜tool▁call▁end｜>"
        )
    return "".join([*parts, "<｜tool▁calls▁end｜>", EOS_TEXT])


def render_chat(messages: Sequence[Mapping[str, Any]]) -> str:
    """R1's chat template: messages (``role``, ``content`` a string, ``tool_calls``) to the prompt's text."""
    parts = [BOS_TEXT, "\n\n".join(message["content"] for message in messages if message["role"] == "system")]
    after_tool = False
    first_call = first_output = True
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "user":
            after_tool = False
            parts.append(USER_TEXT + content)
        elif role == "assistant" and message.get("tool_calls"):
            after_tool = False
            parts.append(_called(message, first_call))
            first_call = False
        elif role == "assistant":
            if after_tool:
                parts.append(f"<｜tool▁outputs▁end｜>{content}{EOS_TEXT}")
            else:
                parts.append(f"{ASSISTANT_TEXT}{content.split(END_THINK_TEXT)[-1]}{EOS_TEXT}")
            after_tool = False
        elif role == "tool":
            after_tool = True
            opening = "<｜tool▁outputs▁begin｜>" if first_output else ""
            first_output = False
            parts.append(f"{opening}<｜tool▁output▁begin｜>{content}<｜tool▁output▁end｜>")
    parts.append("<｜tool▁outputs▁end｜>" if after_tool else ASSISTANT_TEXT)
    return "".join(parts)

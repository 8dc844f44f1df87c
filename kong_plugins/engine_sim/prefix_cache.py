"""The prefix cache: whole blocks of tokens, found again by everything that comes before them and by their salt."""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence


class PrefixCache:
    """Keeps up to ``blocks`` blocks of ``block_size`` tokens, least recently used ones leave first."""

    def __init__(self, block_size: int, blocks: int) -> None:
        self.block_size = block_size
        self._blocks = blocks
        self._known: OrderedDict[bytes, None] = OrderedDict()

    def _chain(self, tokens: Sequence[int], salt: str | None) -> Iterator[bytes]:
        digest = hashlib.blake2b(repr(salt).encode(), digest_size=16).digest()
        for start in range(0, len(tokens) - self.block_size + 1, self.block_size):
            block = array("q", tokens[start : start + self.block_size]).tobytes()
            digest = hashlib.blake2b(digest + block, digest_size=16).digest()
            yield digest

    def match(self, prompt: Sequence[int], salt: str | None) -> int:
        """Tokens of the prompt that are cached. The last token is always computed, so never all of them."""
        found = 0
        for block in self._chain(prompt[:-1], salt):
            if block not in self._known:
                break
            self._known.move_to_end(block)
            found += 1
        return found * self.block_size

    def insert(self, tokens: Sequence[int], salt: str | None) -> int:
        """Keep every whole block. Returns how many tokens were new."""
        new = 0
        for block in self._chain(tokens, salt):
            new += block not in self._known
            self._known[block] = None
            self._known.move_to_end(block)
        while len(self._known) > self._blocks:
            self._known.popitem(last=False)
        return new * self.block_size

    def clear(self) -> None:
        self._known.clear()

"""DeepSeek-R1's encoding against `tokenizers`, which the engine itself uses: the same ids on every text.

``TOKENIZER_CORPUS_S`` sets how many seconds of random texts are compared (default 4).
"""

from __future__ import annotations

import os
import random
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiktoken
from tokenizers import Tokenizer

from kong_plugins.adapters.tokenizers import encoding_for
from kong_plugins.adapters.tokenizers.deepseek import deepseek_r1, tokenizer_file
from kong_plugins.domain.errors import CountUnavailable

REPOSITORY = Path(__file__).parents[3]
STANDARD_LIBRARY = Path(sysconfig.get_paths()["stdlib"])

# What the split rules and the vocabulary tell apart: scripts, marks, signs, digits of several scripts, unassigned and
# private characters, every kind of space and line end, controls, joiners, and the model's own marks, whole and broken.
RANGES = [
    (0x00, 0x7F),
    (0x80, 0x24F),
    (0x300, 0x36F),
    (0x370, 0x5FF),
    (0x600, 0x6FF),
    (0x900, 0x97F),
    (0xE00, 0xE7F),
    (0x1100, 0x11FF),
    (0x2000, 0x206F),
    (0x2150, 0x218F),
    (0x2460, 0x24FF),
    (0x3000, 0x30FF),
    (0x4DF0, 0x9FFF),
    (0xAC00, 0xD7A3),
    (0xE000, 0xE010),
    (0xF900, 0xFAFF),
    (0xFE00, 0xFFFF),
    (0x1F300, 0x1FAFF),
    (0x20000, 0x200FF),
    (0xE0000, 0xE01EF),
    (0x10FFFE, 0x10FFFF),
]
PIECES = [
    " ",
    "  ",
    "   \t",
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    "\x00",
    "\x0b",
    "\x0c",
    "\x1c",
    "\x1f",
    "\x85",
    "\xa0",
    "\u2028",
]
PIECES += ["\u3000", "\ufeff", "\u200d", "1", "12", "1234567", "٣٤٥", "²³", "word", "Word's", "don't", "=>", "!word"]
PIECES += ["・", "゛", "ー", "\u3097\u3099", "一二三", "フ", "龥龦", "e\u0301", "\ue000a", "\U0001f468\u200d\U0001f469"]
PIECES += ["<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", "<｜", "｜>", "<｜end▁of▁sentence｜>", "<｜User"]


COUNT = encoding_for("deepseek-r1")


@pytest.fixture(scope="module")
def encoding() -> tiktoken.Encoding:
    return deepseek_r1()


@pytest.fixture(scope="module")
def oracle() -> Tokenizer:
    return Tokenizer.from_file(str(tokenizer_file()))


def ids(encoding: tiktoken.Encoding, text: str) -> list[int]:
    return encoding.encode(text, allowed_special="all")


def first_difference(encoding: tiktoken.Encoding, oracle: Tokenizer, texts: Iterator[str]) -> tuple[int, str | None]:
    """How many texts agreed, and the first that did not."""
    agreed = 0
    for text in texts:
        if ids(encoding, text) != oracle.encode(text, add_special_tokens=False).ids:
            return agreed, text
        agreed += 1
    return agreed, None


def written_texts() -> Iterator[str]:
    """Sources, documents and recordings at hand, whole and by line."""
    paths = (
        sorted(REPOSITORY.glob("kong_plugins/**/*.py"))
        + sorted(REPOSITORY.glob("*.md"))
        + sorted(REPOSITORY.glob("docs/*.md"))
    )
    paths += sorted((REPOSITORY / "tests" / "data" / "vllm" / "main").glob("[1-6]*.re*"))
    paths += sorted(STANDARD_LIBRARY.glob("*.py"))[:24] + sorted(STANDARD_LIBRARY.glob("encodings/*.py"))[:8]
    for path in paths:
        text = path.read_text("utf-8", errors="replace")
        yield text
        yield from text.splitlines(keepends=True)[:40]


def random_texts(seconds: float) -> Iterator[str]:
    rng = random.Random(20_240_120)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pieces = []
        for _ in range(rng.randint(1, 50)):
            low, high = rng.choice(RANGES)
            piece = rng.choice(PIECES) if rng.random() < 0.4 else chr(rng.randint(low, high))
            pieces.append(piece * (rng.choice((2, 3, 17, 130)) if rng.random() < 0.05 else 1))
        yield "".join(pieces)


def test_every_written_text_has_the_oracles_ids(encoding: tiktoken.Encoding, oracle: Tokenizer) -> None:
    agreed, text = first_difference(encoding, oracle, written_texts())
    assert text is None
    assert agreed > 3_000


@pytest.mark.slow
def test_every_random_text_has_the_oracles_ids(encoding: tiktoken.Encoding, oracle: Tokenizer) -> None:
    seconds = float(os.environ.get("TOKENIZER_CORPUS_S", "4"))
    agreed, text = first_difference(encoding, oracle, random_texts(seconds))
    assert text is None, ascii(text)
    assert agreed > 200 * seconds


def test_every_character_has_the_oracles_ids_in_company(encoding: tiktoken.Encoding, oracle: Tokenizer) -> None:
    """Every 53rd code point from a random start, between a space, letters, kana and digits."""
    start = random.Random(7).randrange(53)
    codes = (code for code in range(start, 0x110000, 53) if not 0xD800 <= code < 0xE000)
    blocks = iter(lambda: [chr(code) for _, code in zip(range(200), codes, strict=False)], [])
    texts = ("".join(f" {c}a{c}フ{c}1{c}\n" for c in block) for block in blocks)
    agreed, text = first_difference(encoding, oracle, texts)
    assert text is None, ascii(text)
    assert agreed > 100


@pytest.mark.parametrize(
    "text", ["フ\u3097", "ア・イ", "一 \n1", " \u30fb", "\x00\x00a", "\x00 一", "12345一", "   一", "\t\x00"]
)
def test_where_the_three_splits_meet(encoding: tiktoken.Encoding, oracle: Tokenizer, text: str) -> None:
    assert ids(encoding, text) == oracle.encode(text, add_special_tokens=False).ids


def test_ids_name_the_models_tokens(encoding: tiktoken.Encoding) -> None:
    """The ids a real engine reported for this text."""
    assert ids(encoding, "Hello world 2024 你好") == [19923, 2058, 223, 939, 22, 223, 30594]
    assert ids(encoding, "<｜User｜>") == [128803]
    assert encoding.decode(ids(encoding, "a\x00b フ・\n\n")) == "a\x00b フ・\n\n"


@pytest.mark.parametrize("run", [" ", "\t ", "\n", "\r\n ", "\x00", "\u3097", "a", "一", "!", "1", "\ufffd"])
@pytest.mark.parametrize("end", ["", "x", "1", "一"])
def test_a_hostile_run_is_counted_or_declined_but_never_panics(run: str, end: str) -> None:
    """tiktoken's matcher panics (not an Exception) on a million spaces; its frames are bounded by the run we let in."""
    assert COUNT(run * (49_000 // len(run)) + end) > 0
    long = run * (300_000 // len(run)) + end
    if run in "a一1":
        assert COUNT(long) > 0
    else:
        with pytest.raises(CountUnavailable, match="in a row"):
            COUNT(long)


def test_text_without_a_bracket_counts_the_same_the_short_way(encoding: tiktoken.Encoding) -> None:
    for text in ("", "plain text", "a < b", "<｜User｜>hi", "x</think>y"):
        assert COUNT(text) == len(ids(encoding, text))

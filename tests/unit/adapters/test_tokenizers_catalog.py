"""Which tokenizer counts for which model, and that none of them reaches for the network."""

from __future__ import annotations

import gzip
import socket
from hashlib import sha1, sha256
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from kong_plugins.adapters.tokenizers import ModelTokenCounter, encoding_for, openai_files
from kong_plugins.adapters.tokenizers.openai_files import _constructor, _ranks, _read, openai_encoding
from kong_plugins.domain.errors import CountUnavailable


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a tokenizer opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """A tokenizer.json with one token a word."""
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.mark.parametrize("name", ["deepseek-r1", "deepseek-ai/DeepSeek-R1", "DeepSeek-R1-0528"])
def test_r1_is_known_by_its_names(name: str) -> None:
    assert encoding_for(name)("Hello world 2024 你好") == 7


@pytest.mark.parametrize("name", ["deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "some-model", ""])
def test_a_model_without_a_known_tokenizer_is_said_so_with_the_fix(name: str) -> None:
    with pytest.raises(CountUnavailable, match=r"map it to .*tokenizer\.json"):
        encoding_for(name)


def test_any_tokenizer_json_counts_by_its_path(words: Path) -> None:
    assert encoding_for(str(words))("a b c") == 3


@pytest.mark.parametrize("content", [None, b"", b"{}", b"not json"])
def test_a_tokenizer_json_that_cannot_be_read_is_said_so(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CountUnavailable, match="cannot be read"):
        encoding_for(str(path))


def test_the_operators_map_goes_first_and_takes_globs(words: Path) -> None:
    counter = ModelTokenCounter({"deepseek-r1": str(words), "qwen-*": str(words)})
    assert counter.count_text("deepseek-r1", "Hello world 2024 你好") == 4
    assert counter.count_text("qwen-7b", "a b") == 2
    with pytest.raises(CountUnavailable):
        counter.count_text("other", "a b")


def test_models_of_one_encoding_share_it(words: Path) -> None:
    counter = ModelTokenCounter({"x-*": str(words)})
    counter.warm("x-1", "x-2")
    words.unlink()
    assert counter.count_text("x-3", "a b") == 2


def test_warming_says_what_is_missing(tmp_path: Path) -> None:
    counter = ModelTokenCounter({"m": str(tmp_path / "none.json")})
    with pytest.raises(CountUnavailable, match=r"none\.json"):
        counter.warm("m")


# OpenAI's vocabularies: tiktoken's constructors with a reader in place of its downloader.


@pytest.fixture
def _no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_files, "_PACKAGES", ())


@pytest.mark.usefixtures("_no_packages")
@pytest.mark.parametrize("model", ["gpt-4o", "gpt-4", "o200k_base", "o200k_harmony"])
def test_a_vocabulary_that_is_not_here_is_said_so_and_not_downloaded(model: str) -> None:
    with pytest.raises(CountUnavailable, match=r"\.tiktoken is not here; put it into the directory"):
        encoding_for(model)


@pytest.mark.usefixtures("_no_packages")
def test_a_file_with_another_hash_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "o200k_base.tiktoken").write_bytes(b"IQ== 0\n")
    with pytest.raises(CountUnavailable, match="wrong SHA-256"):
        openai_encoding("o200k_base", tmp_path)


def test_constructors_are_tiktokens_own_with_their_loader_replaced() -> None:
    """Each asks our reader, with tiktoken's own URL and hash; o200k_harmony builds on o200k_base."""
    asked: list[tuple[str, str]] = []

    def load(url: str, expected_hash: str) -> dict[bytes, int]:
        asked.append((url.rpartition("/")[2], expected_hash))
        return {bytes([n]): n for n in range(256)}

    built = {name: _constructor(name, load)() for name in sorted(openai_files.NAMES)}
    assert [file for file, _ in asked] == [f"{base}.tiktoken" for base in BASES]
    assert all(len(expected) == 64 for _, expected in asked)
    assert built["o200k_harmony"]["pat_str"] == built["o200k_base"]["pat_str"]
    assert built["o200k_harmony"]["special_tokens"]["<|start|>"] == 200006


BASES = ["cl100k_base", "o200k_base", "o200k_base", "p50k_base", "p50k_base", "r50k_base"]


@pytest.mark.usefixtures("_no_packages")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("file", ["v.tiktoken", sha1(b"https://x/v.tiktoken").hexdigest()])
def test_a_file_with_the_expected_hash_is_read_plain_or_gzipped(tmp_path: Path, file: str, packed: bool) -> None:
    """Under its own name, or under the one it has in tiktoken's cache."""
    data = b"IQ== 0\nIg== 1\n"
    if packed and file.endswith(".tiktoken"):
        (tmp_path / f"{file}.gz").write_bytes(gzip.compress(data))
    else:
        (tmp_path / file).write_bytes(data)
    assert _ranks(_read("https://x/v.tiktoken", sha256(data).hexdigest(), tmp_path)) == {b"!": 0, b'"': 1}


@pytest.mark.parametrize(("name", "tokens"), [("gpt-4o", 9), ("gpt-4", 10)])
def test_installed_vocabularies_count_as_tiktoken_does(name: str, tokens: int) -> None:
    try:
        count = encoding_for(name)
    except CountUnavailable as missing:
        pytest.skip(str(missing))
    assert count("Hello world 你好 1234 <|endoftext|>") == tokens


def test_a_client_cannot_name_a_file_as_its_model(words: Path) -> None:
    """A model name comes from the request: it opens no file here, and names leave nothing behind in memory."""
    counter = ModelTokenCounter({"mine": str(words)})
    assert counter.count_text("mine", "a a") == 2
    (words.parent / "other.json").write_bytes(words.read_bytes())
    for name in (str(words.parent / "other.json"), "../x.json"):
        with pytest.raises(CountUnavailable, match="operator's mapping"):
            counter.count_text(name, "a")
    assert list(counter._built) == [str(words)]

"""tiktoken's OpenAI encodings from files that are already here.

tiktoken downloads its vocabularies when an encoding is first used. Here its own constructors run (pattern, special
tokens and expected hash stay theirs) with a loader that only reads: a directory of the operator's, or an installed
package that ships the files. A file that does not have the expected hash is not used.
"""

from __future__ import annotations

import gzip
from base64 import b64decode
from collections.abc import Callable, Iterator
from hashlib import sha1, sha256
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType
from typing import Any, cast

import tiktoken
from tiktoken_ext import openai_public  # type: ignore[import-untyped]

from kong_plugins.domain.errors import CountUnavailable

NAMES = frozenset({"o200k_base", "o200k_harmony", "cl100k_base", "p50k_base", "p50k_edit", "r50k_base"})

# Packages that ship vocabularies: import name, folder. Any of them will do; none is imported.
_PACKAGES = (
    ("bpe_openai", "data"),
    ("tiktoken_ext", "data"),
    ("litellm", "litellm_core_utils/tokenizers"),
)

Ranks = dict[bytes, int]


def openai_encoding(name: str, directory: Path | None = None) -> tiktoken.Encoding:
    """Build a tiktoken encoding without the network.

    Raises:
        CountUnavailable: no file with the expected hash is here; the message names the file and where it may come from.
    """
    if name not in NAMES:
        raise CountUnavailable(f"no such OpenAI encoding: {name}; use one of {', '.join(sorted(NAMES))}")

    def load(url: str, expected_hash: str) -> Ranks:
        return _ranks(_read(url, expected_hash, directory))

    return tiktoken.Encoding(**_constructor(name, load)())


def _constructor(name: str, load: Callable[[str, str], Ranks]) -> Callable[[], dict[str, Any]]:
    """tiktoken's constructor with our loader as the one it calls, also through the encoding it builds on."""
    names: dict[str, Any] = {**vars(openai_public), "load_tiktoken_bpe": load}
    for other in NAMES:
        names[other] = FunctionType(cast(FunctionType, vars(openai_public)[other]).__code__, names)
    return cast(Callable[[], dict[str, Any]], names[name])


def _read(url: str, expected_hash: str, directory: Path | None) -> bytes:
    seen: list[str] = []
    for path in _candidates(url, directory):
        if not path.is_file():
            continue
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if sha256(data).hexdigest() == expected_hash:
            return data
        seen.append(str(path))
    file = url.rpartition("/")[2]
    raise CountUnavailable(
        f"{file} is not here" + (f" ({', '.join(seen)}: wrong SHA-256)" if seen else "") + "; put it into the directory"
        " of encodings, or install bpe-openai, which ships it"
    )


def _candidates(url: str, directory: Path | None) -> Iterator[Path]:
    file = url.rpartition("/")[2]
    cached = sha1(url.encode(), usedforsecurity=False).hexdigest()  # how tiktoken names files in its cache
    folders = [directory] if directory is not None else []
    for package, folder in _PACKAGES:
        spec = find_spec(package)
        folders += [Path(location) / folder for location in (spec and spec.submodule_search_locations) or ()]
    for place in folders:
        yield from (place / file, place / f"{file}.gz", place / cached)


def _ranks(data: bytes) -> Ranks:
    return {b64decode(token): int(rank) for token, rank in (line.split() for line in data.splitlines() if line)}

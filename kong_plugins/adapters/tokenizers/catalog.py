"""Which tokenizer a model has."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import tiktoken
import tiktoken.model
from tokenizers import Tokenizer

from kong_plugins.adapters.tokenizers import deepseek, openai_files
from kong_plugins.domain.errors import CountUnavailable

Count = Callable[[str], int]

# tiktoken's matcher keeps a frame for each character of a run of spaces or control characters (letters and digits take
# none) and panics when they are too many: 100,000 still passed, 1,000,000 did not.
_RUN_MAX = 50_000
_LONG_RUN = re.compile(r"\W{64,}")


def encoding_for(name: str, models: Mapping[str, str] | None = None, directory: Path | None = None) -> Count:
    """A function that counts the tokens of a text, marks such as ``<｜User｜>`` as one token each, as engines do.

    ``name`` is a model or an encoding: ``deepseek-r1``, an OpenAI encoding or model name, or the path of a
    ``tokenizer.json``. ``models`` (model name or glob to encoding) goes first, in its order; ``directory`` may hold
    ``.tiktoken`` files.

    Raises:
        CountUnavailable: no tokenizer is known for the name, or its files are not here.
    """
    encoding = _encoding_name(name, models or {})
    if encoding == deepseek.NAME:
        return _counting(deepseek.deepseek_r1())
    if encoding.endswith(".json"):
        return _counting_by_file(Path(encoding))
    return _counting(openai_files.openai_encoding(encoding, directory))


def _encoding_name(name: str, models: Mapping[str, str]) -> str:
    for pattern, encoding in models.items():
        if fnmatchcase(name, pattern):
            return encoding
    if name in openai_files.NAMES or name.endswith(".json"):
        return name
    plain = name.lower()
    if "deepseek" in plain and "r1" in plain and "distill" not in plain:  # the distilled ones have their bases' own
        return deepseek.NAME
    try:
        return tiktoken.model.encoding_name_for_model(name)
    except KeyError:
        raise CountUnavailable(
            f"no tokenizer is known for the model {name!r}; map it to deepseek-r1, an OpenAI encoding or the path of"
            " its tokenizer.json"
        ) from None


def _counting(encoding: tiktoken.Encoding) -> Count:
    special = encoding.special_tokens_set

    def count(text: str) -> int:
        if len(text) > _RUN_MAX and any(run.end() - run.start() > _RUN_MAX for run in _LONG_RUN.finditer(text)):
            raise CountUnavailable(
                f"the text holds more than {_RUN_MAX} characters in a row that are no letters or digits"
            )
        # Every mark begins with "<", and looking for marks costs more than counting without.
        if "<" in text:
            return len(encoding.encode(text, allowed_special=special, disallowed_special=()))
        return len(encoding.encode_ordinary(text))

    return count


def _counting_by_file(path: Path) -> Count:
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for a missing or malformed file
        raise CountUnavailable(f"{path} cannot be read as a tokenizer.json: {error}") from error

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    return count


class ModelTokenCounter:
    """``TokenCounter`` over a catalogue. Tokenizers are built on first use (most of a second) or by ``warm``."""

    def __init__(self, models: Mapping[str, str] | None = None, directory: Path | None = None) -> None:
        self._models = dict(models or {})
        self._directory = directory
        self._built: dict[str, Count | CountUnavailable] = {}  # by encoding: models share them

    def warm(self, *models: str) -> None:
        """
        Raises:
            CountUnavailable: one of the models has no tokenizer here.
        """
        for model in models:
            self._count(model)

    def count_text(self, model: str, text: str) -> int:
        """
        Raises:
            CountUnavailable: the model has no tokenizer here.
        """
        return self._count(model)(text)

    def _count(self, model: str) -> Count:
        encoding = _encoding_name(model, self._models)
        if encoding.endswith(".json") and encoding not in self._models.values():
            raise CountUnavailable("a model's name is the client's: only an operator's mapping names a file")
        built = self._built.get(encoding)
        if built is None:
            try:
                built = encoding_for(encoding, None, self._directory)
            except CountUnavailable as unavailable:
                built = unavailable
            self._built[encoding] = built
        if isinstance(built, CountUnavailable):
            raise built
        return built

"""A decK file as data that knows its lines."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from kong_plugins.adapters.deck_file import Loader

Path = tuple[str | int, ...]  # keys and list positions from 0, from the top of the file

_VARIABLE = re.compile(r"\$\{\{\s*env\s+\"(?P<name>DECK_[^\"]*)\"(?:\s*\|\s*(?P<cast>\w+))?\s*\}\}")
_STANDS_FOR = {"toInt": "1", "toFloat": "1.0", "toBool": "true", None: "value-of-{name}"}


class NotReadable(ValueError):  # noqa: N818 - what it is
    """The text is no YAML of a mapping. ``line``: where that shows."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True, slots=True)
class Source:
    """``lines``: of every key and list entry, from 1."""

    data: Mapping[str, Any]
    lines: Mapping[Path, int]

    def line(self, path: Path) -> int:
        """The line of a place, or of the nearest thing around it that is written."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def stand_ins(text: str) -> dict[str, str]:
    """A made-up value of the right kind for every variable that a file refers to."""
    return {match["name"]: _stand_in(match) for match in _VARIABLE.finditer(text)}


def _stand_in(match: re.Match[str]) -> str:
    return _STANDS_FOR.get(match["cast"], "1").format(name=match["name"])


def read_source(text: str, env: Mapping[str, str]) -> Source:
    """A file's text. A check needs no secrets: a variable that is not in ``env`` gets a value of the right kind.

    Raises:
        NotReadable: it is no YAML, or no mapping.
    """

    def value(match: re.Match[str]) -> str:
        name = match["name"]
        if name in env and "\n" not in env[name]:
            return env[name]
        return _stand_in(match)

    rendered = _VARIABLE.sub(value, text)
    left = rendered.find("${{")
    if left >= 0:
        line = rendered.count("\n", 0, left) + 1
        raise NotReadable('an expression that is not ${{ env "DECK_…" }}', line)
    try:
        loader = Loader(rendered)
        try:
            node = loader.get_single_node()
            data = loader.construct_document(node) if node is not None else None
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise NotReadable(f"no YAML: {error.problem or error}", mark.line + 1 if mark else 1) from error
    except yaml.YAMLError as error:
        raise NotReadable(f"no YAML: {error}", 1) from error
    if not isinstance(data, dict):
        raise NotReadable('no mapping: a decK file starts with _format_version: "3.0"', 1)
    lines: dict[Path, int] = {}
    if node is not None:
        _note_lines(node, (), lines)
    return Source(data, lines)


def _note_lines(node: yaml.Node, path: Path, lines: dict[Path, int]) -> None:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*path, str(key.value))
            lines[inner] = key.start_mark.line + 1
            _note_lines(value, inner, lines)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            _note_lines(value, (*path, number), lines)


_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")


def path_of(dotted: str) -> Path:
    """``config.budgets[1].limit``, as Kong writes a place (counted from 1), as a path."""
    return tuple(int(number) - 1 if number else name for name, number in _STEP.findall(dotted))

"""The price list: a YAML file, read with the line of everything that is wrong in it.

Numbers are taken as they are written (``0.55`` and ``"0.55"`` alike), never through a float.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import TypeVar
from zoneinfo import ZoneInfo

import yaml

from kong_plugins.domain.money import check_currency, parse_micro
from kong_plugins.domain.periods import midnight_ms, zone
from kong_plugins.domain.rating import PriceEntry, PriceList, Rate, RequestFee

T = TypeVar("T")

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_KEYS = ("currency", "time_zone", "request_fee", "provider", "billing_account", "models")
_PRICES = ("prompt", "cached", "completion", "reasoning", "request")


class PriceListError(ValueError):
    """The list cannot be used: one line for each thing that is wrong, ``FILE:LINE: what, and what instead``."""


def load_prices(path: Path) -> PriceList:
    """
    Raises:
        PriceListError: the file cannot be read, or anything in it is wrong; everything at once.
    """
    try:
        return read_prices(path.read_text("utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise PriceListError(f"{path}: cannot be read: {error}; give a price list with --prices FILE") from error


def read_prices(text: str, name: str = "prices.yaml") -> PriceList:
    """
    Raises:
        PriceListError: as for ``load_prices``.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else 1
        raise PriceListError(f"{name}:{line}: no YAML: {getattr(error, 'problem', None) or error}") from error
    reader = _Reader(name)
    prices = reader.read(root, hashlib.sha256(text.encode()).hexdigest())
    if reader.problems:
        raise PriceListError("\n".join(what for _, what in sorted(reader.problems)))
    return prices


class _Reader:
    """Collects what is wrong; a value that is wrong reads as its default, so that the rest is looked at too."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.problems: list[tuple[int, str]] = []

    def read(self, root: yaml.Node | None, digest: str) -> PriceList:
        nodes = self._mapping(root, "the file", _KEYS)
        for missing in ("currency", "models"):
            if missing not in nodes:
                self._wrong(root, f"{missing} is missing")
        where = self._value(nodes, "time_zone", zone, ZoneInfo("UTC"))
        models: dict[str, tuple[PriceEntry, ...]] = {}
        if "models" in nodes:
            for pattern, node in self._mapping(nodes["models"], "models", None).items():
                models[pattern] = self._entries(pattern, node, where)
            if not models:
                self._wrong(nodes["models"], "models has no model in it")
        return PriceList(
            currency=self._value(nodes, "currency", check_currency, "XXX"),
            models=models,
            request_fee=self._value(nodes, "request_fee", _request_fee, RequestFee.METERED),
            provider=self._value(nodes, "provider", _text, "LLM gateway"),
            billing_account=self._value(nodes, "billing_account", _text, "default"),
            digest=digest,
        )

    def _entries(self, pattern: str, node: yaml.Node, where: ZoneInfo) -> tuple[PriceEntry, ...]:
        if not isinstance(node, yaml.SequenceNode) or not node.value:
            self._wrong(node, f"{pattern}: a model has a list of prices, each starting with `- from: 2026-01-01`")
            return ()
        entries: dict[int, PriceEntry] = {}
        for item in node.value:
            entry = self._entry(pattern, item, where)
            if entry is None:
                continue
            if entry.from_ms in entries:
                self._wrong(item, f"{pattern}: two prices begin on {entry.from_day}; they overlap, keep one")
            elif entries and entry.from_ms < max(entries):
                self._wrong(item, f"{pattern}: the price from {entry.from_day} comes after a later one; sort by date")
            entries[entry.from_ms] = entry
        return tuple(entries.values())

    def _entry(self, pattern: str, item: yaml.Node, where: ZoneInfo) -> PriceEntry | None:
        """None where something in it is wrong, for wrong prices would bring wrong complaints with them."""
        before = len(self.problems)
        nodes = self._mapping(item, pattern, ("from", *_PRICES))
        for missing in ("from", "prompt", "completion"):
            if missing not in nodes and len(self.problems) == before:
                self._wrong(item, f"{pattern}: {missing} is missing")
        day = self._value(nodes, "from", _day, date.min)
        micro = {name: self._value(nodes, name, _price, 0) for name in _PRICES if name in nodes}
        if len(self.problems) > before:
            return None
        try:
            rate = Rate(
                prompt=micro["prompt"],
                cached=micro.get("cached", micro["prompt"]),
                completion=micro["completion"],
                reasoning=micro.get("reasoning", micro["completion"]),
                request=micro.get("request", 0),
            )
        except ValueError as error:
            self._wrong(nodes.get("cached", item) if "cached" in str(error) else item, f"{pattern}: {error}")
            return None
        return PriceEntry(pattern, day.isoformat(), midnight_ms(where, day), rate)

    def _mapping(self, node: yaml.Node | None, what: str, known: tuple[str, ...] | None) -> Mapping[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            self._wrong(node, f"{what}: `name: value` lines belong here")
            return {}
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = str(key.value)
            if known is not None and name not in known:
                self._wrong(key, f"{what}: {name!r} is not known; {', '.join(known)} are")
            elif name in found:
                self._wrong(key, f"{what}: {name!r} is there twice")
            found[name] = value
        return found

    def _value(self, nodes: Mapping[str, yaml.Node], name: str, read: Callable[[str], T], default: T) -> T:
        node = nodes.get(name)
        if node is None:
            return default
        if not isinstance(node, yaml.ScalarNode):
            self._wrong(node, f"{name}: one value belongs here")
            return default
        try:
            return read(str(node.value))
        except ValueError as error:
            self._wrong(node, f"{name}: {error}")
            return default

    def _wrong(self, node: yaml.Node | None, what: str) -> None:
        line = node.start_mark.line + 1 if node is not None else 1
        self.problems.append((line, f"{self._name}:{line}: {what}"))


def _price(text: str) -> int:
    micro = parse_micro(text)
    if micro < 0:
        raise ValueError("a price is not negative; money in a tenant's favour is a credit, not a price")
    return micro


def _day(text: str) -> date:
    if not _DATE.fullmatch(text):
        raise ValueError(f"a date is written 2026-11-22, not {text!r}")
    return date.fromisoformat(text)


def _request_fee(text: str) -> RequestFee:
    try:
        return RequestFee(text)
    except ValueError:
        raise ValueError(f"{text!r} is none of {', '.join(RequestFee)}") from None


def _text(text: str) -> str:
    if not text.strip():
        raise ValueError("it is empty")
    return text

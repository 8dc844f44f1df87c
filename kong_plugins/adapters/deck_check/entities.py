"""A file's services, routes, consumers and plugin rows, read for checking: what is wrong is noted, the rest goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kong_plugins.adapters.deck_check.findings import Problem
from kong_plugins.adapters.deck_check.kong_facts import MORE_FIELDS, TOP_LEVEL
from kong_plugins.adapters.deck_check.source import Path, Source, path_of
from kong_plugins.adapters.deck_file import FIELDS, FORMATS
from kong_plugins.adapters.kong_schema import complete, field_map

NESTED = {"services": ("routes", "plugins"), "routes": ("plugins",), "consumers": ("plugins", "keyauth_credentials")}
OWNER = {"services": "service", "routes": "route", "consumers": "consumer"}
_UNKNOWN = "unknown field"


@dataclass(eq=False, slots=True)
class Entity:
    """A service, route, consumer or credential as written. ``name``: what others refer to it by."""

    kind: str
    path: Path
    data: Mapping[str, Any]
    service: Entity | None = None
    consumer: Entity | None = None

    @property
    def name(self) -> str:
        return str(self.data.get("name") or self.data.get("username") or self.data.get("custom_id") or "")

    @property
    def described(self) -> str:
        return f"{OWNER.get(self.kind, self.kind)} {self.name}".strip()


@dataclass(eq=False, slots=True)
class Row:
    """A plugin row. ``config`` has its defaults filled in where the plugin's schema is known. ``parsed``: what the
    plugin makes of it, None where it is wrong or has no parser."""

    name: str
    path: Path
    config: Mapping[str, Any]
    enabled: bool
    data: Mapping[str, Any]
    service: Entity | None = None
    route: Entity | None = None
    consumer: Entity | None = None
    parsed: Any = None


@dataclass(frozen=True, slots=True)
class Checked:
    """What a plugin says of a config: the complete one, its parsed form, and problems as ``config.field: message``."""

    config: Mapping[str, Any]
    parsed: Any = None
    problems: Sequence[str] = ()


CheckConfig = Callable[[Mapping[str, Any]], Checked]


@dataclass(slots=True)
class Deck:
    """A file. ``problems``: by the rule they break, of fields and references. ``known``: plugins with a schema here."""

    source: Source
    known: Mapping[str, CheckConfig]
    services: list[Entity] = field(default_factory=list)
    routes: list[Entity] = field(default_factory=list)
    consumers: list[Entity] = field(default_factory=list)
    credentials: list[Entity] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    problems: list[tuple[str, Problem]] = field(default_factory=list)

    @property
    def version(self) -> str:
        return str(self.source.data.get("_format_version", ""))


def read_deck(source: Source, known: Mapping[str, CheckConfig]) -> Deck:
    """Every entity that can be made out."""
    deck = Deck(source, known)
    if deck.version not in FORMATS:
        place: Path = ("_format_version",)
        deck.problems.append(("format-version", Problem(place, f"_format_version is one of {', '.join(FORMATS)}")))
    for name in source.data:
        if name not in TOP_LEVEL:
            deck.problems.append(("unknown-field", Problem((str(name),), f"{name}: {_UNKNOWN} of a decK file")))
    for kind in ("services", "consumers", "routes", "keyauth_credentials", "plugins"):
        _read_all(deck, kind, source.data.get(kind), (kind,), {})
    return deck


def _read_all(deck: Deck, kind: str, entries: object, path: Path, owners: Mapping[str, Entity]) -> None:
    if entries is None:
        return
    if not isinstance(entries, list):
        deck.problems.append(("field", Problem(path, f"{kind}: expected an array")))
        return
    for number, entry in enumerate(entries):
        here = (*path, number)
        _, errors = complete(_fields(kind), entry, "")
        for error in errors:
            rule = "unknown-field" if error.message == _UNKNOWN else "field"
            deck.problems.append((rule, Problem((*here, *path_of(error.path)), f"{kind}: {error}")))
        if isinstance(entry, dict):
            _read_one(deck, kind, entry, here, owners)


def _read_one(deck: Deck, kind: str, entry: dict[str, Any], path: Path, owners: Mapping[str, Entity]) -> None:
    if kind == "plugins":
        _read_row(deck, entry, path, owners)
        return
    entity = Entity(kind, path, entry)
    if kind == "routes":
        entity.service = _owner(deck, "service", entry, path, owners)
    if kind == "keyauth_credentials":
        entity.consumer = _owner(deck, "consumer", entry, path, owners)
    members = {
        "services": deck.services,
        "routes": deck.routes,
        "consumers": deck.consumers,
        "keyauth_credentials": deck.credentials,
    }
    members[kind].append(entity)
    inner = {OWNER[kind]: entity} if kind in OWNER else {}
    for name in NESTED.get(kind, ()):
        _read_all(deck, name, entry.get(name), (*path, name), inner)


def _read_row(deck: Deck, entry: dict[str, Any], path: Path, owners: Mapping[str, Entity]) -> None:
    name, config = str(entry.get("name", "")), entry.get("config") or {}
    if not isinstance(config, dict):
        deck.problems.append(("field", Problem((*path, "config"), "plugins: config: expected a record")))
        config = {}
    row = Row(
        name=name,
        path=path,
        config=config,
        enabled=entry.get("enabled") is not False,
        data=entry,
        service=_owner(deck, "service", entry, path, owners),
        route=_owner(deck, "route", entry, path, owners),
        consumer=_owner(deck, "consumer", entry, path, owners),
    )
    check = deck.known.get(name)
    if check is not None:
        checked = check(config)
        row.config, row.parsed = checked.config, checked.parsed
        for problem in checked.problems:
            place, _, message = problem.partition(": ")
            deck.problems.append(
                (_config_rule(place, message), Problem((*path, *path_of(place)), f"{name}: {problem}"))
            )
    deck.rows.append(row)


def _config_rule(place: str, message: str) -> str:
    if message == _UNKNOWN:
        return "unknown-field"
    return "price-missing" if place.endswith(".prices") and message.startswith("no price") else "plugin-config"


def _owner(deck: Deck, kind: str, entry: Mapping[str, Any], path: Path, owners: Mapping[str, Entity]) -> Entity | None:
    written = entry.get(kind)
    if isinstance(written, dict):
        written = written.get("id", written.get("name", written.get("username")))
    if written is None:
        return owners.get(kind)
    members = {"service": deck.services, "route": deck.routes, "consumer": deck.consumers}[kind]
    for entity in members:
        if written in (entity.data.get("id"), entity.name):
            return entity
    message = f"no {kind} named '{written}' in this file"
    deck.problems.append(("reference", Problem((*path, kind), message)))
    return None


def _fields(kind: str) -> list[dict[str, Mapping[str, Any]]]:
    known = {**dict(field_map(FIELDS[kind])), **MORE_FIELDS.get(kind, {})}
    return [{name: attributes} for name, attributes in known.items()]


def named(entities: Sequence[Entity]) -> Iterator[tuple[str, Entity]]:
    """Those that have a name."""
    return ((entity.name, entity) for entity in entities if entity.name)

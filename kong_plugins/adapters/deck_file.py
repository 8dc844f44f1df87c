"""decK's declarative configuration (`kong.yaml`, formats 1.1 to 3.0) as plain records with the ids Kong would give.

``${{ env "DECK_X" }}`` is rendered from a mapping the caller gives, so a demo can bring keys no file holds. Ids of
services, routes, consumers and plugin rows are Kong's own (uuid5 over the name, the same on every load); ids of
credentials are new on every load, as in DB-less Kong. Plugin configs are as written: defaults belong to the plugin's
schema, which this file does not know.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from kong_plugins.adapters.deck_entities import (
    Consumer,
    Credential,
    DeckConfig,
    DeckError,
    PluginRow,
    Route,
    Service,
    kong_id,
    url_parts,
)
from kong_plugins.adapters.kong_schema import FieldError, complete

__all__ = [
    "FIELDS",
    "FORMATS",
    "Consumer",
    "Credential",
    "DeckConfig",
    "DeckError",
    "Loader",
    "PluginRow",
    "Route",
    "Service",
    "kong_id",
    "read_deck",
    "render",
]

FORMATS = ("1.1", "2.1", "3.0")


def read_deck(text: str, env: Mapping[str, str]) -> DeckConfig:
    """Read a declarative file's text.

    Raises:
        DeckError: a variable is not set, the YAML does not parse, or a field is wrong; all field errors at once.
    """
    try:
        # A subclass of SafeLoader: no object of Python's is ever built from the file.
        data = yaml.load(render(text, env), Loader=Loader)  # noqa: S506
    except yaml.YAMLError as error:
        raise DeckError(f"the file is no YAML: {error}") from error
    if not isinstance(data, dict):
        raise DeckError('the file holds no mapping: a decK file starts with _format_version: "3.0"')
    return _Reader(data).read()


_VARIABLE = re.compile(r"\$\{\{\s*(.*?)\s*\}\}", re.DOTALL)
_ENV_CALL = re.compile(r"env\s+\"(?P<name>[^\"]*)\"(?:\s*\|\s*(?P<cast>\w+))?")
_CASTS = {"toInt": r"-?\d+", "toFloat": r"-?\d+(\.\d+)?", "toBool": "true|false"}


def render(text: str, env: Mapping[str, str]) -> str:
    """decK's templating: ``${{ env "DECK_X" }}``, with ``| toInt``, ``| toFloat`` or ``| toBool``.

    Raises:
        DeckError: another expression, a name without the DECK_ prefix, or a variable that is not set.
    """

    def value(match: re.Match[str]) -> str:
        place = f"line {text.count(chr(10), 0, match.start()) + 1}"
        call = _ENV_CALL.fullmatch(match[1])
        if call is None:
            raise DeckError(f'{place}: cannot render ${{{{ {match[1]} }}}}: only ${{{{ env "DECK_…" }}}} is known')
        name, cast = call["name"], call["cast"]
        if not name.startswith("DECK_"):
            raise DeckError(f"{place}: environment variables in a decK file must start with DECK_, not '{name}'")
        if name not in env:
            raise DeckError(f"{place}: environment variable {name} is not set: export {name}=… and start again")
        if cast is not None and not re.fullmatch(_CASTS.get(cast, r"(?!)"), env[name]):
            raise DeckError(f"{place}: {name} does not pass '{cast}' ({', '.join(_CASTS)} are known)")
        return env[name]

    return _VARIABLE.sub(value, text)


class Loader(yaml.SafeLoader):
    """YAML as decK reads it: `on`, `yes` and dates stay strings, a key written twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen and name != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"key '{name}' is there twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith((":bool", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF"))

_TAGS = {"tags": {"type": "array", "elements": {"type": "string"}}}
_STRINGS = {"type": "array", "elements": {"type": "string"}}
_ID: dict[str, Any] = {"id": {"type": "string", "uuid": True}}
_ANY: dict[str, Any] = {"type": "any"}
_TIMEOUT = {"type": "integer", "between": [1, 2147483646]}
_HTTP = ["http", "https"]
_PROTOCOLS: dict[str, Any] = {"type": "array", "elements": {"type": "string", "one_of": _HTTP}}
_PLUGIN_PROTOCOLS: dict[str, Any] = {
    "type": "array",
    "elements": {
        "type": "string",
        "one_of": ["grpc", "grpcs", "http", "https", "tcp", "tls", "tls_passthrough", "udp"],
    },
}

FIELDS: Mapping[str, Sequence[Mapping[str, Mapping[str, Any]]]] = {
    "services": [
        _ID,
        {"name": {"type": "string", "required": True}},
        {"url": {"type": "string"}},
        {"protocol": {"type": "string", "one_of": _HTTP}},
        {"host": {"type": "string"}},
        {"port": {"type": "integer", "between": [0, 65535]}},
        {"path": {"type": "string", "starts_with": "/"}},
        {"connect_timeout": _TIMEOUT},
        {"read_timeout": _TIMEOUT},
        {"write_timeout": _TIMEOUT},
        {"retries": {"type": "integer", "between": [0, 32767]}},
        {"enabled": {"type": "boolean"}},
        _TAGS,
        {"routes": _ANY},
        {"plugins": _ANY},
    ],
    "routes": [
        _ID,
        {"name": {"type": "string", "required": True}},
        {"service": _ANY},
        {"paths": {"type": "array", "elements": {"type": "string", "match": "^~?/"}}},
        {"methods": {"type": "array", "elements": {"type": "string", "match": "^[A-Z]+$"}}},
        {"hosts": _STRINGS},
        {"headers": {"type": "map", "keys": {"type": "string"}, "values": _STRINGS}},
        {"strip_path": {"type": "boolean"}},
        {"preserve_host": {"type": "boolean"}},
        {"request_buffering": {"type": "boolean"}},
        {"response_buffering": {"type": "boolean"}},
        {"protocols": _PROTOCOLS},
        {"regex_priority": {"type": "integer"}},
        {"https_redirect_status_code": {"type": "integer", "one_of": [426, 301, 302, 307, 308]}},
        {"path_handling": {"type": "string", "one_of": ["v0"]}},
        _TAGS,
        {"plugins": _ANY},
    ],
    "consumers": [
        _ID,
        {"username": {"type": "string"}},
        {"custom_id": {"type": "string"}},
        _TAGS,
        {"keyauth_credentials": _ANY},
        {"plugins": _ANY},
    ],
    "keyauth_credentials": [_ID, {"key": {"type": "string", "required": True}}, {"consumer": _ANY}, _TAGS],
    "plugins": [
        _ID,
        {"name": {"type": "string", "required": True}},
        {"config": {"type": "any"}},
        {"enabled": {"type": "boolean"}},
        {"instance_name": {"type": "string"}},
        {"protocols": _PLUGIN_PROTOCOLS},
        {"service": _ANY},
        {"route": _ANY},
        {"consumer": _ANY},
        _TAGS,
    ],
}
_TOP = (*FIELDS, "_format_version", "_transform", "_info", "_comment", "_ignore")


class _Reader:
    """Collects entities and errors in one walk, then resolves references by name or id."""

    def __init__(self, data: dict[str, Any]) -> None:
        self._data = data
        self._errors: list[FieldError] = []
        self._services: list[Service] = []
        self._routes: list[Route] = []
        self._consumers: list[Consumer] = []
        self._credentials: list[Credential] = []
        self._plugins: list[PluginRow] = []

    def read(self) -> DeckConfig:
        version = str(self._data.get("_format_version", ""))
        if version not in FORMATS:
            self._errors.append(FieldError("_format_version", f"expected one of: {', '.join(FORMATS)}"))
        for name in self._data:
            if name not in _TOP:
                self._errors.append(FieldError(str(name), f"unknown field (this reader knows {', '.join(FIELDS)})"))
        for name in ("services", "routes", "consumers", "keyauth_credentials", "plugins"):
            for path, entry in self._entries(name, self._data.get(name), name):
                getattr(self, f"_add_{name}")(path, entry, {})
        if self._errors:
            raise DeckError("\n".join(str(error) for error in self._errors))
        return DeckConfig(
            version,
            tuple(self._services),
            tuple(self._routes),
            tuple(self._consumers),
            tuple(self._credentials),
            tuple(self._plugins),
        )

    def _entries(self, kind: str, value: object, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
        if value is None:
            return
        if not isinstance(value, list):
            self._errors.append(FieldError(path, "expected an array"))
            return
        for number, entry in enumerate(value, 1):
            name = entry.get("name", entry.get("username")) if isinstance(entry, dict) else None
            place = f"{path}[{number}]" + (f" ({name})" if isinstance(name, str) else "")
            before = len(self._errors)
            record, errors = complete(FIELDS[kind], entry, place)
            self._errors += errors
            if len(self._errors) == before:
                yield place, record

    def _nested(self, record: dict[str, Any], names: Sequence[str], path: str, parent: dict[str, str]) -> None:
        for name in names:
            for place, entry in self._entries(name, record.pop(name, None), f"{path}.{name}"):
                getattr(self, f"_add_{name}")(place, entry, parent)

    def _add_services(self, path: str, record: dict[str, Any], parent: dict[str, str]) -> None:
        del parent
        inner = {name: record.pop(name, None) for name in ("routes", "plugins")}
        url = record.pop("url", None)
        if url is not None:
            clash = sorted({"host", "port", "protocol", "path"} & record.keys())
            if clash:
                self._errors.append(
                    FieldError(f"{path}.{clash[0]}", "give either url or host, port, protocol and path")
                )
            try:
                record |= url_parts(url, f"{path}.url")
            except DeckError as error:
                self._errors.append(FieldError("", str(error)))
                return
        if "host" not in record:
            self._errors.append(FieldError(f"{path}.host", "required field missing (or give url)"))
            return
        record.setdefault("port", 80)
        record.setdefault("id", kong_id("services", record["name"]))
        service = Service(**_tuples(record))
        self._unique(path, "name", service.name, [other.name for other in self._services])
        self._services.append(service)
        self._nested(inner, ("routes", "plugins"), path, {"service_id": service.id})

    def _add_routes(self, path: str, record: dict[str, Any], parent: dict[str, str]) -> None:
        inner = {"plugins": record.pop("plugins", None)}
        service_id = self._reference(path, "service", record, self._services, parent)
        for number, pattern in enumerate(record.get("paths", ()), 1):
            if pattern.startswith("~"):
                try:
                    re.compile(pattern[1:])
                except re.error as error:
                    self._errors.append(FieldError(f"{path}.paths[{number}]", f"not a valid regex: {error}"))
        if not any(record.get(name) for name in ("paths", "methods", "hosts", "headers")):
            self._errors.append(FieldError(path, "must set one of 'methods', 'hosts', 'headers', 'paths'"))
        record["headers"] = {name.lower(): tuple(values) for name, values in record.get("headers", {}).items()}
        record.setdefault("id", kong_id("routes", record["name"]))
        route = Route(service_id=service_id, **_tuples(record))
        self._unique(path, "name", route.name, [other.name for other in self._routes])
        self._routes.append(route)
        self._nested(inner, ("plugins",), path, {"route_id": route.id})

    def _add_consumers(self, path: str, record: dict[str, Any], parent: dict[str, str]) -> None:
        del parent
        inner = {name: record.pop(name, None) for name in ("keyauth_credentials", "plugins")}
        username = record.setdefault("username", None)
        if username is None and "custom_id" not in record:
            message = "at least one of these fields must be non-empty: 'custom_id', 'username'"
            self._errors.append(FieldError(path, message))
            return
        record.setdefault("id", kong_id("consumers", username) if username else str(uuid.uuid4()))
        consumer = Consumer(**_tuples(record))
        self._unique(path, "username", consumer.username, [other.username for other in self._consumers])
        self._consumers.append(consumer)
        self._nested(inner, ("keyauth_credentials", "plugins"), path, {"consumer_id": consumer.id})

    def _add_keyauth_credentials(self, path: str, record: dict[str, Any], parent: dict[str, str]) -> None:
        consumer_id = self._reference(path, "consumer", record, self._consumers, parent)
        if consumer_id is None:
            self._errors.append(FieldError(f"{path}.consumer", "required field missing"))
            return
        record.setdefault("id", str(uuid.uuid4()))
        credential = Credential(consumer_id=consumer_id, **_tuples(record))
        if credential.key in (other.key for other in self._credentials):
            self._errors.append(FieldError(f"{path}.key", "another credential has this key"))
        self._credentials.append(credential)

    def _add_plugins(self, path: str, record: dict[str, Any], parent: dict[str, str]) -> None:
        config = record.pop("config", None) or {}
        if not isinstance(config, dict):
            self._errors.append(FieldError(f"{path}.config", "expected a record"))
            return
        scope: dict[str, Any] = {
            "service_id": self._reference(path, "service", record, self._services, parent),
            "route_id": self._reference(path, "route", record, self._routes, parent),
            "consumer_id": self._reference(path, "consumer", record, self._consumers, parent),
        }
        scoped = ":".join(scope[name] or "" for name in ("route_id", "service_id", "consumer_id"))
        record.setdefault("id", kong_id("plugins", f"plugins:*:{record['name']}:{scoped}"))
        row = PluginRow(config=config, **scope, **_tuples(record))
        taken = [(other.name, other.service_id, other.route_id, other.consumer_id) for other in self._plugins]
        if (row.name, row.service_id, row.route_id, row.consumer_id) in taken:
            self._errors.append(FieldError(path, f"plugin '{row.name}' is there twice for the same scope"))
        self._plugins.append(row)

    def _reference(
        self, path: str, name: str, record: dict[str, Any], known: Sequence[Any], parent: dict[str, str]
    ) -> str | None:
        written = record.pop(name, None)
        if isinstance(written, dict):
            written = written.get("id", written.get("name", written.get("username")))
        if written is None:
            return parent.get(f"{name}_id")
        for entity in known:
            if written in (entity.id, getattr(entity, "name", None) or getattr(entity, "username", None)):
                return str(entity.id)
        self._errors.append(FieldError(f"{path}.{name}", f"no {name} named '{written}' in this file"))
        return None

    def _unique(self, path: str, name: str, value: str | None, others: Sequence[str | None]) -> None:
        if value is not None and value in others:
            self._errors.append(FieldError(f"{path}.{name}", f"'{value}' is there twice"))


def _tuples(record: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in record.items()}

"""Plugin rows of a configuration: their complete configs, and which one of each plugin a request gets.

Plugins run by priority, highest first. Of one plugin the most specific row applies, in Kong's order: route + service +
consumer, route + consumer, service + consumer, route + service, consumer, route, service, global.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from kong_plugins.adapters.deck_entities import WORKSPACE_ID, DeckConfig, DeckError, PluginRow
from kong_plugins.adapters.kong_schema import SchemaError, complete, field_map
from kong_plugins.local_gateway.external import ExternalPlugin
from kong_plugins.local_gateway.keyauth import KEY_AUTH_FIELDS, KeyAuth
from kong_plugins.local_gateway.lua_host import ConfigError, LuaHost, LuaPlugin, LuaPluginError

_FUNCTION_PRIORITIES = {"pre-function": 1000000, "post-function": -1000}
_FUNCTION_PHASES = ("certificate", "rewrite", "access", "header_filter", "body_filter", "log")
_FUNCTION_FIELDS = [{name: {"type": "array", "elements": {"type": "string"}}} for name in _FUNCTION_PHASES]
_VAULT = re.compile(r"\{vault://env/([\w-]+)\}")

Runner: TypeAlias = KeyAuth | LuaPlugin | ExternalPlugin


@dataclass(frozen=True, slots=True)
class Row:
    """One plugin row ready to run. ``config`` is what an external plugin is started with."""

    id: str
    plugin: str
    priority: int
    config: Mapping[str, Any]
    runner: Runner

    def has(self, phase: str) -> bool:
        if isinstance(self.runner, KeyAuth):
            return phase == "access"
        if isinstance(self.runner, LuaPlugin):
            return self.runner.handler[phase.encode()] is not None
        return phase in self.runner.phases


class PluginRows:
    """All rows of one configuration.

    Args:
        config: what the file says.
        externals: plugins that run in plugin servers, by name.
        first_seq: ``__seq__`` of the first row; a later configuration must begin above the last one's.
        env: where ``{vault://env/NAME}`` references are looked up.

    Raises:
        DeckError: a plugin nobody knows, or configs that do not fit their schemas; every error at once.
    """

    def __init__(
        self,
        config: DeckConfig,
        lua_host: LuaHost,
        externals: Mapping[str, ExternalPlugin],
        first_seq: int,
        env: Mapping[str, str],
    ) -> None:
        self._by_name: dict[str, dict[tuple[str | None, str | None, str | None], Row]] = {}
        self.last_seq = first_seq
        errors: list[str] = []
        keys = KeyAuth.index(config)
        for written in config.plugins:
            if not written.enabled or not {"http", "https"} & set(written.protocols):
                continue
            try:
                row = _row(written, lua_host=lua_host, externals=externals, keys=keys, seq=self.last_seq, env=env)
            except (DeckError, ConfigError, SchemaError, LuaPluginError) as error:
                errors.append(f"{_place(config, written)}: {error}")
                continue
            self.last_seq += 1
            scope = (written.route_id, written.service_id, written.consumer_id)
            self._by_name.setdefault(written.name, {})[scope] = row
        if errors:
            raise DeckError("\n".join(errors))
        self._order = sorted(self._by_name, key=lambda name: -next(iter(self._by_name[name].values())).priority)

    def names(self) -> Sequence[str]:
        """Plugins in the order they run."""
        return self._order

    def lookup(self, name: str, route_id: str | None, service_id: str | None, consumer_id: str | None) -> Row | None:
        """The row of this plugin that applies."""
        rows = self._by_name[name]
        r, s, c = route_id, service_id, consumer_id
        for scope in (
            (r, s, c),
            (r, None, c),
            (None, s, c),
            (r, s, None),
            (None, None, c),
            (r, None, None),
            (None, s, None),
        ):
            row = rows.get(scope)
            if row is not None:
                return row
        return rows.get((None, None, None))

    def global_rows(self) -> Iterator[Row]:
        """What runs for a request that no route takes."""
        for name in self._order:
            row = self._by_name[name].get((None, None, None))
            if row is not None:
                yield row


def _row(
    written: PluginRow,
    *,
    lua_host: LuaHost,
    externals: Mapping[str, ExternalPlugin],
    keys: Mapping[str, Any],
    seq: int,
    env: Mapping[str, str],
) -> Row:
    name = written.name
    runner: Runner
    if name == "key-auth":
        config = _checked(KEY_AUTH_FIELDS, written.config)
        runner = KeyAuth(config, keys)
        return Row(written.id, name, KeyAuth.priority, config, runner)
    if name in _FUNCTION_PRIORITIES:
        config = _checked(_FUNCTION_FIELDS, written.config)
        made = lua_host.pre_function(config)
        runner = LuaPlugin(name, _FUNCTION_PRIORITIES[name], made.config, made.handler, made.lua_config)
        return Row(written.id, name, runner.priority, config, runner)
    if name in externals:
        external = externals[name]
        config = _checked(external.config_fields, written.config, external.config_checks)
        config = _resolved(config, external.config_fields, env)
        return Row(written.id, name, external.priority, _stamped(config, written, seq), external)
    try:
        runner = lua_host.plugin(name, written.config)
    except LuaPluginError as error:
        known = ", ".join(["key-auth", *_FUNCTION_PRIORITIES, *externals]) + " and the folders of the plugins directory"
        raise DeckError(f"plugin '{name}' not enabled or not loading (known here: {known}): {error}") from error
    return Row(written.id, name, runner.priority, runner.config, runner)


def _checked(
    fields: Sequence[Mapping[str, Mapping[str, Any]]],
    config: Mapping[str, Any],
    checks: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    value, errors = complete(fields, config, "config", checks)
    if errors:
        raise DeckError("; ".join(str(error) for error in errors))
    return value


def _resolved(
    config: dict[str, Any], fields: Sequence[Mapping[str, Mapping[str, Any]]], env: Mapping[str, str]
) -> dict[str, Any]:
    """Vault references of the environment in clear, with ``$refs`` beside them, as Kong hands them out."""
    refs: dict[str, str] = {}
    for name, attributes in field_map(fields):
        value = config.get(name)
        found = _VAULT.fullmatch(value) if isinstance(value, str) and attributes.get("referenceable") else None
        if found:
            variable = found[1].upper().replace("-", "_")
            if variable not in env:
                raise DeckError(f"config.{name}: {value} needs the environment variable {variable}")
            refs[name], config[name] = str(value), env[variable]
    return {**config, "$refs": refs} if refs else config


def _stamped(config: dict[str, Any], written: PluginRow, seq: int) -> dict[str, Any]:
    scope = {"route_id": written.route_id, "service_id": written.service_id, "consumer_id": written.consumer_id}
    key = ":".join(scope[name] or "" for name in ("route_id", "service_id", "consumer_id"))
    return {
        **config,
        **{name: value for name, value in scope.items() if value is not None},
        "__key__": f"plugins:{written.name}:{key}::{WORKSPACE_ID}",
        "__plugin_id": written.id,
        "__seq__": seq,
        "__ws_id": WORKSPACE_ID,
    }


def _place(config: DeckConfig, written: PluginRow) -> str:
    owners = {entity.id: f"service {entity.name}" for entity in config.services}
    owners |= {entity.id: f"route {entity.name}" for entity in config.routes}
    owners |= {entity.id: f"consumer {entity.username or entity.custom_id}" for entity in config.consumers}
    scope = [owners[i] for i in (written.service_id, written.route_id, written.consumer_id) if i in owners]
    return f"plugin {written.name} ({', '.join(scope) or 'global'})"

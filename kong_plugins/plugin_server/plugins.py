"""Plugin modules: loading, checking, and what Kong is told about them."""

from __future__ import annotations

import importlib
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from kong_pdk.module import Module, phases

_VERSION = re.compile(r"\d+\.\d+\.\d+")
_ON_ERROR = ("closed", "open")


class PluginError(Exception):
    """A plugin module is not what Kong or this server needs. The text says what to change."""


class LoadedPlugin(Module):  # type: ignore[misc]  # kong-pdk has no types
    """A plugin module with kong-pdk's attributes (name, cls, phases, priority, version, schema) and ours.

    Names in small letters (``version``, ``priority``, ``Schema``) are kong-pdk's own and work too.

    Raises:
        PluginError: the module lacks something, or Kong would refuse it.
    """

    name: str
    phases: list[str]
    priority: int
    version: str
    schema: Sequence[Mapping[str, Any]]

    def __init__(self, module: ModuleType) -> None:
        # Not super().__init__: it looks at sys.path[0], which need not exist.
        where = module.__name__
        self.mod = module
        self.load_time = time.time()
        self.mtime = Path(file).stat().st_mtime if (file := getattr(module, "__file__", None)) else 0.0
        self.last_start_instance_time = self.last_close_instance_time = 0
        self.name = getattr(module, "NAME", where.rpartition(".")[2].replace("_", "-"))
        cls = getattr(module, "Plugin", None)
        if not isinstance(cls, type):
            raise PluginError(f"{where} has no class Plugin")
        self.cls = cls
        self.phases = [phase for phase in phases if hasattr(cls, phase)]
        if not self.phases:
            raise PluginError(f"{where}.Plugin has none of Kong's phases: define one of {', '.join(phases)}")
        self.version = str(getattr(module, "VERSION", getattr(module, "version", None)))
        if not _VERSION.fullmatch(self.version):
            raise PluginError(f'{where}.VERSION is {self.version}: Kong takes "x.y.z" only')
        priority = getattr(module, "PRIORITY", getattr(module, "priority", 0))
        if not isinstance(priority, int):
            raise PluginError(f"{where}.PRIORITY is {priority!r}: Kong takes an integer only")
        self.priority = priority
        self.schema = getattr(module, "SCHEMA", getattr(module, "Schema", ()))
        self.protocols = list(getattr(module, "PROTOCOLS", ()))
        self.entity_checks = list(getattr(module, "ENTITY_CHECKS", ()))
        on_error = getattr(module, "ON_ERROR", "closed")
        if on_error not in _ON_ERROR:
            raise PluginError(f'{where}.ON_ERROR is {on_error!r}: use "closed" or "open"')
        self.fails_open = on_error == "open"


def load(name: str) -> LoadedPlugin:
    """Import a plugin module by its dotted name."""
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise PluginError(f"there is no module {name}: --plugin takes an importable module's dotted name") from None
        raise
    return LoadedPlugin(module)


def info_of(plugin: LoadedPlugin) -> dict[str, Any]:
    """What Kong's query command is to read: a plugin subschema as in a Lua plugin's ``schema.lua``."""
    fields: list[dict[str, Any]] = []
    if plugin.protocols:
        fields.append(
            {
                "protocols": {
                    "type": "set",
                    "required": True,
                    "default": plugin.protocols,
                    "elements": {"type": "string", "one_of": plugin.protocols},
                }
            }
        )
    fields.append({"config": {"type": "record", "fields": list(plugin.schema)}})
    schema: dict[str, Any] = {"name": plugin.name, "fields": fields}
    if plugin.entity_checks:
        schema["entity_checks"] = plugin.entity_checks
    return {
        "Name": plugin.name,
        "Phases": plugin.phases,
        "Priority": plugin.priority,
        "Version": plugin.version,
        "Schema": schema,
    }

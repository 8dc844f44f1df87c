"""Which plugin rows a request has met, by the phases after access."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kong_plugins.local_gateway.lua_host import LuaPlugin

if TYPE_CHECKING:
    from kong_plugins.local_gateway.plugin_rows import Row


@dataclass(slots=True)
class Collected:
    """Rows in the order they run."""

    header_filter: list[LuaPlugin] = field(default_factory=list)
    body_filter: list[LuaPlugin] = field(default_factory=list)
    log: list[Row] = field(default_factory=list)
    uses_lua: bool = False

    def add_all(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> None:
        if isinstance(row.runner, LuaPlugin):
            self.uses_lua = True
            if row.has("header_filter"):
                self.header_filter.append(row.runner)
            if row.has("body_filter"):
                self.body_filter.append(row.runner)
        if row.has("log"):
            self.log.append(row)

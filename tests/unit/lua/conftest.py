"""One LuaJIT with the project's Kong plugins for all tests here: handlers keep nothing between requests but caches."""

from __future__ import annotations

import pytest
from lua_replays import PLUGINS

from kong_plugins.local_gateway.lua_host import LuaHost


@pytest.fixture(scope="session")
def log_lines() -> list[tuple[str, str]]:
    return []


@pytest.fixture(scope="session")
def host(log_lines: list[tuple[str, str]]) -> LuaHost:
    return LuaHost(PLUGINS, log=lambda level, text: log_lines.append((level, text)))


@pytest.fixture
def logged(log_lines: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The kong.log lines of this test."""
    log_lines.clear()
    return log_lines

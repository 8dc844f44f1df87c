"""The plugins' Lua is clean: it compiles, uses no global it should not, and luacheck agrees where there is one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from lua_replays import PLUGINS

from kong_plugins.local_gateway.lua_host import LuaHost

ROOT = PLUGINS.parents[1]
FILES = sorted(PLUGINS.rglob("*.lua"))
GLOBALS = {"_G", "assert", "require", "rawset", "setmetatable", "type", "pcall", "error", "ipairs", "pairs",
           "next", "tonumber", "string", "table", "math", "kong", "ngx"}  # fmt: skip

# LuaJIT's own view of its bytecode; the opcodes of global access are learnt from two samples, they differ by version.
LIST_GLOBALS = rb"""
local util = require "jit.util"
local band, rshift = require("bit").band, require("bit").rshift
local function opcode(source) return band((util.funcbc(loadstring(source), 1)), 0xff) end
local GET, SET = opcode("return a"), nil
for pc = 1, 3 do
  local code = util.funcbc(loadstring("a = 1"), pc)
  local op = code and band(code, 0xff)
  if op and util.funck(loadstring("a = 1"), -rshift(code, 16) - 1) == "a" then SET = op end
end
assert(GET ~= SET and SET)
local function visit(f, found)
  local pc = 1
  while true do
    local code = util.funcbc(f, pc)
    if not code then break end
    local op = band(code, 0xff)
    if op == GET or op == SET then
      found[#found + 1] = (op == SET and "=" or "") .. tostring(util.funck(f, -rshift(code, 16) - 1))
    end
    pc = pc + 1
  end
  local k = -1
  while true do
    local constant = util.funck(f, k)
    if constant == nil then break end
    if type(constant) == "proto" then visit(constant, found) end
    k = k - 1
  end
  return found
end
return function(source, name) return table.concat(visit(assert(loadstring(source, name)), {}), " ") end
"""


def globals_of(host: LuaHost, source: bytes) -> set[str]:
    found = host.lua.execute(LIST_GLOBALS)(source, b"@x")
    return set(found.decode().split())


def test_the_global_check_sees_reads_and_writes(host: LuaHost) -> None:
    """In nested functions too."""
    assert globals_of(host, b"local x = 1; return function() return function() y = x + z end end") == {"=y", "z"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_accidental_globals(host: LuaHost, path: Path) -> None:
    """Nothing is written to the global table, and only Lua's and Kong's own names are read from it."""
    assert globals_of(host, path.read_bytes()) <= GLOBALS


def test_luacheck_is_clean() -> None:
    """With the repository's .luacheckrc, warnings included."""
    luacheck = shutil.which("luacheck")
    if luacheck is None:
        pytest.skip("luacheck is not on PATH (Debian: lua-check); the global and syntax checks above did run")
    run = subprocess.run(
        [luacheck, "--no-color", "-q", "kong/plugins", "kong_plugins", "tests/unit/lua"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout

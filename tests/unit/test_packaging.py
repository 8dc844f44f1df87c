"""What an installed package brings beside its Python."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_lua_file_of_the_kong_plugins_is_installed() -> None:
    """A file that Kong's `require` asks for and the wheel forgot shows only on somebody else's machine."""
    data_files = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["data-files"]
    installed = {
        f"{folder}/{path.name}"
        for folder, patterns in data_files.items()
        for pattern in patterns
        for path in ROOT.glob(pattern)
    }
    wanted = {path.relative_to(ROOT / "kong").as_posix() for path in (ROOT / "kong" / "plugins").rglob("*.lua")}
    assert len(wanted) >= 4
    assert {f"share/token-quota/kong/{name}" for name in wanted} <= installed

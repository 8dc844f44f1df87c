"""decK's and Kong's own checks, where they are installed: what they say, as findings of ours."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from kong_plugins.adapters.deck_check.findings import Finding, Severity
from kong_plugins.adapters.deck_check.source import NotReadable, read_source, stand_ins

TIMEOUT_S = 60.0
# Kong 3.9's `config parse` ends in a Lua error at any plugin that runs in a plugin server.
EXTERNAL_PLUGINS = {"token-quota", "billing-events"}
LUA_PLUGINS = ("usage-gate", "usage-tap")
_CHATTER = ("Run with --v", "prefix directory")
_STYLED = re.compile(r"\x1b\[[0-9;]*m")
# What decK says around what is wrong: how many errors of what step, and the object of it on one long line.
_AROUND = re.compile(r"\d+ errors occurred:\s*|reading file \S+:\s*|validating file content:\s*|object=.*?, err=")


def run_deck(text: str, file: str, env: Mapping[str, str]) -> list[Finding] | None:
    """`deck file validate`. None: there is no deck here."""
    program = shutil.which("deck")
    if program is None:
        return None
    with tempfile.TemporaryDirectory(prefix="token-quota-check-") as directory:
        path = Path(directory) / "kong.yaml"
        path.write_text(text)
        # decK quotes what it does not like, and that ends up in a CI's log: it gets no tenant's key.
        return _run([program, "file", "validate", str(path)], {**env, **stand_ins(text)}, "deck", file, str(path))


def run_kong(text: str, file: str, env: Mapping[str, str], plugins_dir: Path) -> list[Finding] | None:
    """`kong config parse` of the file without the rows that it cannot read. None: there is no kong here."""
    program = env.get("KONG_BIN") or shutil.which("kong")
    if not program:
        return None
    try:
        data = dict(read_source(text, {}).data)
    except NotReadable:
        return []  # told already
    with tempfile.TemporaryDirectory(prefix="token-quota-check-") as directory:
        folder = Path(directory)
        (folder / "kong" / "plugins").mkdir(parents=True)
        for name in LUA_PLUGINS:
            (folder / "kong" / "plugins" / name).symlink_to(plugins_dir / name)
        path = folder / "kong.yaml"
        path.write_text(yaml.safe_dump(_without_external(data), sort_keys=False))
        settings = {
            "KONG_DATABASE": "off",
            "KONG_PREFIX": str(folder / "prefix"),
            "KONG_PLUGINS": ",".join(("bundled", *LUA_PLUGINS)),
            "KONG_LUA_PACKAGE_PATH": f"{folder}/?.lua;;",
        }
        return _run([program, "config", "parse", str(path)], {**env, **settings}, "kong", file, str(path))


def _without_external(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: [_without_external(row) for row in inner if not _is_external(row)]
            if key == "plugins" and isinstance(inner, list)
            else _without_external(inner)
            for key, inner in value.items()
        }
    return [_without_external(each) for each in value] if isinstance(value, list) else value


def _is_external(row: object) -> bool:
    return isinstance(row, dict) and row.get("name") in EXTERNAL_PLUGINS


def _run(command: Sequence[str], env: Mapping[str, str], rule: str, file: str, path: str) -> list[Finding]:
    try:
        done = subprocess.run(
            command, env={**os.environ, **env}, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return [Finding(rule, Severity.WARNING, file, 1, f"{command[0]} could not be run: {error}")]
    if done.returncode == 0:
        return []
    said = _STYLED.sub("", f"{done.stdout}\n{done.stderr}").replace(path, file)
    lines = [line.strip() for line in said.splitlines()]
    told = " ".join(line for line in lines if line and not line.startswith(_CHATTER))
    return [Finding(rule, Severity.ERROR, file, 1, _AROUND.sub("", told) or f"{command[0]} failed")]

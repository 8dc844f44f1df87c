"""The plugin server's command line: dump, refusals to start, log file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from plugin_server_client import Worker
from plugin_server_probe import pack_script
from plugin_server_process import HERE, ServerProcess
from plugin_server_recordings import DATA

Start = Callable[..., ServerProcess]
GET = ["kong.request.get_method", []]


def run_command(*options: str, plugins: tuple[str, ...] = ("plugin_server_probe",)) -> subprocess.CompletedProcess[str]:
    modules = [option for plugin in plugins for option in ("--plugin", plugin)]
    return subprocess.run(
        [sys.executable, "-m", "kong_plugins.plugin_server", *modules, *options],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(HERE)},
        check=False,
    )


def test_the_dump_is_what_kong_reads() -> None:
    """The recorded dump of stock kong-pdk has the same shape: a list, names, phases, one config record."""
    (recorded,) = (
        json.loads(line)["json"]
        for line in (DATA / "01-start-and-config.jsonl").read_text().splitlines()
        if json.loads(line)["ev"] == "plugin_info_dump"
    )
    (info,) = json.loads(run_command("--dump", "-g", "--no-lua-style").stdout)
    del info["Schema"]["fields"][0]["config"]["fields"], recorded[0]["Schema"]["fields"][0]["config"]["fields"]
    assert info == recorded[0]


def test_the_dump_of_several_plugins_by_name() -> None:
    """Kong uses the first plugin of a dump only; protocols and entity checks are in Kong's own schema words."""
    both = ("plugin_server_probe", "plugin_server_open")
    assert [i["Name"] for i in json.loads(run_command("--dump", plugins=both).stdout)] == ["probe", "open-probe"]
    (info,) = json.loads(run_command("--dump", "open-probe", plugins=both).stdout)
    protocols, config = info["Schema"]["fields"]
    assert protocols == {
        "protocols": {
            "type": "set",
            "required": True,
            "default": ["http", "https"],
            "elements": {"type": "string", "one_of": ["http", "https"]},
        }
    }
    assert config["config"]["type"] == "record"
    assert info["Schema"]["entity_checks"] == [{"at_least_one_of": ["config.tag", "config.script"]}]
    missing = run_command("--dump", "other", plugins=both)
    assert (missing.returncode, missing.stdout) == (1, "")


@pytest.mark.parametrize(
    ("options", "plugins", "text"),
    [
        (("-p", "/nowhere"), ("plugin_server_probe",), "there is no directory /nowhere for the socket"),
        (("-p", "/tmp"), ("no_such_plugin",), "there is no module no_such_plugin"),
        (("-p", "/tmp"), ("json",), "json has no class Plugin"),
        (("-p", "/tmp"), ("plugin_server_probe", "plugin_server_probe"), "two plugins are named probe"),
        (("-p", "/tmp", "--socket-name", "s" * 120), ("plugin_server_probe",), "is too long"),
    ],
)
def test_a_start_that_cannot_work_says_why(options: tuple[str, ...], plugins: tuple[str, ...], text: str) -> None:
    result = run_command(*options, plugins=plugins)
    assert result.returncode == 1
    assert text in result.stderr


def test_the_log_file_has_what_stderr_has(start_server: Start, tmp_path: Path) -> None:
    """One line a record, with level; no frame or config value in it even when verbose."""
    file = tmp_path / "server.log"
    server = start_server("-v", "--log-file", str(file))
    client = Worker(server.path)
    instance = client.start(secret="sk-in-config", script=pack_script(access=[GET, ["!raise", ["two\nlines"]]]))
    client.run(instance, pdk=lambda *_: "sk-in-frame")
    server.stop()
    lines = file.read_text().splitlines()
    assert any("[error]" in line and "ValueError: two lines" in line for line in lines)
    assert all(" [" in line for line in lines)
    assert not any("sk-in" in line for line in [*lines, *server.lines])

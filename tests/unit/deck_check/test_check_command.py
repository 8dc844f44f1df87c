"""The command: formats, exit codes, what is installed beside it, and schemas for editors."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from kong_plugins.cli.main import app
from kong_plugins.cli.plugin_schemas import PLUGINS, generated

ROOT = Path(__file__).parents[3]
SHIPPED = ROOT / "kong" / "kong.yaml"
RETRIES = next(n for n, line in enumerate(SHIPPED.read_text().splitlines(), 1) if line == "    retries: 0")


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A PATH of our own."""
    monkeypatch.delenv("KONG_BIN", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    return tmp_path / "bin"


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "broken.yaml"
    path.write_text(SHIPPED.read_text().replace("    retries: 0", "    retries: 5").replace("key_in_query: false", ""))
    return path


def run(*arguments: str | Path) -> tuple[int, str]:
    outcome = CliRunner().invoke(app, ["check", *map(str, arguments)])
    return outcome.exit_code, outcome.output


@pytest.mark.usefixtures("nothing_installed")
def test_exit_codes_are_for_ci(broken: Path, tmp_path: Path) -> None:
    """0 right, 1 wrong, 2 no file; a warning is 1 only when asked for."""
    assert run(SHIPPED)[0] == 0
    status, text = run(SHIPPED, broken)
    assert status == 1
    assert f"{broken}:{RETRIES}: error: service deepseek-r1: set retries: 0" in text
    warned = tmp_path / "warned.yaml"
    warned.write_text(SHIPPED.read_text().replace("key_in_query: false", ""))
    assert (run(warned)[0], run("--strict", warned)[0]) == (0, 1)
    assert run(tmp_path / "none.yaml")[0] == 2
    assert run()[0] == 2


@pytest.mark.usefixtures("nothing_installed")
def test_findings_come_as_json_and_as_annotations(broken: Path) -> None:
    """With rule, file and line."""
    status, text = run("--format", "json", broken)
    told = json.loads(text)
    assert status == 1
    assert told["also_ran"] == []
    assert ("retries", "error", RETRIES) in {
        (each["rule"], each["severity"], each["line"]) for each in told["findings"]
    }
    _, text = run("--format", "github", broken)
    assert f"::error file={broken},line={RETRIES},title=retries::service deepseek-r1: set retries: 0" in text
    assert "::warning file=" in text


def program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_what_is_installed_runs_too(nothing_installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what it says as findings. Neither gets a tenant's key, Kong no row that it cannot read."""
    monkeypatch.setenv("DECK_TENANT_A_KEY", "sk-real")
    program(
        nothing_installed / "deck",
        'test "$1 $2" = "file validate" && echo "Error: schema: $DECK_TENANT_A_KEY" >&2; exit 1',
    )
    seen = nothing_installed / "seen"
    program(
        nothing_installed / "kong",
        f'while read -r line; do echo "$line"; done < "$3" > {seen}; echo "$KONG_PLUGINS"; exit 1',
    )
    status, text = run("--format", "json", SHIPPED)
    told = json.loads(text)
    assert status == 1
    assert told["also_ran"] == ["deck", "kong"]
    said = {each["rule"]: each["message"] for each in told["findings"]}
    assert said == {"deck": "Error: schema: value-of-DECK_TENANT_A_KEY", "kong": "bundled,usage-gate,usage-tap"}
    assert "name: usage-tap" in seen.read_text()
    assert "token-quota" not in seen.read_text()
    assert "sk-real" not in seen.read_text()
    assert run("--no-installed", SHIPPED)[0] == 0


@pytest.mark.skipif("KONG_BIN" not in os.environ, reason="no Kong: set KONG_BIN")
def test_a_real_kong_parses_what_it_is_given(broken: Path) -> None:
    """The shipped file passes; a field that it does not know does not."""
    status, text = run("--format", "json", SHIPPED)
    assert status == 0
    assert "kong" in json.loads(text)["also_ran"]
    broken.write_text(SHIPPED.read_text().replace("max_body_bytes", "max_body_byte"))
    _, text = run("--format", "json", broken)
    assert "unknown field" in {each["rule"]: each["message"] for each in json.loads(text)["findings"]}["kong"]


@pytest.mark.skipif(not shutil.which("deck"), reason="no deck on PATH")
def test_a_real_deck_validates_what_it_is_given(broken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped file passes, also with a number from the environment; of a field that it does not know, only that."""
    monkeypatch.setenv("DECK_LIMIT", "100000")
    broken.write_text(SHIPPED.read_text().replace("limit: 100000", 'limit: ${{ env "DECK_LIMIT" | toInt }}'))
    status, text = run("--format", "json", broken)
    assert status == 0, text
    assert "deck" in json.loads(text)["also_ran"]
    broken.write_text(SHIPPED.read_text().replace("paths: [/v1]", "pathes: [/v1]"))
    _, text = run("--format", "json", broken)
    said = {each["rule"]: each["message"] for each in json.loads(text)["findings"]}["deck"]
    assert said == "Error: validation error: services.0.routes.1: Additional property pathes is not allowed"


def test_rules_are_listed_with_their_reasons() -> None:
    """One a line."""
    status, text = run("--rules")
    assert status == 0
    assert any(line.split()[0] == "budget-never-admits" for line in text.splitlines())


def configs(name: str) -> list[Any]:
    """Every config of a plugin in the shipped file."""
    data = yaml.safe_load(SHIPPED.read_text().replace("${{", "'${{").replace("}}", "}}'"))
    owners = [*data["services"], *data["consumers"]]
    rows = [row for owner in owners for row in owner.get("plugins", ()) if row["name"] == name]
    assert rows
    return [row.get("config", {}) for row in rows]


@pytest.mark.parametrize("plugin", PLUGINS)
def test_an_editor_takes_what_the_plugin_takes(plugin: str) -> None:
    """The shipped configurations fit, an unknown field does not."""
    schema = json.loads(run("--schema", plugin)[1])
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for config in configs(plugin):
        assert list(validator.iter_errors(config)) == []
        assert list(validator.iter_errors({**config, "limmit": 1}))


@pytest.mark.parametrize(
    "config",
    [
        {"budgets": [{"name": "a b", "limit": 1}]},
        {"budgets": [{"limit": 1}]},
        {"budgets": [{"name": "a", "limit": -1}]},
        {"budgets": [{"name": "a", "limit": 1, "window": "year"}]},
        {"part_tokens": {"image_url": 0}},
        {"identity": "nobody"},
    ],
)
def test_an_editor_refuses_what_kong_refuses(config: dict[str, Any]) -> None:
    """Names, ranges, choices and what is required, within budgets too."""
    schema = json.loads(run("--schema", "token-quota")[1])
    assert list(jsonschema.Draft202012Validator(schema).iter_errors(config))


def test_what_is_generated_is_what_is_committed() -> None:
    """Fields of the Lua plugins and the schemas: `make docs` writes them."""
    for path, text in generated(ROOT).items():
        assert path.read_text() == text, f"{path.name}: run make docs"

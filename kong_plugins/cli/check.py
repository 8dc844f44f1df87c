"""`token-quota check`: decK files, before anybody loads them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from kong_plugins.adapters.deck_check import CheckConfig, Finding

EXIT_FOUND = 1
EXIT_USAGE = 2


class Format(StrEnum):
    TEXT = "text"
    JSON = "json"
    GITHUB = "github"


def check(
    files: Annotated[list[Path] | None, typer.Argument(help="decK files.", show_default=False)] = None,
    form: Annotated[
        Format, typer.Option("--format", "-f", help="github: annotations of a workflow run, at their lines.")
    ] = Format.TEXT,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 on warnings too.")] = False,
    installed: Annotated[
        bool, typer.Option(help="Run `deck file validate` and `kong config parse` too, where they are installed.")
    ] = True,
    list_rules: Annotated[bool, typer.Option("--rules", help="Print every rule with its reason.")] = False,
    schema: Annotated[
        str | None,
        typer.Option(help="Print the JSON Schema of a plugin's config, for an editor.", metavar="PLUGIN"),
    ] = None,
) -> None:
    """Check decK files: fields, plugins that need one another, budgets that admit nobody; no Kong is needed.

      token-quota check kong.yaml
      token-quota check --format github kong/*.yaml
      token-quota check --schema token-quota > token-quota.json

    Variables that are not set stand for themselves: a check needs no keys. Exits 0 when nothing is wrong, 1 on errors,
    2 when a file cannot be read.
    """
    from kong_plugins.adapters.deck_check import rules

    if list_rules:
        for name, why in sorted(rules().items()):
            typer.echo(f"{name:30} {why}")
        return
    if schema is not None:
        typer.echo(_schema(schema), nl=False)
        return
    if not files:
        _fail("name a decK file: token-quota check kong.yaml")
    findings: list[Finding] = []
    ran: set[str] = set()
    for path in files:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            _fail(f"cannot read {path}: {error}")
        findings += _check(text, str(path), ran, installed=installed)
    _tell(findings, form, len(files), ran)
    errors = [each for each in findings if strict or each.severity == "error"]
    raise typer.Exit(EXIT_FOUND if errors else 0)


def _check(text: str, file: str, ran: set[str], *, installed: bool) -> list[Finding]:
    from kong_plugins.adapters.deck_check import check_text
    from kong_plugins.adapters.deck_check.external import run_deck, run_kong
    from kong_plugins.cli.paths import source_root

    findings = check_text(text, file, plugin_checks(), os.environ)
    if installed and not any(each.rule == "not-readable" for each in findings):
        plugins = source_root() / "kong" / "plugins"
        for name, said in (
            ("deck", run_deck(text, file, os.environ)),
            ("kong", run_kong(text, file, os.environ, plugins)),
        ):
            if said is not None:
                ran.add(name)
                findings += said
    return findings


def plugin_checks() -> Mapping[str, CheckConfig]:
    """Our plugins' own checks of their configurations."""
    from kong_plugins.billing_events.schema import SCHEMA as BILLING
    from kong_plugins.cli.plugin_schemas import lua_fields

    fields = {name: lua_fields(name) for name in ("usage-gate", "usage-tap")} | {"billing-events": BILLING}
    return {"token-quota": _check_quota, **{name: _by_fields(known) for name, known in fields.items()}}


def _check_quota(config: Mapping[str, Any]) -> Any:
    """As the plugin server would, without its environment."""
    from kong_plugins.adapters.deck_check import Checked
    from kong_plugins.adapters.kong_schema import complete
    from kong_plugins.token_quota.config import LEDGER_URL_ENV, ConfigError, parse_config
    from kong_plugins.token_quota.schema import SCHEMA

    filled, errors = complete(SCHEMA, config, "config")
    if errors:
        return Checked(filled, None, [str(error) for error in errors])
    try:
        return Checked(filled, parse_config(config, {LEDGER_URL_ENV: "redis://localhost"}))
    except ConfigError as error:
        return Checked(filled, None, error.problems)


def _by_fields(fields: Sequence[Mapping[str, Mapping[str, object]]]) -> CheckConfig:
    from kong_plugins.adapters.deck_check import Checked
    from kong_plugins.adapters.kong_schema import complete

    def checked(config: Mapping[str, Any]) -> Checked:
        filled, errors = complete(fields, config, "config")
        return Checked(filled, None, [str(error) for error in errors])

    return checked


def _tell(findings: Sequence[Finding], form: Format, files: int, ran: set[str]) -> None:
    if form is Format.JSON:
        known = [
            {"rule": f.rule, "severity": f.severity, "file": f.file, "line": f.line, "message": f.message}
            for f in findings
        ]
        typer.echo(json.dumps({"findings": known, "also_ran": sorted(ran)}))
        return
    for each in findings:
        if form is Format.GITHUB:
            place = f"file={_property(each.file)},line={each.line},title={_property(each.rule)}"
            typer.echo(f"::{each.severity.value} {place}::{_data(each.message)}")
        else:
            typer.echo(f"{each.file}:{each.line}: {each.severity.value}: {each.message} [{each.rule}]")
    if form is Format.TEXT:
        errors = sum(1 for each in findings if each.severity == "error")
        also = f"; {' and '.join(sorted(ran))} ran too" if ran else ""
        typer.echo(f"{files} files: {errors} errors, {len(findings) - errors} warnings{also}", err=True)


def _data(text: str) -> str:
    """As GitHub's workflow commands want it."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _schema(plugin: str) -> str:
    from kong_plugins.cli.plugin_schemas import PLUGINS, schema_text

    if plugin not in PLUGINS:
        _fail(f"no schema of {plugin!r}: there are {', '.join(PLUGINS)}")
    return schema_text(plugin)


def _fail(message: str) -> NoReturn:
    typer.echo(f"token-quota check: {message}", err=True)
    raise typer.Exit(EXIT_USAGE)

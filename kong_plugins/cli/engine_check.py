"""`token-quota engine-check`: what an engine lacks for exact bills, and which flag mends it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from kong_plugins.adapters.engine_probe import Probe
from kong_plugins.application.engine_check import Grade, Verdict, verdicts
from kong_plugins.cli.processes import StackError

STYLES = {Grade.FINE: "green", Grade.WEAKER: "yellow", Grade.MISSING: "red"}
ENGINE_KEY = "TOKEN_QUOTA_ENGINE_KEY"  # the engine's own API key, if it wants one


def run(url: str, model: str | None, api_key: str | None, *, as_json: bool, strict: bool) -> int:
    """Check and show. Exit status: 0; 1 when something is missing (``strict``: or weaker); 2 for a bad address."""
    try:
        found = verdicts(Probe(url, api_key).observe(model))
    except ValueError as error:
        sys.stderr.write(f"token-quota engine-check: {error}\n")
        return 2
    if as_json:
        sys.stdout.write(json.dumps([asdict(verdict) for verdict in found], indent=1, ensure_ascii=False) + "\n")
    else:
        show(found, Console(highlight=False))
    refused = {Grade.MISSING, Grade.WEAKER} if strict else {Grade.MISSING}
    return 1 if any(verdict.grade in refused for verdict in found) else 0


def show(found: tuple[Verdict, ...], console: Console) -> None:
    """A line for each check; under those that are not fine, what it means and what to do."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for verdict in found:
        table.add_row(verdict.check, f"[{STYLES[verdict.grade]}]{verdict.grade}[/]", plain(verdict.seen))
        for label, text in (("means", verdict.means), ("fix", verdict.fix)):
            if text:
                table.add_row("", label, plain(text))
    console.print(table)


def plain(text: str) -> str:
    """Text that holds no markup of ours."""
    return text.replace("[", r"\[")


def check_at_start(url: str, api_key: str | None, say: Callable[[str], None]) -> None:
    """For `up`: what is weaker is said, what is missing ends the start.

    Raises:
        StackError: the engine cannot be billed exactly; with every reason and its fix.
    """
    found = verdicts(Probe(url, api_key).observe())
    for verdict in found:
        if verdict.grade is Grade.WEAKER:
            say(f"engine      {verdict.check}: {verdict.seen}: {verdict.means}. {verdict.fix}".rstrip(". ") + ".")
    missing = [verdict for verdict in found if verdict.grade is Grade.MISSING]
    if missing:
        reasons = "\n".join(f"  {one.check}: {one.seen}\n    so {one.means}\n    fix: {one.fix}" for one in missing)
        raise StackError(f"{url} cannot be billed exactly (--no-engine-check starts all the same):\n{reasons}")

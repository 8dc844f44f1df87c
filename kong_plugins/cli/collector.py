"""`token-quota collector …`: move billing events from the ledger's outbox into sinks, and see how far they are."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from typer.core import TyperGroup

from kong_plugins.adapters.outbox import Outbox, SinkStatus, connect_outbox
from kong_plugins.application.ports import LedgerUnavailable
from kong_plugins.cli.quota import JsonOption, LedgerOption
from kong_plugins.cli.stack import STATE_FILE, default_data_dir

COMMANDS = ("run", "drain", "status", "dead", "forget")
_UNITS_S = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class _RunByDefault(TyperGroup):
    """`token-quota collector --sink …` is `token-quota collector run --sink …`."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["run", *args]
        return list(super().parse_args(ctx, args))


app = typer.Typer(
    cls=_RunByDefault,
    help="Move billing events from the outbox into the books. Without a command: run.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
dead = typer.Typer(help="Events that a sink refused: see them with the reason, try them again, drop them.")
app.add_typer(dead, name="dead", no_args_is_help=True)

SinkOption = Annotated[
    list[str] | None,
    typer.Option(
        "--sink",
        help="Where events go; repeat for several, each with a position of its own: duckdb:///path/books.duckdb,"
        " jsonl:///directory, clickhouse://user@host:8123/database, kafka://host:9092/topic,"
        " cloudevents+http://host/path. ?name=… names its position, which is else the URL's host and path.",
        show_default="duckdb://…/token-quota/books.duckdb",
    ),
]
BatchOption = Annotated[int, typer.Option(min=1, max=100_000, help="Events written at once, and held in memory.")]
LingerOption = Annotated[
    int, typer.Option(min=1, max=60_000, help="Wait so long after a batch that was not full, for a fuller one.")
]
KeepOption = Annotated[
    str, typer.Option(help="Keep events in the outbox so long after every sink has them: 0s, 90m, 48h, 7d.")
]
SinkArgument = Annotated[str, typer.Argument(metavar="SINK", help="A sink's name, as `status` shows it.")]
DeadSinkOption = Annotated[str | None, typer.Option("--sink", help="Only this sink's, by its name.")]
IdsArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[ID]...", help="Event ids or dead letters' positions, as listed.")
]
AllOption = Annotated[bool, typer.Option("--all", help="All of them (of --sink, where given).")]


def fail(message: str) -> NoReturn:
    typer.echo(f"token-quota collector: {message}", err=True)
    raise typer.Exit(1)


def ledger_url(given: str | None) -> str:
    """The ledger's URL: as given, or that of a running `token-quota up`."""
    if given:
        return given
    try:
        found: str = json.loads((default_data_dir() / STATE_FILE).read_text())["ledger_url"]
    except (OSError, ValueError, KeyError):
        fail("no ledger given: use --ledger URL or TOKEN_QUOTA_LEDGER_URL, or start one with `token-quota up`")
    return found


@contextmanager
def _outbox(given: str | None) -> Iterator[Outbox]:
    try:
        outbox = connect_outbox(ledger_url(given))
        yield outbox
        outbox.close()
    except ValueError as error:
        fail(str(error))
    except LedgerUnavailable as error:
        fail(f"the ledger does not answer: {error}; is it running, and is --ledger right?")


@app.command()
def run(
    sink: SinkOption = None,
    ledger: LedgerOption = None,
    listen: Annotated[
        str, typer.Option(help="Where POST /log and /events, /metrics, /healthz and /readyz are; `off`: nowhere.")
    ] = "127.0.0.1:3000",
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="Tokens for POST, one a line; any of them will do. Without one nothing can be posted.",
            show_default="TOKEN_QUOTA_COLLECTOR_TOKEN",
        ),
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            help="An engine's root (http://host:8000) whose counters to keep for `reconcile`; repeat for more."
        ),
    ] = None,
    batch: BatchOption = 5000,
    linger_ms: LingerOption = 200,
    keep: KeepOption = "0s",
) -> None:
    """Deliver until stopped (Ctrl-C or SIGTERM: what was begun is finished first).

    Run as many as you like: they share the work, and take over from one that dies. An event is acknowledged only after
    the sink has it; what a sink refuses goes to the dead letters. While a sink is away its events wait in the outbox.

      token-quota collector
      token-quota collector --sink jsonl:///var/lib/billing --sink kafka://broker:9092/billing
      token-quota collector --listen 0.0.0.0:3000 --token-file /run/secrets/collector

    Kong's http-log posts to /log: config.http_endpoint http://collector:3000/log, config.headers.Authorization
    "Bearer TOKEN".
    """
    from kong_plugins.cli.collector_run import RunOptions, run_collector

    options = RunOptions(
        ledger_url=ledger_url(ledger),
        sinks=tuple(sink or (_default_sink(),)),
        listen=None if listen == "off" else listen,
        token_file=token_file,
        engines=tuple(engine or ()),
        batch=batch,
        linger_s=linger_ms / 1000,
        keep_s=_seconds(keep),
    )
    raise typer.Exit(run_collector(options))


@app.command()
def drain(
    sink: SinkOption = None,
    ledger: LedgerOption = None,
    batch: BatchOption = 5000,
    keep: KeepOption = "0s",
    timeout: Annotated[str, typer.Option(help="Give up after so long: 30s, 5m.")] = "5m",
) -> None:
    """Deliver what is in the outbox, then exit: 0 when every given sink has all of it, 1 when not. For cron and CI.

    token-quota collector drain --sink duckdb:///var/lib/token-quota/books.duckdb
    """
    from kong_plugins.cli.collector_run import RunOptions, run_collector

    options = RunOptions(
        ledger_url=ledger_url(ledger),
        sinks=tuple(sink or (_default_sink(),)),
        listen=None,
        batch=batch,
        linger_s=0.05,
        keep_s=_seconds(keep),
        drain_within_s=_seconds(timeout),
    )
    raise typer.Exit(run_collector(options))


@app.command()
def status(ledger: LedgerOption = None, as_json: JsonOption = False) -> None:
    """How far every sink is, from the ledger: also when no collector runs."""
    from kong_plugins.collector.terminal import table

    with _outbox(ledger) as outbox:
        found = outbox.status()
    if as_json:
        typer.echo(json.dumps([_as_json(each) for each in found]))
    elif found:
        Console().print(table(found))
    else:
        typer.echo("no sink has a position yet: start one with `token-quota collector --sink …`")


@app.command()
def forget(
    sink: SinkArgument,
    ledger: LedgerOption = None,
    force: Annotated[bool, typer.Option(help="Also while a collector works for it.")] = False,
) -> None:
    """Wait for a sink no more: its position is gone, and what only it had not had may be trimmed.

    Events that it lacks and others have cannot be had from the outbox again. Its dead letters stay.
    """
    with _outbox(ledger) as outbox:
        found = {each.sink: each for each in outbox.status()}
        if sink not in found:
            fail(f"no sink is named {sink!r}; there are: {', '.join(found) or 'none'}")
        if found[sink].attended and not force:
            fail(f"a collector works for {sink}: stop it first, or say --force (it would begin with what is left)")
        outbox.forget(sink)
    typer.echo(f"forgot {sink}, which lacked {found[sink].behind:,} events")


@dead.command("list")
def dead_list(sink: DeadSinkOption = None, ledger: LedgerOption = None, as_json: JsonOption = False) -> None:
    """Every dead letter: position, sink, event id and reason. With --json the event too, one letter a line."""
    count = 0
    with _outbox(ledger) as outbox:
        for letter in outbox.dead_letters(sink):
            count += 1
            if as_json:
                about = {"position": letter.position, "sink": letter.sink, "id": letter.entry.event_id}
                event = letter.entry.event.decode("utf-8", "replace")
                typer.echo(json.dumps({**about, "reason": letter.reason, "event": event}))
            else:
                typer.echo(f"{letter.position}  {letter.sink}  {letter.entry.event_id}  {letter.reason}")
    if not count and not as_json:
        typer.echo("no dead letters")


@dead.command("retry")
def dead_retry(
    ids: IdsArgument = None, every: AllOption = False, sink: DeadSinkOption = None, ledger: LedgerOption = None
) -> None:
    """Put dead letters back at the outbox's end. Every sink gets them again; one that has them knows them by id."""
    with _outbox(ledger) as outbox:
        done = outbox.retry(_chosen(outbox, ids, every, sink))
    typer.echo(f"{done:,} back in the outbox")


@dead.command("drop")
def dead_drop(
    ids: IdsArgument = None, every: AllOption = False, sink: DeadSinkOption = None, ledger: LedgerOption = None
) -> None:
    """Remove dead letters for good: their sink never has these events. `dead list --json` keeps them for you."""
    with _outbox(ledger) as outbox:
        done = outbox.drop(_chosen(outbox, ids, every, sink))
    typer.echo(f"{done:,} dropped")


def _chosen(outbox: Outbox, ids: list[str] | None, every: bool, sink: str | None) -> list[str]:
    if every == bool(ids):
        fail("name event ids or positions, as `dead list` shows them, or say --all")
    wanted = set(ids or ())
    letters = [
        letter
        for letter in outbox.dead_letters(sink)
        if every or letter.entry.event_id in wanted or letter.position in wanted
    ]
    missing = wanted - {letter.entry.event_id for letter in letters} - {letter.position for letter in letters}
    if missing:
        fail(f"no dead letter is {', '.join(sorted(missing))}: see `token-quota collector dead list`")
    return [letter.position for letter in letters]


def _as_json(each: SinkStatus) -> dict[str, object]:
    return {**asdict(each), "behind": each.behind, "attended": each.attended}


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text.strip())
    if found is None:
        fail(f"a time is a number and s, m, h or d (90s, 48h), not {text!r}")
    return float(found[1]) * _UNITS_S[found[2]]


def _default_sink() -> str:
    folder = default_data_dir()
    os.makedirs(folder, exist_ok=True)
    return f"duckdb://{folder}/books.duckdb"

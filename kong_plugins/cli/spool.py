"""`token-quota spool …`: what waits on this machine's disk for the ledger, and posting it by hand."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from kong_plugins.application.ports import LedgerUnavailable, SpoolUnavailable
from kong_plugins.cli.quota import LedgerOption

app = typer.Typer(
    help="Settlements that wait for the ledger: what plugin servers could not post, in their spool directory.",
    no_args_is_help=True,
)

DirectoryOption = Annotated[
    Path | None,
    typer.Option(
        "--dir",
        envvar="TOKEN_QUOTA_SPOOL_DIR",
        help="The plugin servers' spool directory: TOKEN_QUOTA_SPOOL_DIR, or token-quota-spool in Kong's prefix.",
        show_default="that of a running `token-quota up`, else $KONG_PREFIX/token-quota-spool",
    ),
]
ASIDE_SHOWN = 100


def _directory(given: Path | None) -> Path:
    """As given, by the environment, or that of a running `token-quota up`. What is not there is no empty spool."""
    from kong_plugins.adapters.spool import KONG_PREFIX_ENV, spool_directory
    from kong_plugins.cli.stack import STATE_FILE, default_data_dir

    running = KONG_PREFIX_ENV not in os.environ and (default_data_dir() / STATE_FILE).exists()
    directory = given or (default_data_dir() / "spool" if running else spool_directory())
    if not directory.is_dir():
        _fail(f"no spool in {directory}: give the plugin servers' with --dir or TOKEN_QUOTA_SPOOL_DIR")
    return directory


def _ledger(given: str | None) -> str:
    from kong_plugins.cli.stack import STATE_FILE, default_data_dir

    if given:
        return given
    try:
        found: str = json.loads((default_data_dir() / STATE_FILE).read_text())["ledger_url"]
    except (OSError, ValueError, KeyError):
        _fail("no ledger given: use --ledger URL or TOKEN_QUOTA_LEDGER_URL, or start one with `token-quota up`")
    return found


def _files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*-*.db"))


def _fail(message: str) -> NoReturn:
    typer.echo(f"token-quota spool: {message}", err=True)
    raise typer.Exit(1)


def _look(path: Path) -> dict[str, Any]:
    """One file, also one that a server is using."""
    from kong_plugins.adapters.spool_file import sums_of

    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
        sums = sums_of(database)
        (oldest_ms,) = database.execute("SELECT min(at_ms) FROM postings").fetchone()
        aside = database.execute(
            "SELECT id, failures, reason FROM postings WHERE due_ms IS NULL ORDER BY seq LIMIT ?", (ASIDE_SHOWN,)
        ).fetchall()
        return {
            "file": str(path),
            "ledger": database.execute("SELECT ledger FROM about").fetchone()[0],
            "waiting": sums.waiting,
            "deferred": sums.deferred,
            "set_aside": sums.aside,
            "bytes": sums.size,
            "oldest_s": None if oldest_ms is None else max(0, round(time.time() - oldest_ms / 1000)),
            "set_aside_postings": [dict(zip(("id", "failures", "reason"), row, strict=True)) for row in aside],
        }


@app.command()
def show(
    directory: DirectoryOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """How many postings wait, for which ledger, since when; and those set aside, with the reason."""
    found = []
    for path in _files(_directory(directory)):
        try:
            found.append(_look(path))
        except sqlite3.Error as error:
            _fail(f"{path} cannot be read: {error}")
    if as_json:
        typer.echo(json.dumps(found))
        return
    if not any(each["waiting"] + each["deferred"] + each["set_aside"] for each in found):
        typer.echo("nothing waits")
    for each in found:
        if each["oldest_s"] is None:
            continue
        typer.echo(
            f"{each['ledger']}: {each['waiting']} waiting, {each['deferred']} deferred, {each['set_aside']} set aside,"
            f" {each['bytes']:,} bytes, oldest {each['oldest_s']} s ({each['file']})"
        )
        for posting in each["set_aside_postings"]:
            typer.echo(f"  {posting['id']} set aside after {posting['failures']} times: {posting['reason']}")


@app.command()
def replay(
    ledger: LedgerOption = None,
    directory: DirectoryOption = None,
    any_ledger: Annotated[
        bool, typer.Option(help="Also what was meant for another address: the ledger has moved.")
    ] = False,
    seconds: Annotated[float, typer.Option(min=1, help="Give up after so long.")] = 60.0,
) -> None:
    """Post what ended servers left, also what was set aside. What a running server has it replays by itself.

    Exits 1 when something is left.
    """
    from kong_plugins.adapters.background import GreenletQueue
    from kong_plugins.adapters.ledger import connect_ledger
    from kong_plugins.adapters.spool import DurableSpool, ledger_address
    from kong_plugins.adapters.spool_file import SpoolFile, SpoolFileError
    from kong_plugins.application.posting import Poster

    url, spools = _ledger(ledger), _directory(directory)
    addresses = {ledger_address(url)}
    for path in _files(spools):
        try:
            address = _look(path)["ledger"]
            if any_ledger or address in addresses:
                file = SpoolFile(path, address)
                file.retry_all()
                file.close()
                addresses.add(address)
        except BlockingIOError:
            typer.echo(f"{path} is a running server's: left to it (what it set aside: after its restart)", err=True)
        except (SpoolFileError, sqlite3.Error) as error:
            _fail(str(error))
    left = posted = 0
    try:
        connected = connect_ledger(url)
        for address in sorted(addresses):
            spool, queue = DurableSpool(spools, address), GreenletQueue("replay", capacity=1)
            poster = Poster(connected, spool, queue)
            poster.resume()
            queue.join(seconds)
            queue.close()
            posted, left = posted + poster.counts.replayed, left + spool.depth + spool.sums.aside
            spool.close()
    except (ValueError, LedgerUnavailable, SpoolUnavailable) as error:
        _fail(str(error))
    typer.echo(f"{posted} posted, {left} left")
    if left:
        raise typer.Exit(1)

"""`token-quota spool …`: what waits on this machine's disk for the ledger, and posting it by hand."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from kong_plugins.application.ports import LedgerUnavailable, SpoolUnavailable

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
        show_default="$KONG_PREFIX/token-quota-spool",
    ),
]
ASIDE_SHOWN = 100


def _files(directory: Path | None) -> list[Path]:
    from kong_plugins.adapters.spool import spool_directory

    return sorted((directory or spool_directory()).glob("*-*.db"))


def _fail(message: str) -> Any:
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
    for path in _files(directory):
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
    ledger: Annotated[
        str, typer.Option("--ledger", envvar="TOKEN_QUOTA_LEDGER_URL", help="The ledger's URL, as the plugins have it.")
    ],
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
    from kong_plugins.adapters.spool import DurableSpool, ledger_address, spool_directory
    from kong_plugins.adapters.spool_file import SpoolFile, SpoolFileError
    from kong_plugins.application.posting import Poster

    addresses = {ledger_address(ledger)}
    for path in _files(directory):
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
        connected = connect_ledger(ledger)
        for address in sorted(addresses):
            spool, queue = DurableSpool(directory or spool_directory(), address), GreenletQueue("replay", capacity=1)
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

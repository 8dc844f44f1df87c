"""`token-quota quota …`: see a tenant's budgets, grant tokens, start a window over; watch all of it live."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from kong_plugins.adapters.ledger import connect_ledger
from kong_plugins.application.ports import Balance, Grant, Ledger, LedgerUnavailable
from kong_plugins.cli.stack import STATE_FILE, default_data_dir
from kong_plugins.domain.budgets import TOTAL, Mode
from kong_plugins.domain.holds import Line, LineState
from kong_plugins.domain.windows import parse_description

app = typer.Typer(help="See, grant and reset tenants' budgets.", no_args_is_help=True)

LedgerOption = Annotated[
    str | None,
    typer.Option(
        "--ledger",
        envvar="TOKEN_QUOTA_LEDGER_URL",
        help="The ledger's URL, as the plugins have it.",
        show_default="that of a running `token-quota up`",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
BudgetOption = Annotated[
    str | None, typer.Option(help="Counter key as `quota show` prints it; needed only where a tenant has several.")
]
ReasonOption = Annotated[str, typer.Option(help="Kept with the posting.")]
IdOption = Annotated[str | None, typer.Option("--id", help="Repeating a command with the same id changes nothing.")]
REFRESH_S = 0.5
GRANTS_KEPT = 1000  # as many as the ledger keeps for a tenant


@contextmanager
def _ledger(url: str | None) -> Iterator[Ledger]:
    """Connect; end with a message instead of a traceback when the ledger is away."""
    url = url or _running_ledger()
    try:
        yield connect_ledger(url)
    except ValueError as error:
        _fail(str(error))
    except LedgerUnavailable as error:
        _fail(f"the ledger at {url} does not answer: {error}; is it running, and is --ledger right?")


def _running_ledger() -> str:
    state = default_data_dir() / STATE_FILE
    try:
        url: str = json.loads(state.read_text())["ledger_url"]
    except (OSError, ValueError, KeyError):
        _fail("no ledger given: use --ledger URL or TOKEN_QUOTA_LEDGER_URL, or start one with `token-quota up`")
    return url


def _fail(message: str) -> Any:
    typer.echo(f"token-quota quota: {message}", err=True)
    raise typer.Exit(1)


def _row(balance: Balance) -> dict[str, Any]:
    state = balance.state
    return {
        "tenant": balance.tenant,
        "budget": state.key,
        "window": balance.window,
        "mode": balance.mode,
        "limit": state.limit,
        "committed": state.committed,
        "held": state.held,
        "remaining": state.remaining,
        "resets_at": datetime.fromtimestamp(state.reset_us / 1e6, UTC).isoformat(timespec="seconds"),
    }


def _until(seconds: float) -> str:
    """Time left in a table: ``3d 4h``, ``5h 12m``, ``42s``."""
    left = max(0, int(seconds))
    days, hours, minutes = left // 86400, left // 3600 % 24, left // 60 % 60
    if days:
        return f"{days}d {hours}h"
    return f"{hours}h {minutes}m" if hours else f"{minutes}m {left % 60}s" if minutes else f"{left}s"


def _short(window: str) -> str:
    """A window's words in a table: ``day Berlin`` for ``fixed day Europe/Berlin 1``."""
    match window.split(" "):
        case ["fixed", unit, time_zone, anchor]:
            return f"{unit} {time_zone.rsplit('/', 1)[-1]}{'' if anchor == '1' else ' from ' + anchor}"
        case _:
            return f"{window} s"


def _name(name: str) -> Text:
    """No markup, and no control characters for the terminal: a client may have chosen it."""
    return Text("".join(char if char.isprintable() else "�" for char in name))


def table(balances: list[Balance]) -> Table:
    """Budgets as a person reads them."""
    view = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for name in ("tenant", "budget", "window"):
        view.add_column(name, no_wrap=True)
    for name in ("limit", "committed", "held", "remaining"):
        view.add_column(name, justify="right", no_wrap=True)
    view.add_column("resets in", no_wrap=True)
    now_s = time.time()
    for balance in balances:
        row = _row(balance)
        share = balance.state.remaining / balance.state.limit if balance.state.limit else 0.0
        colour = "red" if share < 0.1 else "yellow" if share < 0.5 else "green"
        view.add_row(
            _name(balance.tenant),
            _name(row["budget"]),
            f"{_short(row['window'])}{'' if row['mode'] == 'hard' else ' (' + row['mode'] + ')'}",
            f"{row['limit']:,}",
            f"{row['committed']:,}",
            f"{row['held']:,}",
            f"[{colour}]{row['remaining']:,}[/{colour}]",
            _until(balance.state.reset_us / 1e6 - now_s),
        )
    return view


@app.command()
def show(
    tenant: Annotated[str, typer.Argument(help="Tenant, e.g. a Kong consumer's username.")],
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """A tenant's budgets: what is committed, held and left, and its latest grants."""
    with _ledger(ledger) as connected:
        balances, grants = connected.balances(tenant), connected.grants(tenant)
    if as_json:
        made = [
            {
                "id": grant.grant_id,
                "budget": grant.line,
                "amount": grant.amount,
                "reason": grant.reason,
                "at_us": grant.at_us,
            }
            for grant in grants
        ]
        typer.echo(json.dumps({"tenant": tenant, "budgets": [_row(balance) for balance in balances], "grants": made}))
        return
    if not balances:
        _fail(f"{tenant} has used nothing in any window that is still open (a tenant appears with its first request)")
    console = Console()
    console.print(table(list(balances)))
    for grant in grants[:5]:
        when = datetime.fromtimestamp(grant.at_us / 1e6, UTC)
        console.print(
            f"grant {grant.amount:+,} on {grant.line} at {when:%Y-%m-%d %H:%M:%S}: {grant.reason}", markup=False
        )


def _pick(connected: Ledger, tenant: str, budget: str | None) -> Line:
    """The counter to post to, as a line."""
    balances = connected.balances(tenant)
    if not balances:
        _fail(f"{tenant} has no open window: a grant is posted to one, and it opens with the tenant's first request")
    if budget is None and len(balances) > 1:
        _fail(f"{tenant} has several budgets, name one with --budget: {', '.join(one.state.key for one in balances)}")
    found = [one for one in balances if budget in (None, one.state.key)]
    if not found:
        _fail(f"{tenant} has no budget {budget!r}; it has: {', '.join(one.state.key for one in balances)}")
    chosen = found[0]
    window = parse_description(chosen.window)
    return Line(chosen.state.key, window, TOTAL, chosen.state.limit, 0, Mode(chosen.mode))


def _made_before(connected: Ledger, tenant: str, grant_id: str | None) -> Grant | None:
    """The posting that an id is of, among the tenant's kept ones."""
    if grant_id is None:
        return None
    return next((grant for grant in connected.grants(tenant, GRANTS_KEPT) if grant.grant_id == grant_id), None)


def _posted(tenant: str, state: LineState, what: str, as_json: bool) -> None:
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "tenant": tenant,
                    "budget": state.key,
                    "limit": state.limit,
                    "committed": state.committed,
                    "held": state.held,
                    "remaining": state.remaining,
                }
            )
        )
        return
    typer.echo(f"{what}: {tenant} {state.key} has {state.remaining:,} of {state.limit:,} left")


@app.command(context_settings={"ignore_unknown_options": True})
def grant(
    tenant: str,
    amount: Annotated[int, typer.Argument(help="In the budget's unit; a negative amount takes away.")],
    reason: ReasonOption,
    budget: BudgetOption = None,
    grant_id: IdOption = None,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a tenant more in its current window: a posting with a reason, not an edit.

    token-quota quota grant tenant_a 50000 --reason "incident of Tuesday"
    """
    with _ledger(ledger) as connected:
        line = _pick(connected, tenant, budget)
        made = _made_before(connected, tenant, grant_id)
        if made is not None and (made.line, made.amount) != (line.key, amount):
            _fail(f"--id {grant_id} is of another grant ({made.amount:+,} on {made.line}): choose another id")
        state = connected.grant(tenant, line, amount, reason, grant_id or uuid.uuid4().hex)
    done = f"granted {amount:+,}" if made is None else f"granted {amount:+,} before (id {grant_id}), nothing changed"
    _posted(tenant, state, done, as_json)


@app.command()
def reset(
    tenant: str,
    reason: ReasonOption,
    budget: BudgetOption = None,
    grant_id: IdOption = None,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Start the current window over: the whole limit is free again, earlier grants are gone too. Open holds stay."""
    with _ledger(ledger) as connected:
        line = _pick(connected, tenant, budget)
        made = _made_before(connected, tenant, grant_id)
        state = connected.reset(tenant, line, reason, grant_id or uuid.uuid4().hex)
    _posted(tenant, state, "reset" if made is None else f"reset before (id {grant_id}), nothing changed", as_json)


@app.command()
def top(
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
    once: Annotated[bool, typer.Option(help="Print once instead of live.")] = False,
) -> None:
    """Every tenant's budgets, live. With --json: one line a refresh."""
    with _ledger(ledger) as connected:

        def read() -> list[Balance]:
            every = [balance for tenant in connected.tenants() for balance in connected.balances(tenant)]
            return sorted(every, key=lambda one: (-(one.state.committed + one.state.held), one.tenant, one.state.key))

        if as_json:
            while True:
                typer.echo(json.dumps({"at": time.time(), "budgets": [_row(balance) for balance in read()]}))
                if once:
                    return
                time.sleep(REFRESH_S)
        if once:
            Console().print(table(read()))
            return
        try:
            with Live(table(read()), refresh_per_second=4, screen=False) as live:
                while True:
                    time.sleep(REFRESH_S)
                    live.update(table(read()))
        except KeyboardInterrupt:
            return

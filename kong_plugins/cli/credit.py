"""`token-quota credit`: money in a tenant's favour, as an event with a reason; no charge is ever edited."""

from __future__ import annotations

import json
import socket
import time
import uuid
from typing import Annotated, NoReturn
from urllib.parse import quote

import typer

from kong_plugins.adapters.ledger import connect_ledger
from kong_plugins.application.ports import LedgerUnavailable
from kong_plugins.cli.quota import JsonOption, LedgerOption
from kong_plugins.cli.stack import STATE_FILE, default_data_dir
from kong_plugins.domain.budgets import check_units
from kong_plugins.domain.events import AdjustmentKind, adjustment_event, adjustment_id
from kong_plugins.domain.money import check_currency, format_micro, parse_micro

_ACCOUNTS = {
    AdjustmentKind.CREDIT: "goodwill",
    AdjustmentKind.REFUND: "refunds",
    AdjustmentKind.CORRECTION: "corrections",
}


def credit(
    tenant: Annotated[str, typer.Argument(help="Tenant, e.g. a Kong consumer's username.")],
    amount: Annotated[str, typer.Argument(help="Decimal, at most 6 decimals; a correction may be negative.")],
    currency: Annotated[str, typer.Option(help="ISO 4217 code, e.g. EUR.")],
    reason: Annotated[str, typer.Option(help="Kept with it, and shown in the tenant's report.")],
    kind: Annotated[
        AdjustmentKind, typer.Option(help="credit: given. refund: given back. correction: of an error, either way.")
    ] = AdjustmentKind.CREDIT,
    reference: Annotated[
        str | None, typer.Option(help="Id of the event that it is about, e.g. the request refunded in part.")
    ] = None,
    account: Annotated[
        str | None,
        typer.Option(help="Contra account that bears it.", show_default="goodwill, refunds or corrections, by kind"),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--id",
            help="Of a tenant's adjustments the first with an id counts: a repeated command changes nothing.",
            show_default="a new one",
        ),
    ] = None,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a credit, refund or correction into the tenant's books: an event like a request's, once for each --id.

      token-quota credit tenant_a 12.50 --currency EUR --reason "incident of Tuesday"
      token-quota credit tenant_a 0.021 --currency EUR --kind refund --reference 9f2c… --reason "answer cut short"

    Budgets stay as they are: `token-quota quota grant` gives tokens.
    """
    try:
        micro = _checked(amount, kind)
        check_currency(currency)
        for what, text in (("tenant", tenant), ("--reason", reason), ("--account", account), ("--id", name)):
            if text is not None and not text.strip():
                raise ValueError(f"{what} is empty")
    except ValueError as error:
        _fail(str(error))
    name = name or uuid.uuid4().hex
    # With its tenant in it: a sink knows an event by its id alone, and "november" is given to many tenants.
    event_id = adjustment_id(f"{quote(tenant, safe='', errors='surrogateescape')}/{name}")
    event = adjustment_event(
        event_id=event_id,
        source=f"token-quota-cli/{socket.gethostname()}",
        time_ms=time.time_ns() // 1_000_000,
        tenant=tenant,
        kind=kind,
        amount=micro,
        currency=currency,
        account=account or _ACCOUNTS[kind],
        reason=reason,
        reference=reference,
    )
    url = ledger or _running_ledger()
    try:
        written = connect_ledger(url).record(tenant, event_id, event)
    except ValueError as error:
        _fail(str(error))
    except LedgerUnavailable as error:
        again = f"; try again with --id {name}: it counts once, whatever became of this try"
        _fail(f"the ledger at {url} does not answer: {error}{again}")
    if as_json:
        typer.echo(json.dumps({"id": event_id, "written": written, "amount_micro": micro, "currency": currency}))
        return
    what = f"{kind} of {format_micro(micro, currency)} {currency} to {tenant}, id {name}"
    typer.echo(what if written else f"{what}: this id was used before, nothing changed")


def _checked(amount: str, kind: AdjustmentKind) -> int:
    micro = parse_micro(amount)
    check_units("an amount", abs(micro))
    if micro == 0:
        raise ValueError("the amount is zero")
    if micro < 0 and kind is not AdjustmentKind.CORRECTION:
        raise ValueError(f"a {kind} is positive; what a tenant owes more is a correction: --kind correction")
    return micro


def _running_ledger() -> str:
    try:
        url: str = json.loads((default_data_dir() / STATE_FILE).read_text())["ledger_url"]
    except (OSError, ValueError, KeyError):
        _fail("no ledger given: use --ledger URL or TOKEN_QUOTA_LEDGER_URL, or start one with `token-quota up`")
    return url


def _fail(message: str) -> NoReturn:
    typer.echo(f"token-quota credit: {message}", err=True)
    raise typer.Exit(1)

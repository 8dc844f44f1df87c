"""Commands and options; each command's work is in a module of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kong_plugins.cli import check, collector, credit, quota, reconcile, report, salt, spool
from kong_plugins.cli.stack import Gateway, StackOptions, default_config, default_data_dir

app = typer.Typer(
    name="token-quota",
    help="Token budgets and exact bills for LLM tenants behind Kong.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(quota.app, name="quota")
app.add_typer(spool.app, name="spool")
app.add_typer(collector.app, name="collector")
app.add_typer(report.app, name="report")
app.command()(reconcile.reconcile)
app.command()(check.check)
app.command()(salt.salt)
# A negative amount is no option.
app.command(context_settings={"ignore_unknown_options": True})(credit.credit)


@app.command()
def up(
    gateway: Annotated[
        Gateway,
        typer.Option(help="auto: a native Kong where `kong` is on PATH (or KONG_BIN is set), else the local stand-in."),
    ] = Gateway.AUTO,
    upstream: Annotated[
        str,
        typer.Option(
            help="sim (stand-in engine), vllm-cpu (real vLLM on the CPU), or an engine's URL: http://host:8000/v1."
        ),
    ] = "sim",
    config: Annotated[Path | None, typer.Option(help="decK file.", show_default="kong/kong.yaml")] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The gateway's port on 127.0.0.1; 0: any free one.")
    ] = 8000,
    data_dir: Annotated[
        Path | None, typer.Option(help="Ledger files and logs.", show_default="~/.local/state/token-quota")
    ] = None,
    ledger: Annotated[
        str | None,
        typer.Option(
            envvar="TOKEN_QUOTA_LEDGER_URL",
            help="redis://, rediss://, unix://, redis+sentinel://, redis+cluster://; without: an embedded Valkey.",
        ),
    ] = None,
    engine_arg: Annotated[
        list[str] | None,
        typer.Option(help="Passed on to the engine; repeat for more: --engine-arg=--answer --engine-arg=varied."),
    ] = None,
    books: Annotated[
        bool, typer.Option(help="Run the collector too: bills in DATA_DIR/books.duckdb, for `token-quota report`.")
    ] = True,
    engine_check: Annotated[
        bool, typer.Option(help="For an engine's URL: first see whether it can be billed exactly (`engine-check`).")
    ] = True,
) -> None:
    """Start ledger, plugin servers, gateway and engine; run until interrupted (Ctrl-C).

    Tenants' keys come from DECK_… variables; missing ones are made up for this run and shown.

      token-quota up
      token-quota up --gateway kong --upstream http://127.0.0.1:9000/v1
    """
    from kong_plugins.cli.up import run

    options = StackOptions(
        config=config or default_config(),
        gateway=gateway,
        upstream=upstream,
        port=port,
        data_dir=data_dir or default_data_dir(),
        ledger_url=ledger,
        engine_args=tuple(engine_arg or ()),
        check_engine=engine_check,
        collect=books,
    )
    raise typer.Exit(run(options))


@app.command()
def demo(
    gateway: Annotated[Gateway, typer.Option(help="As for `up`.")] = Gateway.LOCAL,
    seconds: Annotated[int, typer.Option(min=5, help="Give up when no tenant has run out by then.")] = 25,
) -> None:
    """Bring the stack up, drive it with the openai client as two tenants until one gets its 429, check the books, and
    report what each tenant owes.

    Exits 1 when the ledger and the engine's counters differ.
    """
    from kong_plugins.cli.demo import run

    # Events stay in the outbox for a while: the demo adds them up on its own, beside the books.
    options = StackOptions(
        config=default_config(), gateway=gateway, port=0, collect=True, collector_args=("--keep", "1h")
    )
    raise typer.Exit(run(options, seconds))


@app.command()
def reference() -> None:
    """Print token-quota's configuration reference (Markdown), made from its schema."""
    from kong_plugins.token_quota.reference import markdown

    typer.echo(markdown())


@app.command("event-schema")
def event_schema(kind: Annotated[str, typer.Argument(help="request, reversal or adjustment.")] = "request") -> None:
    """Print the JSON Schema of one kind of event; its $id is what such an event names in `dataschema`."""
    from kong_plugins.adapters.event_schemas import schema_text

    try:
        typer.echo(schema_text(kind), nl=False)
    except ValueError as error:
        typer.echo(f"token-quota event-schema: {error}", err=True)
        raise typer.Exit(1) from error


@app.command()
def render(config: Annotated[Path, typer.Argument(help="decK file.")] = Path("kong/kong.yaml")) -> None:
    """Print a decK file with its ${{ env "DECK_…" }} references filled in, for a DB-less Kong. It holds keys then."""
    import os

    from kong_plugins.adapters.deck_file import DeckError
    from kong_plugins.adapters.deck_file import render as fill_in

    try:
        typer.echo(fill_in(config.read_text(), os.environ), nl=False)
    except (DeckError, OSError) as error:
        typer.echo(f"token-quota render: {error}", err=True)
        raise typer.Exit(1) from error


@app.command("engine-check")
def engine_check(
    url: Annotated[str, typer.Argument(help="The engine's API as OpenAI's SDKs take it: http://host:8000/v1.")],
    model: Annotated[str | None, typer.Option(help="Default: the first that it serves.")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="TOKEN_QUOTA_ENGINE_KEY", help="The engine's own key, if it wants one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A list of verdicts.")] = False,
    strict: Annotated[bool, typer.Option(help="Exit 1 also for what is only weaker.")] = False,
) -> None:
    """Try an engine out: does it tell what exact bills need? Six short requests, about fifty tokens.

    Says of each thing that is not so what it means for bills and which flag mends it. Exit 1: no exact bills.

      token-quota engine-check http://127.0.0.1:8000/v1
    """
    from kong_plugins.cli.engine_check import run

    raise typer.Exit(run(url, model, api_key, as_json=as_json, strict=strict))


@app.command("kong-conf")
def kong_conf(
    prefix: Annotated[Path, typer.Option(help="Kong's prefix; the plugin servers' sockets go there.")] = Path(
        "/usr/local/kong"
    ),
) -> None:
    """Print the kong.conf settings that an existing Kong needs for our plugins."""
    from kong_plugins.cli.kong_node import settings

    for key, value in settings(prefix).items():
        typer.echo(f"{key} = {value}")


def main() -> None:
    app()

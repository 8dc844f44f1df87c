"""`token-quota up`: the stack in the foreground."""

from __future__ import annotations

import signal
import threading
from contextlib import ExitStack

from rich.console import Console

from kong_plugins.cli.paths import source_root
from kong_plugins.cli.processes import StackError
from kong_plugins.cli.stack import Gateway, Stack, StackOptions, choose_gateway, default_data_dir, start_stack

CHECK_S = 0.5


def run(options: StackOptions) -> int:
    """Start, show where everything is, wait for a signal or for a part to end. Returns the exit status."""
    console = Console(highlight=False)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        if choose_gateway(options.gateway) is Gateway.DOCKER:
            from kong_plugins.cli.compose import run_compose

            return run_compose(options, stop, console)
        with ExitStack() as resources:
            stack = start_stack(options, resources, lambda line: console.print(line, markup=False, soft_wrap=True))
            show(stack, console, options)
            while not stop.wait(CHECK_S):
                ended = stack.ended()
                if ended is not None:
                    raise StackError(f"{ended.name} ended by itself. End of {ended.log}:\n{ended.log_tail()}")
            console.print("stopping: requests in flight are finished first")
    except StackError as error:
        console.print(f"token-quota up: {error}", style="red", markup=False, soft_wrap=True)
        return 1
    return 0


def show(stack: Stack, console: Console, options: StackOptions) -> None:
    """What a person needs for a first request."""
    for name, value in stack.keys.items():
        if name.endswith("_KEY"):
            shown = value if name in stack.generated else "(from the environment)"
            console.print(f"key         {name} {shown}", markup=False)
    key = next((name for name in stack.keys if name.endswith("_KEY")), "KEY")
    shown = stack.keys[key] if key in stack.generated else f"${key}"
    where = "" if options.data_dir == default_data_dir() else f" --ledger {stack.ledger_url}"
    console.print(
        f'\ntry         curl -s {stack.url}/v1/chat/completions -H "apikey: {shown}" '
        '-H "Content-Type: application/json" '
        '-d \'{"model": "deepseek-r1", "max_tokens": 64, "messages": [{"role": "user", "content": "Hi"}]}\'\n'
        f"            token-quota quota top{where}\n{_report_line(stack)}\nCtrl-C ends it.",
        markup=False,
        soft_wrap=True,
    )


def _report_line(stack: Stack) -> str:
    if stack.books is None:
        return ""
    books = "" if stack.books.parent == default_data_dir() else f" --books {stack.books}"
    prices = source_root() / "kong" / "prices.yaml"
    return f"            token-quota report daily --prices {prices}{books}\n"

"""`token-quota up`: the stack in the foreground."""

from __future__ import annotations

import signal
import threading
from contextlib import ExitStack

from rich.console import Console

from kong_plugins.cli.processes import StackError
from kong_plugins.cli.stack import Gateway, Stack, StackOptions, choose_gateway, start_stack

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
            stack = start_stack(options, resources, console.print)
            show(stack, console)
            while not stop.wait(CHECK_S):
                ended = stack.ended()
                if ended is not None:
                    raise StackError(f"{ended.name} ended by itself. End of {ended.log}:\n{ended.log_tail()}")
            console.print("stopping: requests in flight are finished first")
    except StackError as error:
        console.print(f"[red]token-quota up:[/red] {error}", markup=True)
        return 1
    return 0


def show(stack: Stack, console: Console) -> None:
    """What a person needs for a first request."""
    for name, value in stack.keys.items():
        if name.endswith("_KEY"):
            shown = value if name in stack.generated else "(from the environment)"
            console.print(f"key         {name} {shown}", markup=False)
    console.print(
        f"\ntry         curl -s {stack.url}/v1/chat/completions -H 'apikey: …' -H 'Content-Type: application/json' \\\n"
        '              -d \'{"model": "deepseek-r1", "max_tokens": 64, '
        '"messages": [{"role": "user", "content": "Hi"}]}\'\n'
        "            token-quota quota top\n\nCtrl-C ends it.",
        markup=False,
    )

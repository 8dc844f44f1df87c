"""``python -m kong_plugins.engine_sim --port 9000 …``: serve until SIGINT or SIGTERM."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Sequence

from kong_plugins.engine_sim.options import parse_arguments
from kong_plugins.engine_sim.server import EngineSim


async def _serve(sim: EngineSim) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    await sim.start()
    sys.stderr.write(f"engine stand-in: {sim.options.served_model_name} at {sim.url}/v1\n")
    failing = asyncio.ensure_future(sim.failed())
    waiting = asyncio.ensure_future(stopping.wait())
    await asyncio.wait({failing, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if failing.done():
        await failing
    await sim.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 after a signal, 1 when the port cannot be had."""
    options = parse_arguments(arguments)
    try:
        asyncio.run(_serve(EngineSim(options)))
    except OSError as error:
        sys.stderr.write(f"engine stand-in: cannot listen on {options.host}:{options.port}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`python -m tests.longrun --minutes 80`: the whole stack at a steady rate while tenants come and go, configurations
are reloaded and windows roll over. Then: what was measured in each minute, whether it is flat, whether the books are
right. Exit 1: something grew, or something is wrong."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from tests.longrun.report import MINUTES, write
from tests.longrun.runs import Plan, run_for


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.longrun", description=__doc__)
    parser.add_argument("--minutes", type=int, default=80, help="with the warm-up (default: %(default)s)")
    parser.add_argument("--warm-up", type=int, default=None, help="minutes left out (default: a third, 20 at most)")
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second (default: %(default)s)")
    parser.add_argument(
        "--reload-s", type=float, default=30.0, help="a configuration each so often (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1, help="decides what is asked, and when (default: %(default)s)")
    parser.add_argument(
        "--remember-s",
        type=int,
        default=600,
        help="how long the ledger remembers what is over; 0: as shipped, an hour for holds and a day for counters,"
        " and so nothing is level within an hour (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, default=None, help="folder for report.md and minutes.jsonl")
    given = parser.parse_args()
    warm_up = given.warm_up if given.warm_up is not None else min(20, given.minutes // 3)
    plan = Plan(given.minutes, warm_up, given.rate, given.reload_s, given.seed, given.remember_s)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started ends with it
    with ExitStack() as resources:
        directory = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="longrun-")))
        started = time.time()
        folder = given.out or directory
        folder.mkdir(parents=True, exist_ok=True)
        minutes = folder / MINUTES
        minutes.unlink(missing_ok=True)
        outcome = asyncio.run(run_for(plan, directory, minutes, resources, lambda text: print(text, flush=True)))
        text, right = write(plan, outcome, started, folder)
    print(text)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())

"""Generated attacks on the whole stack: ``python -m tests.hostile --inputs 20000 --seed 7``."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from kong_plugins.cli.stack import Gateway
from tests.hostile.runs import attack, case
from tests.hostile.world import world


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    add = parser.add_argument
    add("--inputs", type=int, default=2000, help="how many inputs (default: %(default)s)")
    add("--seed", type=int, default=1, help="the same seed sends the same bytes (default: %(default)s)")
    add("--only", type=int, nargs="*", default=None, metavar="N", help="only these numbers of the seed's inputs")
    add("--gateway", choices=["local", "kong"], default="local", help="kong: `kong` on PATH, or KONG_BIN")
    add("--show", type=int, metavar="N", help="print input N's bytes and what is odd about it, and send nothing")
    options = parser.parse_args()
    if options.show is not None:
        wire = case(options.seed, options.show, lambda tenant: f"KEY-OF-{tenant}")
        print(wire.tenant, wire.path, wire.notes)
        sys.stdout.buffer.write(wire.data + b"\n")
        return 0
    numbers = range(options.inputs) if options.only is None else options.only
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="hostile-") as directory,
        world(Path(directory), Gateway(options.gateway)) as attacked,
    ):
        tried = attack(attacked, options.seed, numbers, say=lambda line: print(line, file=sys.stderr, flush=True))
    findings = tried.findings
    print(
        f"inputs         {tried.inputs:,} (seed {options.seed}, {options.gateway}, {time.monotonic() - began:,.0f} s)"
    )
    print(f"answers        {', '.join(f'{status} {count:,}' for status, count in tried.statuses.most_common())}")
    print(f"on the engine  {findings.generations:,}, of them unmetered {findings.unmetered}")
    print(f"events         {', '.join(f'{outcome} {count:,}' for outcome, count in findings.events.items())}")
    print(f"billed         {findings.billed:,} tokens, overshoot {findings.overshoot}, another's {findings.foreign}")
    for problem in findings.problems:
        print(f"FOUND          {problem}")
    return 1 if findings.problems else 0


if __name__ == "__main__":
    sys.exit(main())

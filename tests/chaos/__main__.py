"""`python -m tests.chaos --runs 200 --seed 1`: kill processes of the whole stack under load, then check the books."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.killing import Victim
from tests.chaos.runs import kill_and_check


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--runs", type=int, default=200, help="kills (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="decides whom and when (default: %(default)s)")
    parser.add_argument("--appendfsync", choices=["everysec", "always"], default="everysec", help="of the ledger")
    parser.add_argument("--only", choices=[victim.value for victim in Victim], help="kill nothing else")
    given = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-") as directory:
        only = Victim(given.only) if given.only else None
        outcome = kill_and_check(
            Path(directory), given.runs, given.seed, appendfsync=given.appendfsync, say=print, only=only
        )
        found = outcome.findings
        print(f"kills       {', '.join(f'{count} {name}' for name, count in sorted(outcome.kills.items()))}")
        print(f"clients     {dict(sorted(outcome.seen.statuses.items()))}")
        print(f"requests    {len(outcome.generated):,} on the engine, {found.events:,} events {dict(found.outcomes)}")
        print(f"unsettled   {found.unsettled:,} (both plugin servers gone in their log phase: their holds expire)")
        print(f"unposted    {found.unposted:,} (in the books, not on a counter: the ledger had lost the hold)")
        print(f"billed      {found.billed:,} tokens")
        print(f"reconcile   explains {dict(sorted(found.explained.items()))}")
        print(f"seed {given.seed}, appendfsync {given.appendfsync}, {time.monotonic() - started:.0f} s")
        for problem in found.problems:
            print(f"WRONG       {problem}")
        print("books right yes" if not found.problems else "books right NO")
    return 1 if found.problems else 0


if __name__ == "__main__":
    sys.exit(main())

"""Break the whole stack under load, from a seed, and look at the books afterwards.

  python -m tests.chaos --runs 30 --seed 7
  python -m tests.chaos --runs 10 --seed 7 --faults disk,memory --report fates.jsonl
  python -m tests.chaos --runs 10 --seed 7 --plan          what would be done, and to whom

Real processes: plugin servers, gateway, collector and a sink, an engine's stand-in, and the ledger: one Valkey, or (for
network and failover) three with Sentinels on hosts of their own. A seed decides what is done to whom, when and for how
long; the same seed does the same again. One fault in five has a process killed in its midst, and three in ten are not
waited for: the next begins before all is well.

faults:
  kill         SIGKILL, and started again as Kong, systemd or Docker would
  restart      SIGTERM, and started again
  stop         SIGSTOP and SIGCONT, for less and for longer than the others wait
  socket       a plugin server's socket is removed while it runs
  disk         a small disk (tmpfs; needs root) is filled to the last byte for a while: the ledger's, the spool's, the
               books', or several
  descriptors  no more files than a process has open (prlimit)
  memory       no more address space than a process has; the ledger at maxmemory
  network      a cable is pulled, silent or slow, or the hosts are apart (network namespaces; needs root and iproute2)
  failover     the primary is killed, stopped or told to leave; a replica takes over

Afterwards: every request that the engine ran has one event or one hold, bills are what clients and engine saw, sinks
agree, counters are the sums of events, no budget was gone over, `token-quota reconcile` explains the rest, and a fresh
request is served. What happened to each request that did not go the ordinary way is in --report, one JSON line each.
Exit status: 0 all of it is true, 1 something is not, 2 nothing could be run.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from kong_plugins.cli.stack import Gateway
from tests.chaos.disks import why_no_disks
from tests.chaos.fates import table, write_report
from tests.chaos.faults import Fault, Kind
from tests.chaos.hosts import why_no_hosts
from tests.chaos.runs import Outcome, planned, run
from tests.chaos.world import WorldOptions

SHOWN = 20  # problems


def main() -> int:
    given = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends what it started, disks and hosts too
    kinds = given.faults
    for kind, why in _left_out(kinds).items():
        print(f"left out    {kind}: {why}")
        kinds = [each for each in kinds if each is not kind]
    if not kinds:
        print("nothing can be done here")
        return 2
    worlds = planned(given.seed, given.runs, kinds)
    if given.plan:
        print(
            "\n".join(f"{fault.number:>4}  after {fault.pause_s:.2f} s: {fault}" for each in worlds for fault in each)
        )
        return 0
    wrong = False
    for faults in worlds:
        wrong |= not _run_world(faults, given)
    print("books right NO" if wrong else "books right yes")
    return int(wrong)


def _run_world(faults: list[Fault], given: argparse.Namespace) -> bool:
    started = time.monotonic()
    options = WorldOptions(
        appendfsync=given.appendfsync,
        gateway=Gateway(given.gateway),
        disks=any(fault.kind is Kind.DISK for fault in faults),
    )
    directory = Path(tempfile.mkdtemp(prefix="chaos-"))
    outcome = run(directory, faults, given.seed, options, lambda line: print(line, flush=True))
    _tell(outcome)
    if outcome.findings.problems:
        print(f"kept        {directory}: logs, books, the engine's journal")
    else:
        shutil.rmtree(directory, ignore_errors=True)
    took_s = time.monotonic() - started
    print(f"seed {given.seed}, appendfsync {given.appendfsync}, {given.gateway} gateway, {took_s:.0f} s")
    if given.report is not None:
        write_report(given.report, outcome.findings.fates)
    return not outcome.findings.problems


def _tell(outcome: Outcome) -> None:
    found = outcome.findings
    took = sorted(each.well_at - each.ended for each in outcome.inflicted if each.well_at is not None)
    print(f"\nfaults      {', '.join(f'{count} {name}' for name, count in sorted(outcome.kinds.items()))}")
    if took:
        print(f"well again  after {took[len(took) // 2]:.1f} s (median), {took[-1]:.1f} s at most")
    print(f"requests    {len(outcome.seen.asked):,} asked, {found.ran:,} on the engine, {found.events:,} events")
    print(f"events      {dict(sorted(found.outcomes.items()))}")
    print(f"tokens      {found.generated:,} on the engine, {found.billed:,} billed")
    print(f"open        {found.open:,} (nobody could hear of their end: they expire, uncharged, with an event)")
    print(f"unposted    {found.unposted:,} (in the books, not on a counter: the ledger had lost the hold)")
    print(f"lost        {found.lost:,} requests, {found.rolled_back:,} tokens off counters, by failovers;")
    print(f"            {found.halfway:,} events that one sink has and another has not")
    print(f"assumed     {found.assumed:,} billed by unknown_usage, and the engine never began")
    print(f"in flight   {found.in_flight:,} tokens generated after the last that anybody saw")
    print(f"reconcile   explains {dict(sorted(found.explained.items()))}")
    print(
        f"unmetered   {found.unmetered}, doubled {found.doubled}, overshoot {found.overshoot} ({found.looks:,} looks)\n"
    )
    print(table(found.fates))
    for problem in found.problems[:SHOWN]:
        print(f"WRONG       {problem}")
    if len(found.problems) > SHOWN:
        print(f"WRONG       and {len(found.problems) - SHOWN:,} more")


def _left_out(kinds: list[Kind]) -> dict[Kind, str]:
    whys = {}
    if Kind.DISK in kinds:
        with tempfile.TemporaryDirectory() as directory:
            whys[Kind.DISK] = why_no_disks(Path(directory))
    if Kind.NETWORK in kinds:
        whys[Kind.NETWORK] = why_no_hosts()
    return {kind: why for kind, why in whys.items() if why}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--runs", type=int, default=30, metavar="N", help="faults (default: %(default)s)")
    add("--seed", type=int, default=1, metavar="N", help="decides whom, when and how long (default: %(default)s)")
    add("--faults", type=_kinds, default=list(Kind), metavar="KIND,…", help="of these only (default: all)")
    add("--plan", action="store_true", help="print what the seed decides, and do nothing")
    add("--report", type=Path, metavar="FILE", help="append a JSON line for each request that was affected")
    add(
        "--appendfsync", choices=["everysec", "always"], default="everysec", help="of the ledger (default: %(default)s)"
    )
    add("--gateway", choices=["local", "kong"], default="local", help="kong: a native one, see KONG_BIN")
    return parser.parse_args()


def _kinds(text: str) -> list[Kind]:
    try:
        return [Kind(each.strip()) for each in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}; one of {', '.join(Kind)}") from None


if __name__ == "__main__":
    sys.exit(main())

"""A seeded simulation of the whole application layer. Equal seeds do equal things to the last step: see the digest.

python -m tests.simulation --seed 7 --steps 100000
python -m tests.simulation --seed 7 --steps 20000 --ledger valkey --books duckdb
python -m tests.simulation --mutations
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.simulation.collecting import Books
from tests.simulation.kernel import TAIL
from tests.simulation.memory_store import MemoryStore
from tests.simulation.mutations import MUTATIONS
from tests.simulation.runs import Result, shrink, simulate


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1, help="of everything that is left to chance (default: 1)")
    parser.add_argument("--steps", type=int, default=20_000, help="about so many; it ends at rest (default: 20000)")
    parser.add_argument("--runs", type=int, default=1, help="so many seeds, from --seed on (default: 1)")
    parser.add_argument(
        "--ledger", choices=("memory", "valkey"), default="memory", help="the model, or the real scripts"
    )
    parser.add_argument("--books", choices=("memory", "duckdb"), default="memory", help="what the collector writes to")
    parser.add_argument("--without", action="append", default=[], metavar="KIND", help="leave out this kind of trouble")
    parser.add_argument("--about", metavar="ID", help="print all that happens to this request")
    parser.add_argument("--no-shrink", action="store_true", help="do not look for less trouble that suffices")
    parser.add_argument("--mutations", action="store_true", help="plant bugs, and see each of them found")
    options = parser.parse_args()
    if options.mutations:
        return mutations(options.seed, max(options.steps, 60_000))
    with ExitStack() as resources:
        make_store = _store(options.ledger, resources)
        make_books = _books(options.books)

        def run(seed: int, without: frozenset[str], steps: int, say: Callable[[str], None] = lambda _: None) -> Result:
            return simulate(
                seed,
                steps,
                make_store=make_store,
                make_books=make_books,
                without=without,
                say=say,
                about=options.about if say is print else None,
            )

        without = frozenset(options.without)
        for seed in range(options.seed, options.seed + options.runs):
            result = run(seed, without, options.steps, print)
            if result.violation is not None:
                return _failed(result, options, lambda less, steps, seed=seed: run(seed, without | less, steps))
            print(summary(result))
    return 0


def mutations(seed: int, steps: int) -> int:
    """Each planted bug in up to three seeds' runs; 1 where one is not found."""
    missed = 0
    print(f"{'planted bug':<52} {'found after':>12}  as")
    for mutation in MUTATIONS:
        for tried in range(3):
            with mutation.planted():
                result = simulate(seed + tried, steps)
            if result.violation is not None:
                break
        found = result.violation is not None
        missed += not found
        steps_text = f"{tried * steps + result.steps:,} steps" if found else "NOT FOUND"
        print(f"{mutation.name:<52} {steps_text:>12}  {(result.violation or '').partition(':')[0]}", flush=True)
    print(f"{len(MUTATIONS) - missed} of {len(MUTATIONS)} found")
    return 1 if missed else 0


def summary(result: Result) -> str:
    """What a run did, in a few lines."""
    counts = vars(result.counts)
    return "\n".join(
        (
            f"seed {result.seed}: {result.steps:,} steps in {result.seconds:.1f} s, {result.simulated_s:,} s simulated,"
            f" trace {result.digest}",
            "  " + ", ".join(f"{name.replace('_', ' ')} {number:,}" for name, number in counts.items()),
            f"  {sum(result.faults.values()):,} faults: "
            + ", ".join(f"{kind} {number:,}" for kind, number in sorted(result.faults.items())),
        )
    )


def _failed(result: Result, options: argparse.Namespace, again: Callable[[frozenset[str], int], Result]) -> int:
    if not options.no_shrink:
        print(f"step {result.steps:,}: {result.violation}\nlooking for less trouble that suffices …", flush=True)
        result = shrink(result, again, print)
    print(f"last {TAIL} lines of the trace (step, microseconds, what):")
    print("\n".join(f"  {line}" for line in result.tail))
    print(f"needs: {', '.join(sorted(result.faults)) or 'no trouble at all'}")
    print(f"VIOLATION in seed {result.seed} after {result.steps:,} steps: {result.violation}")
    return 1


def _store(kind: str, resources: ExitStack) -> Callable[[], Any]:
    if kind == "memory":
        return MemoryStore
    from kong_plugins.adapters.ledger import EmbeddedValkey
    from tests.simulation.script_store import ScriptStore

    directory = resources.enter_context(TemporaryDirectory(prefix="simulated-valkey-"))
    server = resources.enter_context(EmbeddedValkey(Path(directory), appendfsync="always"))
    return lambda: ScriptStore(server)


def _books(kind: str) -> Callable[[Path], Books]:
    if kind == "memory":
        return lambda _: Books()
    from tests.simulation.duckdb_books import DuckDBBooks

    return DuckDBBooks


if __name__ == "__main__":
    sys.exit(main())

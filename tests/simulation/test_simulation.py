"""A short run of the simulated world, that a seed decides everything, and that it finds what is planted."""

from __future__ import annotations

from pathlib import Path

import pytest

from kong_plugins.adapters.ledger import EmbeddedValkey
from tests.simulation.duckdb_books import DuckDBBooks
from tests.simulation.mutations import MUTATIONS, Mutation
from tests.simulation.runs import shrink, simulate
from tests.simulation.script_store import ScriptStore

# Found something once: seed and steps.
FAILED_ONCE: tuple[tuple[int, int], ...] = ((1, 10_000), (139, 14_200))
FOUND_SOON = [each for each in MUTATIONS if each.soon]


@pytest.mark.parametrize(("seed", "steps"), FAILED_ONCE)
def test_every_promise_holds_after_every_step(seed: int, steps: int) -> None:
    """Over requests, settlements, retries, kills, cuts, jumping clocks and edits; and everything adds up at rest."""
    result = simulate(seed, steps)
    assert result.violation is None, (result.violation, result.tail)
    assert result.counts.audits >= 1
    assert result.counts.postings > 50
    assert sum(result.faults.values()) > 100


def test_equal_seeds_do_equal_things_and_others_others() -> None:
    """To the last step and the last microsecond."""
    one, again, other = (simulate(seed, 2_000) for seed in (5, 5, 6))
    assert (one.digest, one.steps, one.faults) == (again.digest, again.steps, again.faults)
    assert other.digest != one.digest


def test_the_real_scripts_and_books_hold_the_same_promises(tmp_path: Path) -> None:
    """The ledger's and the outbox' scripts in a real Valkey, and rows in a real DuckDB file."""
    with EmbeddedValkey(tmp_path, appendfsync="always") as server:
        result = simulate(2, 1_200, make_store=lambda: ScriptStore(server), make_books=DuckDBBooks)
    assert result.violation is None, (result.violation, result.tail)
    assert result.counts.postings > 3
    assert result.counts.audits == 1


@pytest.mark.parametrize("mutation", FOUND_SOON, ids=lambda each: each.name)
def test_a_planted_bug_is_found(mutation: Mutation) -> None:
    """`python -m tests.simulation --mutations` tries all of them."""
    with mutation.planted():
        assert simulate(1, 15_000).violation is not None


def test_a_failure_is_shown_with_less_trouble() -> None:
    """Kinds that it does not need are left out, and it still fails."""
    (mutation,) = (each for each in MUTATIONS if each.name == "a second settlement posts again")
    with mutation.planted():
        found = simulate(1, 2_000)
        less = shrink(found, lambda without, steps: simulate(1, steps, without=without), lambda _: None)
    assert less.violation is not None
    assert sum(less.faults.values()) <= sum(found.faults.values())
    assert less.steps <= found.steps

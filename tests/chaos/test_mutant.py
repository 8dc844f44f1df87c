"""The run of kills would tell: a collector with its promise broken fails it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.killing import Victim
from tests.chaos.runs import kill_and_check


@pytest.mark.slow
def test_a_collector_that_acknowledges_before_it_writes_is_caught(tmp_path: Path) -> None:
    """Events that were acknowledged when it was killed are in no sink: lost, sinks differ, books do not reconcile."""
    outcome = kill_and_check(
        tmp_path, runs=3, seed=1, only=Victim.COLLECTOR, collector="tests.chaos.acknowledges_first"
    )
    problems = "\n".join(outcome.findings.problems)
    assert "no event, no hold" in problems
    assert "reconcile exits 1" in problems

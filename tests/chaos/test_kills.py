"""A few kills in every test run; `python -m tests.chaos` does hundreds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.runs import kill_and_check


@pytest.mark.slow
def test_books_are_right_after_kills_of_anything(tmp_path: Path) -> None:
    """Plugin servers, ledger, collector and a sink killed under load: every request the engine ran has one event or
    one hold, bills are what clients saw, sinks agree, counters are events' sums, and `reconcile` explains the rest."""
    outcome = kill_and_check(tmp_path, runs=8, seed=2)
    assert outcome.findings.problems == []
    assert outcome.findings.events > 30

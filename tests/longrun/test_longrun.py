"""The long run, made short: that it still runs, measures what it judges, and finds the books right."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.longrun.measures import TOLERANCES
from tests.longrun.report import MINUTES, write
from tests.longrun.runs import Plan, run_for


@pytest.mark.slow
def test_a_short_run_measures_everything_and_its_books_are_right(tmp_path: Path) -> None:
    """Half a minute with three reloads. What is flat is not judged: nothing is level so soon."""
    plan = Plan(minutes=4, warm_up=1, rate=10, reload_s=8, seed=1, remember_s=60, minute_s=8)
    with ExitStack() as resources:
        outcome = asyncio.run(run_for(plan, tmp_path, tmp_path / MINUTES, resources, print))
        text, _ = write(plan, outcome, time.time(), tmp_path)
    assert outcome.problems == []
    assert outcome.reloads >= 2
    assert outcome.seen.replayed > 0
    assert outcome.findings.events > 200
    assert all(TOLERANCES.keys() <= row.keys() for row in outcome.rows)
    assert "books right yes" in text

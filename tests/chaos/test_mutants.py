"""The runs would tell: processes with a promise broken fail them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.disks import why_no_disks
from tests.chaos.faults import Fault, Kind
from tests.chaos.mutants import MUTANTS
from tests.chaos.runs import run
from tests.chaos.world import WorldOptions


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_promise_is_found(tmp_path: Path, name: str) -> None:
    """By the check that is for it, whatever else it breaks."""
    mutant = MUTANTS[name]
    disks = mutant.kind is Kind.DISK
    if disks and (why := why_no_disks(tmp_path)):
        pytest.skip(why)
    faults = [
        Fault(
            number,
            mutant.kind,
            target,
            pause_s=1.0,
            seconds=0.0 if mutant.kind is Kind.KILL else 2.5,
            also=None,
            rest=True,
        )
        for number in (1, 2)
        for target in mutant.targets
    ]
    options = WorldOptions(disks=disks, mutant=name, mutated=mutant.parts, recovers_s=8.0)
    problems = "\n".join(run(tmp_path, faults, 1, options).findings.problems)
    assert mutant.found in problems

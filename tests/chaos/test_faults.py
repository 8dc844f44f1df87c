"""A few faults of each kind in every slow run; `python -m tests.chaos` does hundreds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.disks import why_no_disks
from tests.chaos.faults import Kind, plan
from tests.chaos.hosts import why_no_hosts
from tests.chaos.runs import run
from tests.chaos.world import WorldOptions

pytestmark = pytest.mark.slow

KINDS = {
    "kill and restart": (Kind.KILL, Kind.RESTART),
    "stop": (Kind.STOP,),
    "socket": (Kind.SOCKET,),
    "disk": (Kind.DISK,),
    "limits": (Kind.DESCRIPTORS, Kind.MEMORY),
    "failover": (Kind.FAILOVER,),
    "network": (Kind.NETWORK,),
}


@pytest.mark.parametrize("name", KINDS)
def test_books_are_right_whatever_happened(tmp_path: Path, name: str) -> None:
    """Under load: every request the engine ran has one event or one hold, bills are what clients and engine saw, sinks
    agree, counters are events' sums, no budget was gone over, `reconcile` explains the rest, and all is well again."""
    kinds = KINDS[name]
    if Kind.DISK in kinds and (why := why_no_disks(tmp_path)):
        pytest.skip(why)
    if Kind.NETWORK in kinds and (why := why_no_hosts()):
        pytest.skip(why)
    outcome = run(tmp_path, plan(2, 4, kinds), 2, WorldOptions(disks=Kind.DISK in kinds))
    assert outcome.findings.problems == []
    assert outcome.findings.events > 10
    assert all(fate.said for fate in outcome.findings.fates)

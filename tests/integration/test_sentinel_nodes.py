"""deploy/kubernetes/base/ledger/node.sh for real: Valkeys and Sentinels that find and replace one another."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kong_plugins.adapters.ledger import connect_ledger
from kong_plugins.application.ports import LedgerUnavailable
from kong_plugins.domain.budgets import TOTAL
from kong_plugins.domain.holds import HoldRequest, Line, Settlement
from kong_plugins.domain.usage import Evidence, Usage
from kong_plugins.domain.windows import FixedWindow, Unit
from tests.integration.sentinel_nodes import Nodes, until


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    if not shutil.which("getent") or not shutil.which("timeout"):
        pytest.skip("node.sh needs getent and timeout, as its image has")
    nodes = Nodes(tmp_path)
    for node in range(3):
        nodes.start(node, "sentinel", "data")
    for node in range(3):
        nodes.hurry(node)
    yield nodes
    nodes.stop()


LINE = Line("daily", FixedWindow(Unit.DAY), TOTAL, 1_000_000_000, 10)
minutes = pytest.mark.skipif(
    not os.environ.get("TOKEN_QUOTA_SENTINEL_TESTS"),
    reason="half a minute of waits: set TOKEN_QUOTA_SENTINEL_TESTS=1",
)


class Tenant:
    """Uses the ledger by its redis+sentinel:// URL."""

    def __init__(self, nodes: Nodes) -> None:
        self.ledger = connect_ledger(nodes.url, timeout_s=1)
        self.requests = 0

    def use(self) -> bool:
        """One request of 4 tokens; False while there is no primary."""
        hold_id = f"request-{self.requests}"
        try:
            self.ledger.hold(HoldRequest("acme", hold_id, (LINE,), 60_000_000))
            self.ledger.settle(Settlement("acme", hold_id, Usage(3, 1), Evidence.EXACT, b"{}"))
        except LedgerUnavailable:
            return False
        self.requests += 1
        return True

    def used(self) -> int:
        (balance,) = self.ledger.balances("acme")
        return balance.state.committed


def begin(nodes: Nodes) -> None:
    """Until one may go: two replicas and two other Sentinels are known to each."""
    until(lambda: nodes.primary() == 0, "the first of the list begins as the primary")
    until(lambda: all(nodes.known(node) == (2, 2) for node in range(3)), "the Sentinels know one another")


def fail_over(nodes: Nodes, tenant: Tenant) -> int:
    """Kill the primary, node 0, after a request that its replicas have; returns the next one."""
    until(tenant.use, "the ledger takes a request")
    assert nodes.ask(0, "alive") == 0
    nodes.replicate(0)
    nodes.kill(0, "data")
    assert nodes.ask(0, "alive") != 0
    until(lambda: nodes.primary() not in {None, 0}, "a replica takes over")
    until(tenant.use, "the ledger follows")
    second = nodes.primary()
    assert second is not None
    return second


@pytest.mark.slow
def test_the_ledger_follows_when_the_primary_is_killed(nodes: Nodes) -> None:
    """By its redis+sentinel:// URL, and with what was used before."""
    begin(nodes)
    tenant = Tenant(nodes)
    fail_over(nodes, tenant)
    assert tenant.used() == 8
    tenant.ledger.close()


@minutes
def test_nobody_follows_a_primary_that_comes_back_empty(nodes: Nodes) -> None:
    """A killed primary comes back as a replica. A primary that lost its disk and is back before anybody missed it
    does not begin as the primary it was: what was used stays used."""
    begin(nodes)
    tenant = Tenant(nodes)
    second = fail_over(nodes, tenant)
    nodes.start(0, "data")
    until(lambda: nodes.replication(0).get("master_link_status") == "up", "the killed one is a replica now")
    nodes.replicate(second)

    nodes.be_patient(6000)  # it is back before it is missed: only its own restraint saves the others' data
    nodes.kill(second, "data", "sentinel")
    shutil.rmtree(nodes.data(second))
    nodes.start(second, "sentinel", "data")
    nodes.hurry(second)
    until(lambda: nodes.primary() not in {None, second}, "one that has data takes over")
    until(lambda: nodes.replication(second).get("master_link_status") == "up", "the empty one is filled again")
    until(tenant.use, "the ledger follows again")
    assert tenant.used() == 12
    tenant.ledger.close()


@minutes
def test_a_primary_that_leaves_hands_its_part_over(nodes: Nodes) -> None:
    """`node.sh leave`, before a pod ends, returns when another is the primary; on a replica it has nothing to do."""
    begin(nodes)
    assert nodes.ask(1, "leave") == 0
    assert nodes.primary() == 0
    assert nodes.ask(0, "leave") == 0
    until(lambda: nodes.primary() in {1, 2}, "another is the primary")
    assert nodes.replication(0)["role"] == "slave"


@pytest.mark.slow
def test_a_primary_that_leaves_takes_nothing_along(nodes: Nodes) -> None:
    """While it hands its part over, requests go on: whatever was confirmed is on the next primary too. Else, all that
    comes until the old one follows is lost."""
    begin(nodes)
    tenant = Tenant(nodes)
    until(tenant.use, "the ledger takes a request")
    done = threading.Event()

    def go_on() -> None:
        while not done.is_set():
            tenant.use()

    asking = threading.Thread(target=go_on)
    asking.start()
    try:
        assert nodes.ask(0, "leave") == 0
        until(lambda: nodes.primary() in {1, 2}, "another is the primary")
        before = tenant.requests
        until(lambda: tenant.requests > before + 10, "the ledger follows")
    finally:
        done.set()
        asking.join()
    assert tenant.used() >= 4 * tenant.requests
    tenant.ledger.close()

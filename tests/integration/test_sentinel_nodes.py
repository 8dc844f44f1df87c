"""deploy/kubernetes/base/ledger/node.sh for real: Valkeys and Sentinels that find and replace one another."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from kong_plugins.adapters.ledger import connect_ledger
from kong_plugins.adapters.ledger.embedded_valkey import find_server
from kong_plugins.application.ports import LedgerUnavailable
from kong_plugins.domain.budgets import TOTAL
from kong_plugins.domain.holds import HoldRequest, Line, Settlement
from kong_plugins.domain.usage import Evidence, Usage
from kong_plugins.domain.windows import FixedWindow, Unit

SCRIPT = Path(__file__).parents[2] / "deploy" / "kubernetes" / "base" / "ledger" / "node.sh"
CLI = Path(__file__).with_name("valkey_cli.py")
PASSWORD = "s3cret-of-the-nodes"
WITHIN_S = 30


def free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {WITHIN_S} s: {what}"
        time.sleep(0.05)  # none of the servers announces what we wait for


class Nodes:
    """Three of them; each has a directory, a port and a Sentinel's port."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        ports = free_ports(6)
        self.names = [f"127.0.0.1:{ports[2 * each]}:{ports[2 * each + 1]}" for each in range(3)]
        self.running: dict[tuple[int, str], subprocess.Popen[bytes]] = {}
        programs = directory / "bin"
        programs.mkdir()
        (programs / "valkey-server").symlink_to(find_server())
        cli = programs / "valkey-cli"
        cli.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{CLI}" "$@"\n')
        cli.chmod(0o755)
        (directory / "password").write_text(PASSWORD)

    def environment(self, node: int) -> dict[str, str]:
        return {
            "PATH": f"{self.directory / 'bin'}:{os.environ['PATH']}",
            "LEDGER_NODES": " ".join(self.names),
            "LEDGER_SELF": self.names[node],
            "LEDGER_DATA": str(self.data(node)),
            "LEDGER_RUN": str(self.directory / f"run{node}"),
            "LEDGER_PASSWORD_FILE": str(self.directory / "password"),
            "LEDGER_BIND": "127.0.0.1",
            "LEDGER_DOWN_AFTER_MS": "600",
        }

    def data(self, node: int) -> Path:
        return self.directory / f"data{node}"

    def log(self, node: int, role: str) -> Path:
        return self.directory / f"{role}{node}.log"

    def start(self, node: int, *roles: str) -> None:
        self.data(node).mkdir(exist_ok=True)
        (self.directory / f"run{node}").mkdir(exist_ok=True)
        for role in roles:
            with self.log(node, role).open("ab") as log:
                self.running[node, role] = subprocess.Popen(
                    ["sh", str(SCRIPT), role], env=self.environment(node), stdout=log, stderr=log
                )

    def ask(self, node: int, role: str) -> int:
        return subprocess.run(["sh", str(SCRIPT), role], env=self.environment(node), check=False).returncode

    def kill(self, node: int, *roles: str) -> None:
        for role in roles:
            process = self.running.pop((node, role))
            process.send_signal(signal.SIGKILL)
            process.wait()

    def client(self, node: int) -> redis.Redis:
        port = int(self.names[node].split(":")[1])
        return redis.Redis("127.0.0.1", port, password=PASSWORD, socket_timeout=2, decode_responses=True)

    def replication(self, node: int) -> dict[str, object]:
        try:
            return dict(self.client(node).info("replication"))
        except redis.RedisError:
            return {}

    def primary(self) -> int | None:
        """The one that has replicas and takes writes."""
        found = [
            node
            for node in range(3)
            if (about := self.replication(node)).get("role") == "master" and about.get("min_slaves_good_slaves", 0)
        ]
        return found[0] if len(found) == 1 else None

    def known(self, node: int) -> tuple[int, int]:
        """What its Sentinel knows: replicas, other Sentinels."""
        port = int(self.names[node].split(":")[2])
        try:
            state = redis.Redis("127.0.0.1", port, socket_timeout=2).sentinel_master("ledger")
        except redis.RedisError:
            return 0, 0
        return state["num-slaves"], state["num-other-sentinels"]

    def hurry(self, node: int) -> None:
        """A Sentinel looks around every ten seconds: the test would wait for nothing else."""
        port = int(self.names[node].split(":")[2])
        periods = [name for each in ("info", "publish", "ask", "ping") for name in (f"{each}-period", "200")]

        def told() -> bool:
            try:
                return bool(redis.Redis("127.0.0.1", port).execute_command("SENTINEL", "DEBUG", *periods))
            except redis.RedisError:
                return False

        until(told, "its Sentinel answers")

    def replicate(self, node: int) -> None:
        """Until both replicas have all that this primary has. WAIT is about its own connection's last write."""
        with self.client(node).client() as connection:
            connection.set("mark", "")
            assert connection.wait(2, 10_000) == 2

    def be_patient(self, milliseconds: int) -> None:
        """Every Sentinel misses a silent primary only after so long."""
        for name in self.names:
            sentinel = redis.Redis("127.0.0.1", int(name.split(":")[2]))
            sentinel.sentinel_set("ledger", "down-after-milliseconds", milliseconds)

    @property
    def url(self) -> str:
        sentinels = ",".join(f"127.0.0.1:{name.split(':')[2]}" for name in self.names)
        return f"redis+sentinel://:{PASSWORD}@{sentinels}/ledger/0"

    def stop(self) -> None:
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


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


LINE = Line("daily", FixedWindow(Unit.DAY), TOTAL, 1000, 10)
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

"""Valkeys and Sentinels as deploy/kubernetes starts them (node.sh), for tests: on one host or on hosts of their own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import redis

from kong_plugins.adapters.ledger.embedded_valkey import find_server
from tests.chaos.places import Here, Place

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

    def __init__(self, directory: Path, places: Sequence[Place] = (Here(), Here(), Here())) -> None:
        self.directory = directory
        self.places = places
        if any(isinstance(place, Here) for place in places):
            ports = free_ports(6)
        else:
            ports = [place.free_port() for place in places for _ in range(2)]
        self.names = [f"{place.address}:{ports[2 * each]}:{ports[2 * each + 1]}" for each, place in enumerate(places)]
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
            "LEDGER_BIND": self.places[node].address,
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
                    self.places[node].command(["sh", str(SCRIPT), role]),
                    env=self.environment(node),
                    stdout=log,
                    stderr=log,
                )

    def ask(self, node: int, role: str) -> int:
        command = self.places[node].command(["sh", str(SCRIPT), role])
        return subprocess.run(command, env=self.environment(node), check=False).returncode

    def kill(self, node: int, *roles: str) -> None:
        for role in roles:
            process = self.running.pop((node, role))
            process.send_signal(signal.SIGKILL)
            process.wait()

    def client(self, node: int) -> redis.Redis:
        port = int(self.names[node].split(":")[1])
        return redis.Redis(self.places[node].address, port, password=PASSWORD, socket_timeout=2, decode_responses=True)

    def sentinel(self, node: int) -> redis.Redis:
        port = int(self.names[node].split(":")[2])
        return redis.Redis(self.places[node].address, port, socket_timeout=2)

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
        try:
            state = self.sentinel(node).sentinel_master("ledger")
        except redis.RedisError:
            return 0, 0
        return state["num-slaves"], state["num-other-sentinels"]

    def hurry(self, node: int) -> None:
        """A Sentinel looks around every ten seconds: the test would wait for nothing else."""
        periods = [name for each in ("info", "publish", "ask", "ping") for name in (f"{each}-period", "200")]

        def told() -> bool:
            try:
                return bool(self.sentinel(node).execute_command("SENTINEL", "DEBUG", *periods))
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
        for node in range(3):
            self.sentinel(node).sentinel_set("ledger", "down-after-milliseconds", milliseconds)

    @property
    def url(self) -> str:
        sentinels = ",".join(f"{name.split(':')[0]}:{name.split(':')[2]}" for name in self.names)
        return f"redis+sentinel://:{PASSWORD}@{sentinels}/ledger/0"

    def stop(self) -> None:
        for process in self.running.values():
            process.send_signal(signal.SIGCONT)  # to one that is stopped nothing else comes through
            process.terminate()
        for process in self.running.values():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

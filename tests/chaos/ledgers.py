"""The ledger of a world: one Valkey, or three with Sentinels on hosts of their own."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, Protocol

import redis

from kong_plugins.adapters.ledger import EmbeddedValkey, EmbeddedValkeyError
from tests.chaos.parts import Part, wait_for
from tests.integration.sentinel_nodes import Nodes

SENTINEL_S = 0.6  # of silence: then a primary is missed


class Ledger(Protocol):
    """``directory``: where its data is, if that may be on a small disk."""

    directory: Path | None
    timeout_ms: int

    @property
    def url(self) -> str: ...

    def start(self, resources: ExitStack) -> Sequence[Part]: ...

    def client(self) -> redis.Redis:
        """Of the server that takes writes.

        Raises:
            redis.RedisError: there is none now.
        """

    def settled(self) -> bool:
        """As many servers as there are to be do what they are to do."""


class OneLedger:
    """A Valkey on a unix socket, and its only part."""

    name = "ledger"
    timeout_ms = 500

    def __init__(self, directory: Path, appendfsync: Literal["everysec", "always"]) -> None:
        self.directory: Path | None = directory
        self._valkey = EmbeddedValkey(directory, appendfsync=appendfsync)

    @property
    def url(self) -> str:
        return self._valkey.url

    def start(self, resources: ExitStack) -> Sequence[Part]:
        resources.enter_context(self._valkey)
        return [self]

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, socket_timeout=2)

    def settled(self) -> bool:
        return bool(self.pid())

    def pid(self) -> int:
        process = self._valkey._process
        return process.pid if process is not None and process.poll() is None else 0

    def send(self, number: signal.Signals) -> None:
        process = self._valkey._process
        if process is not None and process.poll() is None:
            process.send_signal(number)
            if number is signal.SIGKILL:
                process.wait()

    def restore(self) -> None:
        def starts() -> bool:
            try:
                self._valkey.start()
            except EmbeddedValkeyError:
                return False  # as long as its disk is full, say
            return True

        if not self.pid():
            wait_for(starts, "the ledger starts")


class SentinelLedger:
    """deploy/kubernetes' three nodes: Valkeys that replicate, a Sentinel beside each."""

    directory: Path | None = None
    timeout_ms = 500

    def __init__(self, nodes: Nodes) -> None:
        self.nodes = nodes

    @property
    def url(self) -> str:
        return self.nodes.url

    def start(self, resources: ExitStack) -> Sequence[Part]:
        resources.callback(self.nodes.stop)
        for node in range(3):
            self.nodes.start(node, "sentinel", "data")
        for node in range(3):
            self.nodes.hurry(node)
        wait_for(self.settled, "the ledger has a primary with two replicas, and Sentinels that know one another")
        return [NodePart(self.nodes, node, role) for role in ("sentinel", "data") for node in range(3)]

    def client(self) -> redis.Redis:
        primary = self.nodes.primary()
        if primary is None:
            raise redis.ConnectionError("no primary now")
        return self.nodes.client(primary)

    def settled(self) -> bool:
        primary = self.nodes.primary()
        if primary is None or int(str(self.nodes.replication(primary)["connected_slaves"])) < 2:
            return False
        return all(self.nodes.known(node) == (2, 2) for node in range(3))


class NodePart:
    """A Valkey (``ledger-0``) or its Sentinel (``sentinel-0``)."""

    def __init__(self, nodes: Nodes, node: int, role: str) -> None:
        self.name = f"{'ledger' if role == 'data' else role}-{node}"
        self._nodes, self._node, self._role = nodes, node, role

    def pid(self) -> int:
        process = self._nodes.running.get((self._node, self._role))
        return process.pid if process is not None and process.poll() is None else 0

    def send(self, number: signal.Signals) -> None:
        process = self._nodes.running.get((self._node, self._role))
        if process is not None and process.poll() is None:
            process.send_signal(number)
            if number is signal.SIGKILL:
                process.wait()

    def restore(self) -> None:
        if not self.pid():
            self._nodes.start(self._node, self._role)
            if self._role == "sentinel":
                self._nodes.hurry(self._node)

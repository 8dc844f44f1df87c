"""Servers for the wire tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from plugin_server_client import Worker
from plugin_server_process import OURS, ServerProcess

Start = Callable[..., ServerProcess]


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Start]:
    """``start_server(*options, command=OURS)`` starts a plugin server; all are stopped at the end."""
    started: list[ServerProcess] = []

    def start(*options: str, command: list[str] = OURS, **how: str) -> ServerProcess:
        server = ServerProcess(command, tmp_path, *options, **how)
        started.append(server)
        return server.wait_ready()

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for the tests of a module that leave it as it was."""
    server = ServerProcess(OURS, tmp_path_factory.mktemp("kong")).wait_ready()
    yield server
    server.stop()


@pytest.fixture
def worker(ours: ServerProcess) -> Iterator[Worker]:
    client = Worker(ours.path)
    yield client
    client.close()

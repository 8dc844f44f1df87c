"""A node that is told to end lets its streams end and settles every one of them, on whichever worker they are."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import httpx2 as httpx
import pytest

from kong_plugins.cli import kong_node
from kong_plugins.cli.processes import free_port
from kong_plugins.cli.stack import Gateway, StackOptions
from tests.bench.retries import books_of
from tests.e2e import backends
from tests.e2e.conftest import Running, chat, make_keys, start, suite_config
from tests.e2e.load import PATH
from tests.e2e.waiting import settled

TENANTS = {"lingerer": {"budgets": [{"name": "daily", "limit": 50_000_000, "window": "day"}]}}
BODY = chat(stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True})
TOKENS = 10
STREAMS_MAX = 40  # until both of two workers have one
# Kong's idle worker ends ten seconds after it was told to.
LONGER_THAN_AN_IDLE_WORKER_S = 14


@pytest.fixture(params=backends.params("kong", "docker"))
def ending(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A node of two workers that tell which of them answers, for one test: it ends it."""
    directory = tmp_path_factory.mktemp("ending")
    with ExitStack() as resources:
        monkeypatch = resources.enter_context(pytest.MonkeyPatch.context())
        make_keys(monkeypatch, *TENANTS)
        port = free_port()
        # In Docker docker-compose.yml and docker-ports.yml say so. Without reuseport one worker takes nearly all.
        monkeypatch.setenv("KONG_PROXY_LISTEN", f"127.0.0.1:{port} reuseport")
        monkeypatch.setenv("KONG_NGINX_WORKER_PROCESSES", "2")
        monkeypatch.setenv("KONG_NGINX_PROXY_ADD_HEADER", "X-Worker $pid")
        config = suite_config(directory, TENANTS)
        yield start(
            StackOptions(config=config, gateway=Gateway(request.param), port=port, data_dir=directory), resources
        )


def end(running: Running) -> None:
    """Returns when it has ended."""
    if running.node is not None:
        running.node.stop()
        return
    kong = kong_node.find_kong()
    assert kong is not None
    command = [kong, "quit", "-p", str(running.stack.run_dir / "kong"), "--timeout", "60"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def open_stream(running: Running, streams: ExitStack) -> int:
    """One on a connection of its own, which the engine stalls in. Returns the worker that has it."""
    client = streams.enter_context(httpx.Client(timeout=60))
    headers = {"apikey": running.key("lingerer")}
    answer = streams.enter_context(client.stream("POST", f"{running.stack.url}{PATH}", json=BODY, headers=headers))
    assert answer.status_code == 200
    lines = answer.iter_lines()
    for _ in range(TOKENS):
        next(line for line in lines if line.startswith("data: "))
    streams.callback(lines.close)
    return int(answer.headers["x-worker"])


def test_a_stream_that_outlives_the_first_worker_is_settled(ending: Running) -> None:
    """Kong's first worker has the plugin servers and is soon idle; what ends on the other one later is charged all the
    same, before the node has ended."""
    ending.faults(hang_after_tokens=TOKENS + 1, requests=STREAMS_MAX)
    opened: dict[int, ExitStack] = {}
    with ExitStack() as resources:
        for _ in range(STREAMS_MAX):
            streams = resources.enter_context(ExitStack())
            opened.setdefault(open_stream(ending, streams), resources.enter_context(ExitStack())).push(streams)
            if len(opened) == 2:
                break
        first, other = sorted(opened)  # workers are started in order
        opened[first].close()
        ended = threading.Thread(target=end, args=(ending,))
        ended.start()
        ended.join(LONGER_THAN_AN_IDLE_WORKER_S)
        assert ended.is_alive()
        opened[other].close()
        ended.join()
    books = books_of(ending.ledger, "lingerer")
    charged = settled(ending, "lingerer")
    assert set(books.outcomes) == {"aborted"}
    assert charged == books.net > 0

"""Two nodes with one ledger: a tenant's budget is one budget, and an event says which node it is from."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from kong_plugins.cli.stack import Gateway, StackOptions
from kong_plugins.domain.partitions import partition_of
from tests.e2e import backends
from tests.e2e.conftest import Running, chat, make_keys, start, start_in_docker, suite_config
from tests.e2e.load import PATH
from tests.e2e.waiting import balance, settled

CLIENTS = 40
LIMIT = 20_000
CONTEXT = 1_024
# A field that no tokenizer counts: all requests are held at the same bound, without a closer look.
UNCOUNTED = "mm_processor_kwargs"
BODY = chat(stream=True, stream_options={"include_usage": True}, **{UNCOUNTED: {}})
TENANTS: dict[str, dict[str, Any]] = {
    "everywhere": {
        "budgets": [{"name": "daily", "limit": LIMIT, "window": "day"}],
        "allow_fields": [UNCOUNTED],
        "context_tokens": CONTEXT,
    }
}


def node_config(directory: Path, source: str) -> Path:
    tenants = {name: {**settings, "event_source": source} for name, settings in TENANTS.items()}
    return suite_config(directory, tenants)


@pytest.fixture(scope="module", params=backends.params(*backends.BACKENDS))
def nodes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Running]]:
    """Two, named ``/node/0`` and ``/node/1``, with plugin servers of their own, one ledger and one engine."""
    with ExitStack() as resources:
        make_keys(resources.enter_context(pytest.MonkeyPatch.context()), *TENANTS)
        directories = [tmp_path_factory.mktemp(f"node{number}") for number in range(2)]
        configs = [node_config(directory, f"/node/{number}") for number, directory in enumerate(directories)]
        if request.param == "docker":
            yield start_in_docker(configs, directories[0], resources)
            return
        running: list[Running] = []
        for config, directory in zip(configs, directories, strict=True):
            options = StackOptions(
                config=config,
                gateway=Gateway(request.param),
                port=0,
                data_dir=directory,
                ledger_url=running[0].stack.ledger_url if running else None,
                upstream=running[0].stack.upstream_url if running else "sim",
                check_engine=False,
            )
            running.append(start(options, resources))
        yield running


def test_one_budget_holds_on_both_nodes_at_once(nodes: list[Running]) -> None:
    """All clients at one moment, half of them on each node, every answer kept open: as many are admitted as have room,
    not one more or less; each is charged once, in an event of the node that it was on."""
    first = nodes[0]
    first.faults(hang_after_tokens=5, requests=CLIENTS)
    together, decided, leave = threading.Barrier(CLIENTS), threading.Semaphore(0), threading.Event()
    admitted: list[str] = []
    asked: list[int] = []
    sources: dict[str, str] = {}

    def work(number: int) -> None:
        node = nodes[number % 2]
        headers = {"apikey": node.key("everywhere")}
        with httpx.Client(timeout=30) as client:
            together.wait(30)
            with client.stream("POST", f"{node.stack.url}{PATH}", json=BODY, headers=headers) as answer:
                if answer.status_code == 200:
                    sources[answer.headers["x-request-id"]] = f"/node/{number % 2}"
                    admitted.append(answer.headers["x-request-id"])
                    decided.release()
                    leave.wait(30)
                    return
                answer.read()
                assert answer.status_code == 429, answer.text
                asked.append(answer.json()["error"]["asked"])
                decided.release()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        for _ in threads:
            assert decided.acquire(timeout=30)
        (hold,) = set(asked)
        assert len(admitted) == LIMIT // hold
        assert len(admitted) + len(asked) == CLIENTS
        assert balance(first, "everywhere").state.held == len(admitted) * hold
    finally:
        leave.set()
        for thread in threads:
            thread.join()
    assert 0 < settled(first, "everywhere") < LIMIT
    events = [json.loads(entry.event) for entry in first.ledger.outbox(partition_of("everywhere"), "0", 1_000)]
    assert {event["id"]: event["source"] for event in events} == sources
    assert sum(event["data"]["prompt"] + event["data"]["completion"] for event in events) == settled(
        first, "everywhere"
    )
    assert len(Counter(sources.values())) == 2

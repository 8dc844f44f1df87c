"""A Redis Cluster of two real nodes: tenants' holds and an engine's places, each in one slot, wherever that is."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import gevent
import pytest
import redis

from kong_plugins.adapters.background import GreenletQueue
from kong_plugins.adapters.ledger import connect_ledger, connect_places
from kong_plugins.adapters.ledger.embedded_valkey import find_server
from kong_plugins.application.admit import Admission, AdmissionPolicy, Ask, Held
from kong_plugins.application.engine_places import Full, OpenPlaces, SharedEngine
from kong_plugins.cli.processes import free_port
from kong_plugins.domain.holds import Settlement, SettleStatus
from kong_plugins.domain.shares import EnginePace, EngineShare
from kong_plugins.domain.usage import NO_USAGE, Evidence, Usage

WITHIN_S = 30
SLOTS = ((0, 8191), (8192, 16383))


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {WITHIN_S} s: {what}"
        time.sleep(0.05)  # nodes do not announce that they know one another


def answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[redis.Redis]]:
    with ExitStack() as resources:
        nodes: list[redis.Redis] = []
        for number in range(2):
            port, bus = free_port(), free_port()
            directory: Path = tmp_path_factory.mktemp(f"node-{number}")
            options = ["--port", f"{port}", "--cluster-port", f"{bus}", "--bind", "127.0.0.1", "--dir", str(directory)]
            options += ["--cluster-enabled", "yes", "--save", "", "--cluster-announce-ip", "127.0.0.1"]
            with (directory / "log").open("wb") as log:
                process = subprocess.Popen([str(find_server()), *options], stdout=log, stderr=subprocess.STDOUT)
            resources.callback(process.wait, WITHIN_S)
            resources.callback(process.terminate)
            nodes.append(resources.enter_context(redis.Redis(port=port)))
            until(lambda: answers(nodes[-1]), f"node {number} answers")
            nodes[-1].execute_command("CLUSTER", "ADDSLOTSRANGE", *SLOTS[number])
            first = nodes[0].connection_pool.connection_kwargs["port"]
            if number:
                bus_of_first = nodes[0].config_get("cluster-port")["cluster-port"]
                nodes[-1].execute_command("CLUSTER", "MEET", "127.0.0.1", first, bus_of_first)
        for node in nodes:
            until(lambda node=node: node.cluster("info")["cluster_state"] == "ok", "all slots are served")
        yield nodes


def url(cluster: list[redis.Redis]) -> str:
    return "redis+cluster://127.0.0.1:" + str(cluster[0].connection_pool.connection_kwargs["port"])


def test_holds_and_places_are_each_in_one_slot_and_work_together(cluster: list[redis.Redis]) -> None:
    """Tenants and engines on both nodes; a full engine refuses, and a place that is left is one to take."""
    ledger, store = connect_ledger(url(cluster), timeout_s=5), connect_places(url(cluster), timeout_s=5)
    leaving, background = GreenletQueue("leave"), GreenletQueue("release")
    places = OpenPlaces(store, leaving, EnginePace())
    admission = Admission(ledger, background, background, AdmissionPolicy(60_000_000, 60_000_000))
    engine = SharedEngine(admission, places, lambda call: gevent.spawn(call).get, gevent.sleep, 60_000_000)
    for name in range(8):
        share = EngineShare(f"service=engine-{name}", 3)
        asks = [Ask(f"tenant-{name}-{n}", f"{n}", (), NO_USAGE, 1, lambda _: NO_USAGE) for n in range(4)]
        decided = [engine.admit(ask, share) for ask in asks]
        assert [type(each) for each in decided] == [Held, Held, Held, Full]
        settled = ledger.settle(Settlement(asks[0].tenant, "0", Usage(3, 4), Evidence.EXACT, b"{}"))
        assert settled.status is SettleStatus.POSTED
        engine.ended(share, asks[0].tenant, "0")
        assert leaving.join(WITHIN_S)
        assert store.renew(share.key, [(asks[0].tenant, "0"), (asks[1].tenant, "1")]) == ((asks[0].tenant, "0"),)
        assert isinstance(engine.admit(asks[3], share), Held)
    per_node = [sum(b":places" in key for key in node.keys("*")) for node in cluster]
    assert sum(per_node) == 8
    assert all(per_node), "the engines' names are all on one node: take others"
    ledger.close()
    store.close()

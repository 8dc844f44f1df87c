"""Replicas behind a Kong upstream: what begins alike goes to one of them, where its prefix is cached. Native Kong only,
as balancing is Kong's."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import yaml

from kong_plugins.adapters.engine_metrics import read_counters
from kong_plugins.cli.kong_node import find_kong
from kong_plugins.cli.processes import Processes, free_port, tcp_port_answers
from kong_plugins.cli.stack import SIM_FLAGS, Gateway, Stack, StackOptions, default_config, start_stack

CONVERSATIONS, TURNS = 15, 3  # an odd number: taking turns must not bring every conversation back where it was
OPENING = "Keep count of the tokens used by each consumer. " * 40
KEY = "sk-of-tenant-a"

pytestmark = pytest.mark.skipif(find_kong() is None, reason="native Kong: no `kong` on PATH and KONG_BIN is not set")


@dataclass
class Replicas:
    """Two engines behind one Kong, by ``/hashed`` and by ``/turns`` (round robin)."""

    stack: Stack
    engines: list[str]
    http: httpx.Client

    def converse(self, route: str) -> tuple[int, list[set[int]], Counter[int]]:
        """So many conversations, a turn of each at a time. Cached tokens; the engines that each one met; the requests
        of each engine."""
        before = [self._seen(engine) for engine in self.engines]
        cached_before = sum(read_counters(engine).cached for engine in self.engines)
        for turn in range(TURNS):
            for number in range(CONVERSATIONS):
                answer = self.http.post(
                    f"{self.stack.url}{route}/chat/completions",
                    json={"model": "deepseek-r1", "messages": conversation(route, number, turn), "max_tokens": 8},
                    headers={"apikey": KEY, "xprefixaffinity": str(turn)},  # a client's own changes nothing
                )
                assert answer.status_code == 200, answer.text
        met: list[set[int]] = [set() for _ in range(CONVERSATIONS)]
        load: Counter[int] = Counter()
        for index, engine in enumerate(self.engines):
            for body in self._seen(engine)[len(before[index]) :]:
                (number,) = (n for n in range(CONVERSATIONS) if f"{route} conversation {n}:" in body)
                met[number].add(index)
                load[index] += 1
        return sum(read_counters(engine).cached for engine in self.engines) - cached_before, met, load

    def _seen(self, engine: str) -> list[str]:
        return [str(each["body"]) for each in self.http.get(f"{engine}/sim/requests").json()["requests"]]


def conversation(route: str, number: int, turns: int) -> list[dict[str, str]]:
    messages = [{"role": "user", "content": f"{route} conversation {number}: {OPENING}"}]
    for turn in range(turns):
        messages += [{"role": "assistant", "content": "Four."}, {"role": "user", "content": f"Why {turn}?"}]
    return messages


def balanced(ports: list[int]) -> dict[str, Any]:
    """kong/kong.yaml, its service twice more: behind an upstream that hashes the header, and one that takes turns."""
    data: dict[str, Any] = yaml.safe_load(default_config().read_text())
    (service,) = data["services"]
    plugins = [each for each in service["plugins"] if each["name"] != "token-quota"]
    plugins.append({"name": "token-quota", "config": {"affinity": "header", "budgets": []}})
    data["consumers"] = [{"username": "tenant_a", "keyauth_credentials": [{"key": KEY}]}]
    data["upstreams"] = []
    for name, hashing in (("hashed", {"hash_on": "header", "hash_on_header": "xprefixaffinity"}), ("turns", {})):
        targets = [{"target": f"127.0.0.1:{port}", "weight": 100} for port in ports]
        data["upstreams"].append({"name": name, "targets": targets, **hashing})
        routes = [{"name": name, "paths": [f"/{name}"], "response_buffering": False}]
        data["services"].append(
            {"name": name, "host": name, "port": 80, "protocol": "http", "path": "/v1", "retries": 0}
            | {"routes": routes, "plugins": plugins}
        )
    return data


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    directory: Path = tmp_path_factory.mktemp("affinity")
    with ExitStack() as resources:
        processes = resources.enter_context(Processes(directory / "engines"))
        ports = [free_port(), free_port()]
        for port in ports:
            argv = [sys.executable, "-m", "kong_plugins.engine_sim", "--port", str(port), *SIM_FLAGS]
            processes.start(f"engine-{port}", argv, {}, tcp_port_answers(port))
        config = directory / "kong.yaml"
        config.write_text(yaml.safe_dump(balanced(ports), sort_keys=False))
        engines = [f"http://127.0.0.1:{port}" for port in ports]
        options = StackOptions(
            config=config, gateway=Gateway.KONG, upstream=f"{engines[0]}/v1", port=0, data_dir=directory,
            check_engine=False,
        )  # fmt: skip
        stack = start_stack(options, resources, print)
        yield Replicas(stack, engines, resources.enter_context(httpx.Client(timeout=30)))


def test_a_conversation_stays_where_its_beginning_is_cached(replicas: Replicas) -> None:
    """Hashed, each meets one engine, both engines have some, and every later turn finds its beginning; taking turns,
    conversations meet both and find less."""
    hits, met, load = replicas.converse("/hashed")
    assert all(len(engines) == 1 for engines in met)
    assert set(load) == {0, 1}
    scattered_hits, scattered, _ = replicas.converse("/turns")
    print(f"cached tokens: hashed {hits}, by turns {scattered_hits}; requests by engine, hashed: {dict(load)}")
    assert any(len(engines) == 2 for engines in scattered)
    assert hits > scattered_hits

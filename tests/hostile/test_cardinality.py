"""What clients can make up costs keys and metrics in bounded numbers: models, tenants, paths, methods, agents, keys."""

from __future__ import annotations

import contextlib
import json
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from typing import Any

import pytest
import redis

from kong_plugins.cli.processes import free_port
from tests.hostile.bodies import MODEL
from tests.hostile.world import CROWD, CROWD_HEADER, World, world

PATH = "/v1/chat/completions"
TOKEN = "a-token-of-the-collector"
INVENTED = 400  # of each kind
MODELS_MAX = 64  # as the threat model has it
KEYS_A_REQUEST = 4  # a hold's end, its answer, what is charged, what tells of a retry
FOR_EVER = {"outbox", "open", "lapsed"}  # one for each partition, whoever asks


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """With a collector, and with metrics of the plugin servers too."""
    directory = tmp_path_factory.mktemp("cardinality")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOKEN_QUOTA_METRICS_PORT", str(free_port()))
        patch.setenv("TOKEN_QUOTA_COLLECTOR_TOKEN", TOKEN)
        with world(directory, collect=True) as running:
            yield running


def series(running: World) -> set[str]:
    """Every metric with its labels, of both plugin servers and of the collector."""
    found: set[str] = set()
    for name in ("token-quota", "billing-events", "collector"):
        with urllib.request.urlopen(f"{_address(running, name)}/metrics", timeout=20) as page:
            lines = page.read().decode().splitlines()
        found |= {f"{name} {line.rpartition(' ')[0]}" for line in lines if not line.startswith("#")}
    return found


def series_with_a_sink(running: World) -> set[str]:
    """Once the collector has written something: a sink's own metrics begin then."""
    deadline = time.monotonic() + 30
    while True:
        found = series(running)
        if any("write_seconds_count" in each for each in found):
            return found
        assert time.monotonic() < deadline, "the collector writes nothing"
        time.sleep(0.1)


def _address(running: World, name: str) -> str:
    """Where a process listens, as its log tells."""
    log = (running.directory / "logs" / f"{name}.log").read_text()
    return next(word for word in log.split() if word.startswith("http://127.0.0.1")).removesuffix("/metrics")


def send(running: World, number: int) -> Counter[str]:
    """One invention of each kind, on a connection of their own."""
    ask: dict[str, Any] = {"model": MODEL, "max_tokens": 4, "messages": [{"role": "user", "content": "How many?"}]}
    plain = {"Content-Type": "application/json", "apikey": running.key("mallory")}
    inventions: dict[str, tuple[str, str, dict[str, str], dict[str, Any]]] = {
        "model": ("POST", PATH, plain, {**ask, "model": f"invented-{number}"}),
        "path": ("POST", f"/v1/invented-{number}", plain, ask),
        "method": (f"INVENTED{number}", PATH, plain, ask),
        "agent": ("POST", PATH, {**plain, "User-Agent": f"invented-{number}", "Idempotency-Key": f"i-{number}"}, {}),
        "tenant": ("POST", PATH, {**plain, "apikey": running.key(CROWD), CROWD_HEADER: f"invented-{number}"}, ask),
        "key": ("POST", PATH, {**plain, "apikey": f"sk-invented-{number}"}, ask),
    }
    answers: Counter[str] = Counter()
    connection = HTTPConnection("127.0.0.1", running.port, timeout=60)
    for kind, (method, path, headers, body) in inventions.items():
        connection.request(method, path, json.dumps(body), headers)
        answer = connection.getresponse()
        answer.read()
        answers[f"{kind} {answer.status}"] += 1
        if answer.will_close:
            connection.close()
    connection.close()
    return answers


def test_inventions_make_no_metric_and_a_bounded_number_of_keys(books: World) -> None:
    """Metrics are those of before. Every key that is new has a time to live; refused requests left none; a tenant's
    models have MODELS_MAX counters, and one that is allowed to name tenants has as many keys for each as for any."""
    assert send(books, INVENTED)["tenant 200"] == 1
    post(books, INVENTED)
    before = series_with_a_sink(books)
    with ThreadPoolExecutor(4) as pool:
        answers = sum(pool.map(lambda number: send(books, number), range(INVENTED)), Counter())
    for number in range(20):
        post(books, number)
    assert answers["tenant 200"] == INVENTED
    assert answers["path 404"] + answers["key 401"] == 2 * INVENTED
    assert answers["model 400"] >= INVENTED - MODELS_MAX
    assert answers["agent 400"] == INVENTED

    assert series(books) == before
    with redis.Redis.from_url(books.stack.ledger_url) as client:
        keys = [key.decode() for key in client.scan_iter(count=1000)]
        mortal = {key for key in keys if client.ttl(key) != -1}
    families = Counter(_family(key) for key in keys)
    assert {_family(key) for key in set(keys) - mortal} <= FOR_EVER
    counters = [key for key in keys if _family(key) == "count"]
    assert sum("mallory" in key for key in counters) <= MODELS_MAX + 2
    admitted = sum(count for what, count in answers.items() if what.startswith(("tenant 200", "model 404")))
    assert families["hold"] <= admitted + 50
    assert sum(families[name] for name in ("hold", "tries", "answer", "charged")) <= KEYS_A_REQUEST * (admitted + 50)
    assert len([key for key in counters if CROWD_HEADER not in key]) <= INVENTED + MODELS_MAX + 10


def post(running: World, number: int) -> None:
    """To the collector: a record of an invented tenant, and a path that it does not have."""
    record = json.dumps({"request": {"id": f"r-{number}"}, "consumer": {"username": f"invented-{number}"}}).encode()
    for path in ("/log", f"/invented-{number}"):
        request = urllib.request.Request(
            _address(running, "collector") + path, record, {"Authorization": f"Bearer {TOKEN}"}
        )
        with contextlib.suppress(urllib.error.HTTPError):  # there is no such path
            urllib.request.urlopen(request, timeout=20).close()


def _family(key: str) -> str:
    return key.partition("}:")[2].partition(":")[0]

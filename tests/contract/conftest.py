"""Every ledger there is, each with a clock that a test can move."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from kong_plugins.adapters.ledger import EmbeddedValkey, MemoryLedger, RedisLedger, connect_ledger

GRACE_US = 150_000  # short, so that a test on the server's own clock can wait for the end of it
TERMINAL_US = 60_000_000
ANSWERS_BYTES = 10_000
LIMITS = {"grace_us": GRACE_US, "terminal_us": TERMINAL_US, "answers_bytes": ANSWERS_BYTES}


class HandClock:
    """Moves when told to."""

    def __init__(self) -> None:
        self.now_us = 1_795_000_000_000_000

    def __call__(self) -> int:
        return self.now_us

    def wait_until(self, at_us: int) -> None:
        self.now_us = max(self.now_us, at_us)


class ServerClock:
    """The server's: waiting for a moment takes as long as it takes."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def __call__(self) -> int:
        seconds, micros = self._client.time()
        return int(seconds) * 1_000_000 + int(micros)

    def wait_until(self, at_us: int) -> None:
        while (left := at_us - self()) > 0:
            time.sleep(left / 1e6)


@dataclass
class Bench:
    ledger: MemoryLedger | RedisLedger
    now: Callable[[], int]
    wait_until: Callable[[int], None]


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    data_dir: Path = tmp_path_factory.mktemp("valkey")
    with EmbeddedValkey(data_dir) as server:
        yield server


@pytest.fixture
def client(valkey: EmbeddedValkey) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
        yield client


@pytest.fixture(params=["memory", "valkey"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    if request.param == "memory":
        hand = HandClock()
        yield Bench(MemoryLedger(hand, **LIMITS), hand, hand.wait_until)
        return
    client = request.getfixturevalue("client")
    server = ServerClock(client)
    url = request.getfixturevalue("valkey").url
    ledger = connect_ledger(url, timeout_s=5, **LIMITS)
    yield Bench(ledger, server, server.wait_until)
    ledger.close()

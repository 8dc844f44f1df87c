"""What every sink promises: writing an event again, in any order or company, has the effect of writing it once."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kong_plugins.adapters.sinks import open_sink
from kong_plugins.application.ports import OutboxEntry, Sink, SinkUnavailable
from tests.contract.sink_clickhouse import SERVER, EmbeddedStore, ServerStore
from tests.contract.sink_events import (
    Booked,
    adjustment,
    admitted,
    booked_request,
    edited,
    request,
    reversal,
    usage,
)
from tests.contract.sink_servers import HttpStore, KafkaStore, MockCluster, Receiver, mock_cluster
from tests.contract.sink_stores import DuckDBStore, JsonLinesStore, Store


@pytest.fixture(scope="module")
def cluster() -> Iterator[MockCluster]:
    pytest.importorskip("confluent_kafka", reason="pip install 'kong-token-quota[kafka]'")
    with mock_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def server() -> Iterator[Receiver]:
    server = Receiver()
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def clickhouse_server() -> str:
    pytest.importorskip("clickhouse_connect", reason="pip install 'kong-token-quota[clickhouse]'")
    if not (url := os.environ.get(SERVER)):
        pytest.skip(f"no ClickHouse server: set {SERVER}=clickhouse://user@127.0.0.1:8123/")
    return url


@pytest.fixture
def receiver(server: Receiver) -> Receiver:
    server.events.clear()
    return server


@pytest.fixture(params=["duckdb", "jsonl", "kafka", "http", "clickhouse in process", "clickhouse"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    match request.param:
        case "duckdb":
            yield DuckDBStore(tmp_path)
        case "jsonl":
            yield JsonLinesStore(tmp_path)
        case "kafka":
            yield KafkaStore(request.getfixturevalue("cluster"))
        case "http":
            yield HttpStore(request.getfixturevalue("receiver"))
        case "clickhouse in process":
            pytest.importorskip("chdb", reason="no chdb: pip install chdb (534 MB)")
            yield EmbeddedStore(tmp_path)
        case _:
            server = ServerStore(request.getfixturevalue("clickhouse_server"))
            yield server
            server.drop()


@pytest.fixture
def sink(store: Store) -> Iterator[Sink]:
    sink = open_sink(store.url)
    yield sink
    sink.close()


def test_what_is_written_is_there(store: Store, sink: Sink) -> None:
    assert sink.write([request(number) for number in range(3)]) == ()
    sink.close()
    assert store.read_back() == [booked_request(number) for number in range(3)]


def test_an_event_twice_in_a_batch_counts_once(store: Store, sink: Sink) -> None:
    assert sink.write([request(1), request(2), request(1), request(1)]) == ()
    sink.close()
    assert store.read_back() == [booked_request(1), booked_request(2)]


def test_an_event_of_an_earlier_batch_counts_once(store: Store, sink: Sink) -> None:
    """Alone, beside new ones, and in another order."""
    sink.write([request(number) for number in range(5)])
    sink.write([request(2)])
    sink.write([request(7), request(4), request(6), request(0)])
    sink.write([request(number) for number in reversed(range(8))])
    sink.close()
    assert store.read_back() == [booked_request(number) for number in range(8)]


def test_an_event_of_before_a_restart_counts_once(store: Store, sink: Sink) -> None:
    sink.write([request(number) for number in range(5)])
    sink.close()
    again = open_sink(store.url)
    again.write([request(number) for number in range(3, 9)])
    again.close()
    assert store.read_back() == [booked_request(number) for number in range(9)]


def test_order_and_company_change_nothing(store: Store, sink: Sink) -> None:
    """Every event at least twice, in batches of any size and order."""
    deck = [request(number) for number in range(60)] * 2
    shuffle = random.Random(7)
    shuffle.shuffle(deck)
    while deck:
        size = shuffle.randint(1, 25)
        sink.write(deck[:size])
        deck = deck[size:]
    sink.close()
    assert store.read_back() == [booked_request(number) for number in range(60)]


def test_a_reversal_takes_back_what_its_request_counted(store: Store, sink: Sink) -> None:
    """Also when it comes first."""
    sink.write([reversal(1), request(2)])
    sink.write([request(1), reversal(1)])
    sink.close()
    used = usage(1)
    back = Booked("reversal:request-0000001", "reversal", "tenant_1", -used.prompt, -used.completion)
    assert store.read_back() == [booked_request(1), booked_request(2), back]


def test_an_adjustment_is_money_and_no_tokens(store: Store, sink: Sink) -> None:
    sink.write([adjustment(1, 5_000_000), adjustment(2, -(2**62))])
    sink.close()
    assert store.read_back() == [
        Booked("credit-1", "adjustment", "tenant_1", 0, 0, 5_000_000),
        Booked("credit-2", "adjustment", "tenant_1", 0, 0, -(2**62)),
    ]


SPOILED: list[tuple[Callable[[OutboxEntry], OutboxEntry], str]] = [
    (lambda entry: replace(entry, event=b'{"specversion":"1.0","id":'), "JSON"),
    (lambda entry: replace(entry, event=b"\xff\xfe"), "JSON"),
    (lambda entry: replace(entry, event=b""), "JSON"),
    (lambda entry: replace(entry, event=b"[" * 100_000), "JSON"),
    (lambda entry: edited(entry, _type="com.example.order"), "type"),
    (lambda entry: edited(entry, schema=2), "upgrade"),
    (lambda entry: edited(entry, schema=2, prompt="many", tenant=None), "upgrade"),
    (lambda entry: edited(entry, schema=0), "no schema 0"),
    (lambda entry: edited(entry, prompt=-1), "prompt"),
    (lambda entry: edited(entry, prompt=2**63), "prompt"),
    (lambda entry: edited(entry, cached=2**40), "cached"),
    (lambda entry: edited(entry, reasoning=2**40), "reasoning"),
    (lambda entry: edited(entry, evidence="hearsay"), "evidence"),
    (lambda entry: edited(entry, tenant="\ud800"), "JSON"),
    (lambda entry: edited(entry, _time="9999-12-31T23:59:59Z"), "time"),
    (lambda entry: edited(entry, _id="another"), "another"),
    (lambda entry: replace(entry, posted=(("daily", 2**63),)), "64 bits"),
]


def test_what_is_no_event_of_ours_is_rejected_and_the_rest_is_durable(store: Store, sink: Sink) -> None:
    """With the entry as it came and a reason that names what is wrong: first, last and between good ones."""
    spoiled = [spoil(request(100 + number)) for number, (spoil, _) in enumerate(SPOILED)]
    rejected = sink.write([*spoiled[:5], request(1), *spoiled[5:10], request(2), *spoiled[10:]])
    assert [refusal.entry for refusal in rejected] == spoiled
    for refusal, (_, reason) in zip(rejected, SPOILED, strict=True):
        assert reason in refusal.reason
    sink.close()
    assert store.read_back() == [booked_request(1), booked_request(2)]


def test_a_batch_of_nothing_is_written_at_once(store: Store, sink: Sink) -> None:
    assert sink.write([]) == ()
    assert len(sink.write([replace(request(1), event=b"{}")])) == 1
    sink.close()
    assert store.read_back() == []


def test_ten_thousand_at_once(store: Store, sink: Sink) -> None:
    assert sink.write([request(number) for number in range(10_000)]) == ()
    sink.close()
    assert store.read_back() == [booked_request(number) for number in range(10_000)]


TEXTS = ["", "株式会社 例", "Zoë & Søn", "👩‍👩‍👧", "quote\"d'\\", "line\nfeed\ttab", "nul\0byte", "a" * 5000]


def test_text_comes_back_as_it_was(store: Store, sink: Sink) -> None:
    assert sink.write([request(number, tenant=tenant) for number, tenant in enumerate(TEXTS)]) == ()
    sink.close()
    assert store.read_back() == [replace(booked_request(number), tenant=name) for number, name in enumerate(TEXTS)]


def test_bytes_that_were_no_text_are_replaced(store: Store, sink: Sink) -> None:
    """In the event by whoever wrote it, in line keys and ids as the outbox tells them by us."""
    torn = request(1, tenant="acme\udcff", hold_id="request-\udcff")
    assert sink.write([replace(torn, posted=(("daily|model=\udcff", 285),))]) == ()
    sink.close()
    assert store.read_back() == [replace(booked_request(1), tenant="acme?", event_id="request-?")]


def test_fields_of_tomorrow_are_no_reason_to_refuse(store: Store, sink: Sink) -> None:
    assert sink.write([edited(request(1), _traceparent="00-1", energy_mj=3, nested={"a": [1]})]) == ()
    sink.close()
    assert store.read_back() == [booked_request(1)]


def test_white_space_in_an_event_is_none_of_its_meaning(store: Store, sink: Sink) -> None:
    entry = request(1)
    assert sink.write([replace(entry, event=json.dumps(json.loads(entry.event), indent=2).encode())]) == ()
    sink.write([request(2)])
    sink.close()
    assert store.read_back() == [booked_request(1), booked_request(2)]


def test_a_store_that_is_away_takes_nothing_and_is_found_again(store: Store) -> None:
    """Before the first write and between two: what could not be written is written when it is tried again."""
    sink = open_sink(store.impatient_url)
    with store.away(), pytest.raises(SinkUnavailable) as first:
        sink.write([request(1)])
    assert str(first.value)
    write_until_taken(sink, [request(1), request(2)])
    if not isinstance(store, HttpStore | KafkaStore):
        sink.close()  # a file that one holds open is not away
    with store.away(), pytest.raises(SinkUnavailable):
        sink.write([request(2), request(3)])
    write_until_taken(sink, [request(2), request(3)])
    sink.close()
    assert store.read_back() == [booked_request(number) for number in (1, 2, 3)]


def write_until_taken(sink: Sink, entries: list[OutboxEntry]) -> None:
    """As a collector does."""
    deadline = time.monotonic() + 60
    while True:
        try:
            assert sink.write(entries) == ()
            return
        except SinkUnavailable:
            assert time.monotonic() < deadline


@pytest.mark.parametrize("milliseconds", [0, 40])
def test_a_crash_between_write_and_acknowledgement_loses_and_doubles_nothing(store: Store, milliseconds: int) -> None:
    """A writer is killed at some point of its work. What it had acknowledged is there; after all is written again,
    everything is there once."""
    count, batch = 3000, 100
    command = [sys.executable, "-m", "tests.contract.sink_child", store.url, str(count), str(batch)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    try:
        child.wait(milliseconds / 1000)
    except subprocess.TimeoutExpired:
        child.kill()
    said, _ = child.communicate()
    acknowledged = [int(line) for line in said.splitlines() if line.strip()]
    there = {event.event_id for event in store.read_back()}
    assert there >= {booked_request(number).event_id for number in range(max(acknowledged, default=0))}
    sink = open_sink(store.url)
    for first in range(0, count, 1000):
        sink.write([request(number) for number in range(first, first + 1000)])
    sink.close()
    assert store.read_back() == [booked_request(number) for number in range(count)]


def test_closing_twice_and_writing_after_it_are_no_harm(store: Store, sink: Sink) -> None:
    sink.close()
    sink.write([request(1)])
    sink.close()
    sink.close()
    sink.write([request(2)])
    sink.close()
    assert store.read_back() == [booked_request(1), booked_request(2)]


def test_the_name_of_an_event_is_its_id_alone(store: Store, sink: Sink) -> None:
    """Two events of one id are one event, whatever else is in them."""
    sink.write([request(1)])
    sink.write([edited(request(1), prompt=999), request(2)])
    sink.close()
    assert store.read_back() == [booked_request(1), booked_request(2)]
    assert admitted(1).hold_id == request(1).event_id

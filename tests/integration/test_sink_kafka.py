"""Kafka: what a message looks like, where it goes, and which errors are about it alone."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from kong_plugins.adapters.sinks import open_sink
from kong_plugins.application.ports import SinkUnavailable
from tests.contract.sink_events import booked_request, edited, request

pytest.importorskip("confluent_kafka", reason="pip install 'kong-token-quota[kafka]'")

from tests.contract.sink_servers import KafkaStore, MockCluster, mock_cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[MockCluster]:
    with mock_cluster() as cluster:
        yield cluster


@pytest.fixture
def store(cluster: MockCluster) -> KafkaStore:
    return KafkaStore(cluster)


def test_a_message_is_a_cloud_event_in_binary_mode(store: KafkaStore) -> None:
    """Attributes as headers, data as value, the tenant as key. An attribute that is null is none."""
    sink = open_sink(store.url)
    assert sink.write([edited(request(1), _traceparent="00-1", _sequence=7, _dataref=None)]) == ()
    sink.close()
    (message,) = store.messages()
    event = json.loads(request(1).event)
    assert message.key() == b"tenant_1"
    assert json.loads(message.value()) == event["data"]
    assert dict(message.headers()) == {
        "content-type": b"application/json",
        "ce_specversion": b"1.0",
        "ce_id": b"request-0000001",
        "ce_source": b"node-1",
        "ce_type": b"kong.token-quota.request",
        "ce_subject": b"tenant_1",
        "ce_time": event["time"].encode(),
        "ce_dataschema": event["dataschema"].encode(),
        "ce_traceparent": b"00-1",
        "ce_sequence": b"7",
    }


def test_a_tenants_events_are_on_one_partition_in_order(store: KafkaStore) -> None:
    sink = open_sink(store.url)
    for first in range(0, 200, 50):
        sink.write([request(number) for number in range(first, first + 50)])
    sink.close()
    places: dict[bytes, list[tuple[int, bytes]]] = {}
    for message in store.messages():
        places.setdefault(message.key(), []).append((message.partition(), dict(message.headers())["ce_id"]))
    assert len(places) == 5
    for place in places.values():
        assert len({partition for partition, _ in place}) == 1
        assert [event_id for _, event_id in place] == sorted(event_id for _, event_id in place)
    assert len({place[0][0] for place in places.values()}) > 1


def test_a_message_that_is_too_large_is_rejected_alone(store: KafkaStore) -> None:
    sink = open_sink(f"{store.url}&message_max_bytes=20000")
    large = edited(request(2), attributes={"team": "x" * 30_000})
    rejected = sink.write([request(1), large, request(3)])
    sink.close()
    assert [refusal.entry for refusal in rejected] == [large]
    assert "too large" in rejected[0].reason
    assert store.read_back() == [booked_request(1), booked_request(3)]


def test_a_retry_of_unknown_outcome_doubles_messages_and_no_event(store: KafkaStore) -> None:
    """The broker is silent until the writer gives up. Whatever it took meanwhile, a reader counts each event once."""
    sink = open_sink(store.impatient_url)
    sink.write([request(0)])
    with store.away(), pytest.raises(SinkUnavailable, match="cannot write to topic"):
        sink.write([request(number) for number in range(100)])
    sink.close()
    patient = open_sink(store.url)
    patient.write([request(number) for number in range(100)])
    patient.close()
    assert len(store.messages()) >= 101
    assert store.read_back() == [booked_request(number) for number in range(100)]


def test_settings_that_the_library_does_not_take_are_told(store: KafkaStore) -> None:
    """Before anything is written."""
    with pytest.raises(ValueError, match=r"brotli.*compression"):
        open_sink(f"{store.url}&compression=brotli")
    open_sink(f"{store.url}&compression=zstd").close()


def test_nobody_listening_is_told_with_the_last_error() -> None:
    sink = open_sink("kafka://127.0.0.1:9/events?timeout_s=1")
    with pytest.raises(SinkUnavailable, match=r"topic 'events' at 127\.0\.0\.1:9: .*the last error: .*"):
        sink.write([request(1)])
    sink.close()


def test_the_password_is_never_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    (tmp_path / "password").write_text("hunter2\n")
    options = f"password_file={tmp_path}/password&security=SASL_PLAINTEXT&mechanism=PLAIN&timeout_s=1"
    sink = open_sink(f"kafka://user@127.0.0.1:9/events?{options}")
    with pytest.raises(SinkUnavailable) as refused:
        sink.write([request(1)])
    for text in (repr(sink), repr(vars(sink)), str(refused.value), caplog.text):
        assert "hunter2" not in text
    sink.close()

"""ClickHouse: sums that count a repeated write once, migrations, and what is said when the server is not there."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kong_plugins.adapters.books.rows import COLUMNS
from kong_plugins.adapters.sinks import clickhouse_schema as schema
from kong_plugins.adapters.sinks import open_sink
from kong_plugins.application.ports import SinkUnavailable
from tests.contract.sink_events import adjustment, booked_request, edited, request, reversal

pytest.importorskip("clickhouse_connect", reason="pip install 'kong-token-quota[clickhouse]'")

from tests.contract.sink_clickhouse import EmbeddedStore


@pytest.fixture
def store(tmp_path: Path) -> EmbeddedStore:
    pytest.importorskip("chdb", reason="no chdb: pip install chdb (534 MB)")
    return EmbeddedStore(tmp_path)


def write(store: EmbeddedStore, *batches) -> None:
    sink = open_sink(store.url)
    for batch in batches:
        assert sink.write(batch) == ()
    sink.close()


def test_a_sum_over_events_counts_a_repeated_write_once(store: EmbeddedStore) -> None:
    """Where a sum over what was written does not."""
    batch = [request(number) for number in range(50)]
    write(store, batch, batch, batch[:10])
    expected = sum(booked_request(number).prompt for number in range(50))
    assert store.rows("SELECT count(), sum(prompt) FROM events") == [(50, expected)]
    ((written,),) = store.rows("SELECT sum(prompt) FROM events_written")
    assert written > expected


def test_a_repeated_write_in_another_month_counts_once(store: EmbeddedStore) -> None:
    """By its id alone, also where a merge never meets the two."""
    write(store, [request(1)], [edited(request(1), _time="2027-03-01T00:00:00.000Z", prompt=9999), request(2)])
    assert store.read_back() == [booked_request(1), booked_request(2)]


def test_a_batch_may_have_events_of_any_months(store: EmbeddedStore) -> None:
    """More than the hundred that a server would take in one insert."""
    moments = [f"{year}-{month:02}-01T00:00:00.000Z" for year in range(2000, 2012) for month in range(1, 13)]
    write(store, [edited(request(number), _time=moment) for number, moment in enumerate(moments)])
    assert store.rows("SELECT count(), uniqExact(toYYYYMM(time)) FROM events") == [(144, 144)]


def test_every_column_has_what_the_event_says(store: EmbeddedStore) -> None:
    write(store, [request(1, credential="0123456789abcdef", over=("soft",)), reversal(1), adjustment(3, 70)])
    (names,) = {tuple(name for name, *_ in store.rows("DESCRIBE TABLE events"))}
    assert names == COLUMNS
    kinds = {row[1]: dict(zip(names, row, strict=True)) for row in store.rows("SELECT * FROM events")}
    asked, back, money = kinds["request"], kinds["reversal"], kinds["adjustment"]
    assert (asked["time"].isoformat(), asked["stream"], asked["status"]) == ("2026-11-18T12:00:00.017000", True, 200)
    assert (asked["budgets"], asked["over"], asked["attributes"]) == (["daily"], ["soft"], {"team": "blue"})
    assert asked["posted"] == {"daily": 285, "monthly|model=deepseek-r1": 285}
    assert (back["prompt"], back["completion"], back["reverses"]) == (-201, -41, "request-0000001")
    assert (back["stream"], back["budgets"], back["attributes"], back["posted"]) == (None, [], {}, {"daily": -285})
    assert (money["amount"], money["currency"], money["account"], money["model"]) == (70, "EUR", "goodwill", None)


def test_a_newer_schema_is_refused_with_the_fix(store: EmbeddedStore) -> None:
    write(store, [request(1)])
    client = store.connect()
    client.command(f"INSERT INTO books_schema (version) VALUES ({schema.VERSION + 1})")
    client.close()
    sink = open_sink(store.url)
    with pytest.raises(SinkUnavailable, match=f"schema {schema.VERSION + 1}.* upgrade"):
        sink.write([request(2)])
    sink.close()
    assert store.read_back() == [booked_request(1)]


def test_a_migration_that_was_cut_short_is_made_again(store: EmbeddedStore) -> None:
    """Its statements are there, its version is not."""
    write(store, [request(1)])
    client = store.connect()
    client.command("TRUNCATE TABLE books_schema")
    client.close()
    write(store, [request(2)])
    assert store.rows("SELECT max(version) FROM books_schema") == [(schema.VERSION,)]
    assert store.read_back() == [booked_request(1), booked_request(2)]


@pytest.fixture
def refusing_server() -> Iterator[int]:
    """Answers every request as a server does whose password is another."""
    listener = socket.create_server(("127.0.0.1", 0))
    body = b"Code: 516. DB::Exception: Authentication failed"

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(1 << 16)
                connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def test_a_server_that_is_not_there_or_refuses_is_waited_for(
    refusing_server: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And the password is in nothing that is said about it."""
    monkeypatch.setenv("TOKEN_QUOTA_CLICKHOUSE_PASSWORD", "hunter2")
    for port, reason in ((refusing_server, "Authentication failed"), (9, "refused")):
        sink = open_sink(f"clickhouse://billing@127.0.0.1:{port}/books?timeout_s=5")
        with pytest.raises(SinkUnavailable, match=reason) as refused:
            sink.write([request(1)])
        for text in (repr(sink), repr(vars(sink)), str(refused.value), caplog.text):
            assert "hunter2" not in text
        sink.close()


def test_urls_are_checked_before_anything_is_written() -> None:
    for url, reason in {
        "clickhouse://host:8123/": "a host and a database",
        "clickhouse:///books": "a host and a database",
        "clickhouse://host/books`; DROP": "a host and a database",
        "clickhouse://user:hunter2@host/books": "password_file",
        "clickhouse://host/books?secure=perhaps": "secure",
        "clickhouse://host/books?ca_file=/ca.pem": "TLS: secure=true",
        "clickhouse://host/books?secure=false&ca_file=/ca.pem": "TLS: secure=true",
        "clickhouse://host/books?password_file=/none": "cannot read the secret",
        "clickhouse://host/books?cluster=main": "no option cluster",
    }.items():
        with pytest.raises(ValueError, match=reason) as refused:
            open_sink(url)
        assert "hunter2" not in str(refused.value)

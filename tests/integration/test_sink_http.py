"""CloudEvents over HTTP: what each answer means, and where the token goes and does not."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from starlette.responses import Response

from kong_plugins.adapters.sinks import open_sink
from kong_plugins.adapters.sinks.http_sink import HttpSink
from kong_plugins.adapters.sinks.secrets import Secret
from kong_plugins.application.ports import SinkUnavailable
from tests.contract.sink_events import booked_request, request
from tests.contract.sink_servers import HttpStore, Receiver

TOKEN = "om_0123456789"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    receiver.start()
    yield receiver
    receiver.stop()


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKEN_QUOTA_CLOUDEVENTS_TOKEN", raising=False)


def test_batches_are_of_the_size_asked_for_and_share_a_connection(receiver: Receiver) -> None:
    sink = open_sink(HttpStore(receiver, batch=4).url)
    assert sink.write([request(number) for number in range(10)]) == ()
    sink.close()
    kind = "application/cloudevents-batch+json"
    assert receiver.requests == [(kind, None, 4), (kind, None, 4), (kind, None, 2)]
    assert len(receiver.connections) == 1


def test_one_by_one_they_are_no_batches(receiver: Receiver) -> None:
    store = HttpStore(receiver, batch=1)
    sink = open_sink(store.url)
    assert sink.write([request(1), request(2), request(1)]) == ()
    sink.close()
    assert receiver.requests == [("application/cloudevents+json", None, 1)] * 2
    assert store.read_back() == [booked_request(1), booked_request(2)]


@pytest.mark.parametrize("status", [400, 413, 422])
def test_an_event_that_the_other_side_refuses_is_found_and_rejected(receiver: Receiver, status: int) -> None:
    """Two of a hundred: the rest is there, and nothing is asked more often than halving takes."""
    bad = {request(number).event_id for number in (17, 80)}

    def refuse(events: list[dict]) -> Response | None:
        return Response("no such meter", status) if bad & {event["id"] for event in events} else None

    receiver.answer = refuse
    store = HttpStore(receiver)
    sink = open_sink(store.url)
    rejected = sink.write([request(number) for number in range(100)])
    sink.close()
    assert {refusal.entry.event_id for refusal in rejected} == bad
    assert all(f"answered {status}" in each.reason and "no such meter" in each.reason for each in rejected)
    assert store.read_back() == [booked_request(number) for number in range(100) if number not in (17, 80)]
    assert len(receiver.requests) < 30


@pytest.mark.parametrize("status", [301, 401, 403, 404, 405, 415, 429, 500, 503])
def test_any_other_answer_is_about_the_whole_batch(receiver: Receiver, status: int) -> None:
    """Nothing is rejected for an address, a token or a server that is wrong, and it is asked once only."""
    receiver.answer = lambda events: Response("sorry", status)
    store = HttpStore(receiver)
    sink = open_sink(store.url)
    with pytest.raises(SinkUnavailable, match=f"answered {status} .*: sorry"):
        sink.write([request(number) for number in range(10)])
    assert len(receiver.requests) == 1
    receiver.answer = lambda events: None
    assert sink.write([request(1)]) == ()
    sink.close()
    assert store.read_back() == [booked_request(1)]


@pytest.mark.parametrize("after", ["120", formatdate(9_999_999_999, usegmt=True)], ids=["seconds", "date"])
def test_the_other_side_is_left_alone_for_as_long_as_it_asks(receiver: Receiver, after: str) -> None:
    """And no longer than five minutes, whatever its clock says."""
    now = [1000.0]
    receiver.answer = lambda events: Response(status_code=429, headers={"Retry-After": after})
    store = HttpStore(receiver)
    address = urlsplit(f"http://127.0.0.1:{receiver.port}/api/v1/events")
    sink = HttpSink(address, token=Secret("TOKEN_QUOTA_CLOUDEVENTS_TOKEN"), now=lambda: now[0])
    for _ in range(3):
        with pytest.raises(SinkUnavailable):
            sink.write([request(1)])
    assert len(receiver.requests) == 1
    receiver.answer = lambda events: None
    now[0] += 119
    with pytest.raises(SinkUnavailable, match="left alone for another"):
        sink.write([request(1)])
    now[0] += 182
    assert sink.write([request(1)]) == ()
    sink.close()
    assert store.read_back() == [booked_request(1)]


@pytest.mark.parametrize("after", ["soon", "-5", "", formatdate(0, usegmt=True)])
def test_a_retry_after_that_says_nothing_delays_nothing(receiver: Receiver, after: str) -> None:
    receiver.answer = lambda events: Response(status_code=503, headers={"Retry-After": after})
    sink = open_sink(HttpStore(receiver).url)
    for _ in range(2):
        with pytest.raises(SinkUnavailable, match="answered 503"):
            sink.write([request(1)])
    assert len(receiver.requests) == 2
    sink.close()


def test_an_answer_that_is_lost_is_asked_for_again_and_counts_once() -> None:
    """The connection ends after the events came: they are sent again, and known by source and id."""
    seen: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for answer in (b"", b"HTTP/1.1 204 No Content\r\n\r\n", b"", b"HTTP/1.1 204 No Content\r\n\r\n"):
            if not seen or not seen[-1].endswith(b"kept"):
                connection, _ = listener.accept()
            head, _, body = connection.recv(1 << 20).partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            while len(body) < length:
                body += connection.recv(1 << 20)
            connection.sendall(answer)
            seen.append(body + (b"kept" if answer else b""))
            if not answer:
                connection.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    sink = open_sink(f"cloudevents+http://127.0.0.1:{listener.getsockname()[1]}/?timeout_s=30")
    with pytest.raises(SinkUnavailable, match="no answer"):
        sink.write([request(1)])
    assert sink.write([request(1)]) == ()
    assert sink.write([request(2)]) == ()  # its kept connection ends: once more, on a new one
    thread.join(30)
    sink.close()
    listener.close()
    assert [b"request-0000001" in body for body in seen] == [True, True, False, False]


def test_silence_is_no_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sink = open_sink(f"cloudevents+http://127.0.0.1:{listener.getsockname()[1]}/?timeout_s=0.05")
        with pytest.raises(SinkUnavailable, match=r"no answer from .* timed out"):
            sink.write([request(1)])
        sink.close()


def test_the_token_is_sent_and_never_shown(
    receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """From the environment or a file; a changed file is seen with the next request."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("TOKEN_QUOTA_CLOUDEVENTS_TOKEN", TOKEN)
    sink = open_sink(HttpStore(receiver).url)
    sink.write([request(1)])
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}-old\n")
    by_file = open_sink(HttpStore(receiver, token_file=file).url)
    by_file.write([request(2)])
    file.write_text(f"{TOKEN}-new\n")
    receiver.answer = lambda events: Response(status_code=401)
    with pytest.raises(SinkUnavailable, match=f"answered 401 .*the token is from .*{file}") as refused:
        by_file.write([request(3)])
    sent = [authorization for _, authorization, _ in receiver.requests]
    assert sent == [f"Bearer {TOKEN}", f"Bearer {TOKEN}-old", f"Bearer {TOKEN}-new"]
    file.write_text(f"{TOKEN}\nnext line")
    with pytest.raises(SinkUnavailable, match="characters") as unsendable:
        by_file.write([request(3)])
    file.unlink()
    with pytest.raises(SinkUnavailable, match="cannot read the secret"):
        by_file.write([request(3)])
    shown = [repr(sink), repr(by_file), repr(vars(by_file)), str(refused.value), str(unsendable.value), caplog.text]
    assert not any(TOKEN in text for text in shown)


def test_urls_are_checked_before_anything_is_written(tmp_path: Path) -> None:
    """With the fix, and without repeating a password."""
    for url, reason in {
        "cloudevents+http:///path": "takes a host",
        "cloudevents+http://user@host/path": "takes a host",
        "cloudevents+http://user:hunter2@host/path": "password_file",
        "kafka://user:hunter2@host/topic": "password_file",
        "kafka:///topic": "servers and a topic",
        "kafka://host:9092/": "servers and a topic",
        "cloudevents+http://host/path?batch=0": "whole number",
        "cloudevents+http://host/path?timeout_s=never": "number of seconds",
        "cloudevents+http://host/path?retries=3": "has no option retries",
        "cloudevents+http://host/path?batch=3&batch=4": "twice",
        f"cloudevents+http://host/path?token_file={tmp_path}/none": "cannot read the secret",
        f"cloudevents+https://host/path?ca_file={tmp_path}/none": "cannot read ca_file",
        "cloudevents+http://host/path?ca_file=/ca.pem": r"TLS: cloudevents\+https://",
        "kafka://host:9092/topic?ca_file=/ca.pem": "TLS: security=SSL",
        "kafka://user@host:9092/topic?security=SASL_PLAINTEXT&key_file=/key.pem": "TLS: security=SSL",
        f"kafka://host:9092/topic?password_file={tmp_path}/none": "a user: kafka://USER@",
        "kafka://user@host:9092/topic?security=SSL": "SASL only: security=SASL_SSL",
        "kafka://user@host:9092/topic": "SASL only: security=SASL_SSL",
        "duckdb://books.duckdb": "three slashes",
        "jsonl:///tmp/x?rotate=weekly": "daily",
        "ftp://host/path": "a sink's URL is",
        "books.duckdb": "a sink's URL is",
    }.items():
        with pytest.raises(ValueError, match=reason) as refused:
            open_sink(url)
        assert "hunter2" not in str(refused.value)

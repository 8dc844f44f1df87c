"""The collector's small parts: names, tokens, addresses, jobs, what a person sees."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import pytest
from rich.console import Console

from kong_plugins.adapters.outbox import SinkStatus
from kong_plugins.application.deliver import Progress, State
from kong_plugins.application.ports import LedgerUnavailable
from kong_plugins.collector.access import TOKEN_ENV, Tokens, is_loopback, read_tokens
from kong_plugins.collector.http_server import ListenError, bind
from kong_plugins.collector.metrics import Metrics
from kong_plugins.collector.periodic import PeriodicJob, run_periodically
from kong_plugins.collector.sink_names import name_and_url
from kong_plugins.collector.terminal import age, line, table

TOKEN = "correct-horse-battery"


@pytest.mark.parametrize(
    ("url", "name", "rest"),
    [
        ("duckdb:///var/books.duckdb", "duckdb:/var/books.duckdb", "duckdb:///var/books.duckdb"),
        ("kafka://b1:9092/billing?acks=all", "kafka:b1:9092/billing", "kafka://b1:9092/billing?acks=all"),
        ("clickhouse://me:pw@host:8123/db", "clickhouse:host:8123/db", "clickhouse://me:pw@host:8123/db"),
        ("cloudevents+http://host/path/", "cloudevents+http:host/path", "cloudevents+http://host/path/"),
        ("jsonl:///lines?rotate=daily&name=archive", "archive", "jsonl:///lines?rotate=daily"),
    ],
)
def test_a_sink_is_named_by_where_its_events_go(url: str, name: str, rest: str) -> None:
    """Neither password nor settings are part of it, so that changing them keeps the position."""
    assert name_and_url(url) == (name, rest)


@pytest.mark.parametrize(
    "url", ["books.duckdb", "jsonl:///x?name=", "jsonl:///x?name=a%20b", "jsonl:///x?name=released"]
)
def test_what_does_not_do_as_a_name_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="sink"):
        name_and_url(url)


def test_tokens_come_from_a_file_or_the_environment(tmp_path: Path) -> None:
    """The file goes first; what could be guessed, and a file without any, is refused."""
    file = tmp_path / "tokens"
    file.write_text(f"{TOKEN}\nanother-long-token\n")
    tokens = read_tokens(file, {TOKEN_ENV: "environment-token"})
    assert tokens.allow({"authorization": "Bearer another-long-token"})
    assert not tokens.allow({"authorization": "Bearer environment-token"})
    assert read_tokens(None, {TOKEN_ENV: "environment-token"}).allow({"x-collector-token": "environment-token"})
    assert not read_tokens(None, {})
    for text in ("", "short\n"):
        file.write_text(text)
        with pytest.raises(ValueError, match="token"):
            read_tokens(file, {})
    with pytest.raises(ValueError, match="cannot read"):
        read_tokens(tmp_path / "missing", {})


def test_others_are_not_served_without_a_token() -> None:
    """An address that others reach needs a token; any address has to be one that can be had."""
    with pytest.raises(ListenError, match="token"):
        bind("0.0.0.0:0", Tokens())
    assert [is_loopback(host) for host in ("127.0.0.9", "::1", "localhost", "10.0.0.1", "::", "collector")] == [
        *(True, True, True),
        *(False, False, False),
    ]
    with bind("127.0.0.1:0", Tokens()) as taken:
        taken.listen()
        with pytest.raises(ListenError, match="in use"):
            bind(f"127.0.0.1:{taken.getsockname()[1]}", Tokens())
    for listen in ("3000", ":3000", "127.0.0.1:", "127.0.0.1:99999", "127.0.0.1:http"):
        with pytest.raises(ListenError, match="HOST:PORT"):
            bind(listen, Tokens())


def test_a_job_that_fails_stops_no_other() -> None:
    """Each runs at once and then by its own clock, whatever the others raise."""
    ran: dict[str, int] = {"away": 0, "defect": 0, "good": 0}
    failed: list[str] = []
    done = threading.Event()

    def run(name: str, error: Exception | None) -> None:
        ran[name] += 1
        if ran["good"] >= 3:
            done.set()
        if error is not None:
            raise error

    jobs = [
        PeriodicJob("away", 0.001, lambda: run("away", LedgerUnavailable("away"))),
        PeriodicJob("defect", 0.001, lambda: run("defect", KeyError("defect"))),
        PeriodicJob("good", 0.001, lambda: run("good", None)),
        PeriodicJob("rare", 3600.0, lambda: ran.__setitem__("rare", ran.get("rare", 0) + 1)),
    ]
    run_periodically(jobs, lambda seconds: not done.wait(seconds), failed.append)
    assert ran["rare"] == 1
    assert min(ran["away"], ran["defect"], ran["good"]) >= 3
    assert {*failed} == {"away", "defect"}


def test_metrics_name_sinks_and_no_tenants() -> None:
    """Every figure an alert needs, of this process and of the ledger."""
    progress = {"one": Progress(read=12, written=10, acknowledged=9, rejected=2, state=State.UP)}
    status = (SinkStatus("gone", 0, 70, 12.5, None, 3), SinkStatus("one", 1, 5, 0.25, 0.1, 2))
    metrics = Metrics(progress, lambda: status)
    metrics.observe_write("one", 10, 0.02)
    page, content_type = metrics.page()
    assert content_type.startswith("text/plain")
    lines = set(page.decode().splitlines())
    prefix = "token_quota_collector"
    assert {
        f'{prefix}_events_written_total{{sink="one"}} 10.0',
        f'{prefix}_events_rejected_total{{sink="one"}} 2.0',
        f'{prefix}_sink_up{{sink="one"}} 1.0',
        f'{prefix}_sink_lag_events{{sink="one"}} 6.0',
        f'{prefix}_sink_lag_events{{sink="gone"}} 70.0',
        f'{prefix}_sink_oldest_seconds{{sink="gone"}} 12.5',
        f'{prefix}_sink_dead_letters{{sink="gone"}} 3.0',
        f'{prefix}_sink_unattended{{sink="gone"}} 1.0',
        f'{prefix}_sink_unattended{{sink="one"}} 0.0',
        f'{prefix}_batch_events_bucket{{le="10.0",sink="one"}} 1.0',
    } <= lines


def test_a_person_sees_each_sink_with_what_is_wrong() -> None:
    progress = {"one": Progress(written=1234, state=State.DOWN, problem="[no] disk")}
    status = (SinkStatus("gone", 0, 70, 3700.0, None, 3), SinkStatus("one", 1, 5, 0.25, 0.1, 2))
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table(status, progress, {"one": 99.6}))
    text = console.export_text()
    assert "1,234" in text
    assert "[no] disk" in text
    assert "no collector" in text
    assert "1h 1m" in text
    assert "100 events/s" in line("one", progress["one"], status[1], 99.6)
    assert [age(None), age(0.25), age(61)] == ["-", "0.2s", "1m 1s"]

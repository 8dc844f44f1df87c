"""`token-quota collector` as an operator meets it: real processes, a real ledger, real books."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import redis
from outbox_parts import event_of, fill
from typer.testing import CliRunner

from kong_plugins.adapters.books import open_books
from kong_plugins.adapters.books.engine_counts import load_scrapes
from kong_plugins.adapters.ledger import EmbeddedValkey, connect_ledger
from kong_plugins.cli.main import app
from kong_plugins.collector.engine_job import EngineJob

TOKEN = "correct-horse-battery"


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(autouse=True)
def empty(valkey: EmbeddedValkey) -> None:
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()


def collector(valkey: EmbeddedValkey, *arguments: str) -> tuple[int, str]:
    """A command that ends by itself, in this process. Returns its status and all it said."""
    result = CliRunner().invoke(app, ["collector", *arguments, "--ledger", valkey.url], env={"COLUMNS": "200"})
    return result.exit_code, result.output


def test_an_operator_collects_looks_retries_and_forgets(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """Bare `collector` with its options runs; SIGTERM ends it with 0 and every event in the books; what the books
    refuse is listed with its reason and can be dropped; a sink that is no more is forgotten."""
    ids = fill(valkey.url, 300)
    ledger = connect_ledger(valkey.url)
    newer = event_of("newer", "tenant-1").replace(b'"data":{"schema":1', b'"data":{"schema":99')
    ledger.record("tenant-1", "newer", newer)
    ledger.close()
    (tmp_path / "token").write_text(TOKEN)
    books = tmp_path / "books.duckdb"
    command = [sys.executable, "-m", "kong_plugins.cli", "collector", "--ledger", valkey.url, "--listen", "127.0.0.1:0"]
    command += ["--sink", f"duckdb://{books}?name=books", "--token-file", str(tmp_path / "token"), "--linger-ms", "20"]
    environment = {**os.environ, "COLUMNS": "200"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, umask=0o022)
    assert process.stderr is not None
    try:
        url = process.stderr.readline().split()[1]
        post = urllib.request.Request(
            f"{url}/events",
            event_of("posted", "tenant-2"),
            {"Content-Type": "application/cloudevents+json", "Authorization": f"Bearer {TOKEN}"},
        )
        assert json.loads(urllib.request.urlopen(post, timeout=10).read()) == {"new": 1}
        while True:
            status, said = collector(valkey, "status", "--json")
            (found,) = json.loads(said) or ({"behind": None},)
            if status == 0 and found["behind"] == 0 and found["dead"]:
                break
        assert (found["sink"], found["dead"], found["attended"]) == ("books", 1, True)
        status, said = collector(valkey, "forget", "books")
        assert (status, "stop it first" in said) == (1, True)
        page = urllib.request.urlopen(f"{url}/metrics", timeout=10).read().decode()
        assert 'token_quota_collector_events_written_total{sink="books"} 301.0' in page
        assert urllib.request.urlopen(f"{url}/readyz", timeout=10).status == 200
    finally:
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(30) == 0
    assert "books: stopped" in rest
    assert TOKEN not in rest
    assert books.stat().st_mode & 0o777 == 0o640  # for the group, as its umask has it, and for nobody else
    with open_books(books, read_only=True) as connection:
        assert {row[0] for row in connection.execute("SELECT id FROM events").fetchall()} == {*ids, "posted"}

    status, said = collector(valkey, "dead", "list")
    assert (status, "newer" in said, "schema 99" in said) == (0, True, True)
    assert collector(valkey, "dead", "retry")[0] == 1  # neither ids nor --all
    assert collector(valkey, "dead", "drop", "no-such")[0] == 1
    assert collector(valkey, "dead", "retry", "newer") == (0, "1 back in the outbox\n")
    status, said = collector(valkey, "status")
    assert (status, "no collector" in said) == (0, True)
    assert collector(valkey, "drain", "--sink", f"duckdb://{books}?name=books")[0] == 0
    assert collector(valkey, "dead", "drop", "--all", "--sink", "books") == (0, "1 dropped\n")
    assert collector(valkey, "dead", "list") == (0, "no dead letters\n")
    assert collector(valkey, "forget", "nobody")[0] == 1
    assert collector(valkey, "forget", "books") == (0, "forgot books, which lacked 0 events\n")


def test_drain_delivers_everything_and_says_when_it_could_not(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """0 when every sink has all of it and the outbox is empty; 1 when a sink cannot be written to in time."""
    fill(valkey.url, 100)
    sinks = ("--sink", f"duckdb://{tmp_path}/a.duckdb", "--sink", f"duckdb://{tmp_path}/b.duckdb")
    status, said = collector(valkey, "drain", *sinks)
    assert (status, said.count("100 written, 0 behind")) == (0, 2)
    for name in ("a", "b"):
        with open_books(tmp_path / f"{name}.duckdb", read_only=True) as connection:
            assert connection.execute("SELECT count(*) FROM events").fetchone() == (100,)
    with redis.Redis.from_url(valkey.url) as client:
        assert sum(client.xlen(f"{{p{partition}}}:outbox") for partition in range(64)) == 0
    fill(valkey.url, 1, prefix="late")
    (tmp_path / "no directory").touch()
    status, said = collector(
        valkey, "drain", "--sink", f"duckdb://{tmp_path}/no directory/x.duckdb?name=x", "--timeout", "1s"
    )
    assert status == 1
    assert "1 behind" in said


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (("run", "--sink", "nothing://x/y"), "a sink's URL is"),
        (("run", "--sink", "duckdb:///a?name=one", "--sink", "duckdb:///b?name=one"), "another name"),
        (("--listen", "0.0.0.0:3000"), "--token-file"),
        (("run", "--listen", "nowhere"), "HOST:PORT"),
        (("run", "--sink", "jsonl:///tmp/x", "--engine", "http://127.0.0.1:1"), "add --sink duckdb"),
        (("run", "--keep", "soon"), "a time is a number"),
        (("run", "--token-file", "/no/such/file"), "cannot read the token file"),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(
    arguments: tuple[str, ...], advice: str, valkey: EmbeddedValkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, status 1, no traceback."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("TOKEN_QUOTA_COLLECTOR_TOKEN", raising=False)
    status, said = collector(valkey, *arguments)
    assert status == 1
    assert advice in said.replace("\n", " ")
    assert "Traceback" not in said


def test_engines_counters_are_kept_through_an_outage_of_either(tmp_path: Path) -> None:
    """What was scraped while the books could not be opened is stored later; an engine that is away costs nothing."""

    class Engine(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            names = ("prompt_tokens", "generation_tokens", "prefix_cache_hits")
            page = "".join(f'vllm:{name}_total{{engine="0",model_name="m"}} 7\n' for name in names)
            page += 'vllm:request_success_total{engine="0",finished_reason="stop",model_name="m"} 1\n'
            page += 'vllm:num_requests_running{engine="0",model_name="m"} 0\n'
            self.send_response(200)
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, *_: object) -> None:
            """Not in a test's output."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Engine) as server:
        threading.Thread(target=server.serve_forever).start()
        blocked = tmp_path / "folder"
        blocked.touch()
        engines = [f"http://127.0.0.1:{server.server_port}", "http://127.0.0.1:1"]
        job = EngineJob(engines, blocked / "books.duckdb")
        job.run()
        job.run()
        blocked.unlink()
        job.run()
        server.shutdown()
    job.run()  # nothing answers any more, nothing is stored
    with open_books(blocked / "books.duckdb", read_only=True) as connection:
        scrapes = load_scrapes(connection, 0, 2**62)
    assert [(scrape.model, scrape.prompt) for scrape in scrapes] == [("m", 7)] * 3

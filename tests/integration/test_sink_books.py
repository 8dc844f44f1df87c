"""The books' file: shared in turns, refused with the reason, and never half made."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pytest

from kong_plugins.adapters.books import BooksUnavailable, open_books, schema, turns
from kong_plugins.adapters.books.rows import COLUMNS
from kong_plugins.adapters.sinks import duckdb_sink, open_sink
from tests.contract.sink_events import adjustment, edited, request, reversal
from tests.contract.sink_stores import held_open

CHILD = [sys.executable, "-m", "tests.integration.sink_books_child"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "books.duckdb"


@contextmanager
def child(task: str, argument: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([*CHILD, task, argument], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def fill(path: Path, *entries) -> None:
    sink = open_sink(f"duckdb://{path}")
    assert sink.write(entries) == ()
    sink.close()


def rows(path: Path, query: str = "SELECT id FROM events ORDER BY id"):
    with open_books(path, read_only=True) as books:
        return books.execute(query).fetchall()


def test_the_table_has_the_columns_of_a_row(path: Path) -> None:
    """In the order that rows have their values in."""
    fill(path, request(1))
    assert tuple(name for (name,) in rows(path, "SELECT column_name FROM (DESCRIBE events)")) == COLUMNS


def test_every_column_has_what_the_event_says(path: Path) -> None:
    """Of each kind; what does not apply is NULL, counts are 0 then."""
    full = edited(
        request(1, credential="0123456789abcdef", consumer="c", service="s", route="r", over=("soft",)),
        engine_id="chatcmpl-1",
        proxy_ms=4,
        choices=2,
        prompt_bound=9,
        completion_bound=8,
    )
    fill(path, full, reversal(1), adjustment(3, 70))
    with open_books(path, read_only=True) as books:
        result = books.execute("SELECT *, epoch_ms(time) AS time_ms FROM events ORDER BY kind")
        names = [column[0] for column in result.description]
        money, asked, back = (
            {name: value for name, value in zip(names, row, strict=True) if value is not None and name != "time"}
            for row in result.fetchall()
        )
    about = {"tenant": "tenant_1", "schema": 1}
    posted = {"daily": 285, "monthly|model=deepseek-r1": 285}
    assert asked == about | {
        "id": "request-0000001",
        "kind": "request",
        "source": "node-1",
        "time_ms": 1_795_003_200_017,
        "model": "deepseek-r1",
        "credential": "0123456789abcdef",
        "consumer": "c",
        "service": "s",
        "route": "r",
        "endpoint": "chat",
        "stream": True,
        "prompt": 201,
        "completion": 41,
        "cached": 1,
        "reasoning": 1,
        "evidence": "exact",
        "outcome": "completed",
        "status": 200,
        "upstream_status": "200",
        "finish": "stop",
        "engine_id": "chatcmpl-1",
        "started_ms": 1_795_003_200_010,
        "first_ms": 1_795_003_200_013,
        "last_ms": 1_795_003_200_017,
        "proxy_ms": 4,
        "choices": 2,
        "prompt_bound": 9,
        "completion_bound": 8,
        "budgets": ["daily"],
        "over": ["soft"],
        "attributes": {"team": "blue"},
        "posted": posted,
    }
    assert back == about | {
        "id": "reversal:request-0000001",
        "kind": "reversal",
        "source": "node-1",
        "time_ms": 1_795_003_200_017,
        "model": "deepseek-r1",
        "endpoint": "chat",
        "evidence": "exact",
        "reason": "retried",
        "prompt": -201,
        "completion": -41,
        "cached": -1,
        "reasoning": -1,
        "posted": {"daily": -285},
        "reverses": "request-0000001",
    }
    assert money == about | {
        "id": "credit-3",
        "kind": "adjustment",
        "source": "operator",
        "time_ms": 1_795_003_200_000,
        "prompt": 0,
        "completion": 0,
        "cached": 0,
        "reasoning": 0,
        "posted": {},
        "amount": 70,
        "currency": "EUR",
        "account": "goodwill",
        "reason": "incident of Tuesday",
        "adjustment": "credit",
    }


def test_readers_get_in_while_a_writer_never_pauses(path: Path) -> None:
    """Ten times in a row, each seeing whole batches only, and the writer goes on meanwhile; it gives the file up to
    nobody that it does not see."""
    seen = []
    with child("write_and_keep", f"duckdb://{path}") as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        for _ in range(10):
            with open_books(path, read_only=True, wait_s=20) as books:
                ((count,),) = books.execute("SELECT count(*) FROM events").fetchall()
            seen.append(count)
        assert writer.poll() is None
    assert all(count % 200 == 0 for count in seen)
    assert seen == sorted(seen)
    assert seen[-1] > seen[0]


def test_a_writer_gives_the_file_up_when_it_has_nothing_to_write(path: Path) -> None:
    sink = open_sink(f"duckdb://{path}")
    sink.write([request(1)])
    get_in_unseen(path)
    sink.write([request(2)])
    sink.close()
    assert rows(path) == [("request-0000001",), ("request-0000002",)]


def test_an_idle_writer_gives_way_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it would keep the file for the next batch."""
    monkeypatch.setattr(duckdb_sink, "IDLE_S", 3600.0)
    sink = open_sink(f"duckdb://{path}")
    assert sink.write([request(1)]) == ()
    with open_books(path, read_only=True, wait_s=20) as books:
        assert books.execute("SELECT count(*) FROM events").fetchall() == [(1,)]
    sink.close()


def test_one_that_waits_unseen_gets_in_too(path: Path) -> None:
    """As DuckDB's own shell would, tried again and again."""
    with child("write_and_give_up", f"duckdb://{path}") as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        get_in_unseen(path)
        assert writer.poll() is None


def get_in_unseen(path: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            return duckdb.connect(str(path), read_only=True).close()
        except duckdb.Error:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_the_holder_is_named(path: Path) -> None:
    """To a reader and to a second writer, be the holder another process or this one."""
    fill(path, request(1))
    keep = (
        f"import os, sys, duckdb; c = duckdb.connect({str(path)!r}); print(os.getpid(), flush=True); sys.stdin.read()"
    )
    with held_open([sys.executable, "-c", keep]) as (holder, _):
        for read_only in (True, False):
            with pytest.raises(BooksUnavailable, match=f"in use by process {holder.pid}:") as busy:
                open_books(path, read_only=read_only, wait_s=0.05)
            assert busy.value.holder == holder.pid
    with open_books(path, read_only=False), pytest.raises(BooksUnavailable, match="this very process") as mine:
        open_books(path, read_only=True, wait_s=0.05)
    assert mine.value.holder == os.getpid()
    with open_books(path, read_only=True), pytest.raises(BooksUnavailable, match="this very process"):
        open_books(path, read_only=False, wait_s=0.05)


def test_one_that_waits_is_seen_for_as_long_as_it_waits(path: Path) -> None:
    assert not turns.somebody_waits_for(path)
    with turns.waiting_for(path), turns.waiting_for(path):
        assert turns.somebody_waits_for(path)
    assert not turns.somebody_waits_for(path)


def test_one_that_cannot_write_beside_the_file_waits_unseen(tmp_path: Path) -> None:
    with turns.waiting_for(tmp_path / "missing" / "books.duckdb"):
        assert not turns.somebody_waits_for(tmp_path / "missing" / "books.duckdb")


def test_threads_write_in_turns(path: Path) -> None:
    """The same events from four of them: each is there once."""
    sink = open_sink(f"duckdb://{path}")
    parts = [[request(number) for number in range(first, first + 300)] for first in (0, 100, 200, 300)]
    threads = [threading.Thread(target=sink.write, args=(part,)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sink.close()
    assert len(rows(path)) == 600


def test_what_a_killed_writer_left_in_its_log_can_be_read_without_writing(path: Path) -> None:
    with child("write_without_pause", f"duckdb://{path}") as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
    assert rows(path)[:200] == [(f"request-{number:07}",) for number in range(200)]


def test_a_full_disk_is_no_loss(path: Path) -> None:
    """What was acknowledged before is there, what was not is written when there is room again."""
    with child("write_until_full", str(path)) as writer:
        said, errors = writer.communicate(timeout=60)
    first, last = said.splitlines()
    done = int(first.split()[0])
    assert "cannot write to the books" in first
    assert 1 < done < 100_000, errors
    assert int(last) == done + 1000
    assert rows(path) == [(f"request-{number:07}",) for number in range(done + 1000)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
def test_a_directory_where_nothing_may_be_written_is_named(tmp_path: Path) -> None:
    """Asked of a process that is not root."""
    tmp_path.chmod(0o755)
    read_only = Path("/usr/books.duckdb")
    with child("write_as_nobody", str(read_only)) as writer:
        said, errors = writer.communicate(timeout=60)
    assert f"cannot make the books {read_only}" in said, errors
    assert "ermission denied" in said


@pytest.mark.parametrize("content", [b"", b"no database " * 1000], ids=["empty", "other"])
def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    for read_only in (True, False):
        with pytest.raises(BooksUnavailable, match="not a valid DuckDB database"):
            open_books(path, read_only=read_only)
    assert path.read_bytes() == content


def test_somebody_elses_database_is_refused(path: Path) -> None:
    with duckdb.connect(str(path)) as other:
        other.execute("CREATE TABLE orders (id INTEGER)")
    for read_only in (True, False):
        with pytest.raises(BooksUnavailable, match="not our books: give another path"):
            open_books(path, read_only=read_only)


def test_a_newer_schema_is_refused_with_the_fix(path: Path) -> None:
    fill(path, request(1))
    with duckdb.connect(str(path)) as later:
        later.execute("INSERT INTO books_schema VALUES (?, now()::TIMESTAMP)", [schema.VERSION + 1])
    for read_only in (True, False):
        with pytest.raises(BooksUnavailable, match=f"schema {schema.VERSION + 1}.* upgrade"):
            open_books(path, read_only=read_only)


def test_an_older_schema_is_brought_up_to_date_by_the_writer_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what is in it; a migration that fails leaves the file as it was."""
    fill(path, request(1))
    migrations = schema.MIGRATIONS
    monkeypatch.setattr(schema, "VERSION", len(migrations) + 1)
    with pytest.raises(BooksUnavailable, match="start the collector once"):
        open_books(path, read_only=True)
    monkeypatch.setattr(schema, "MIGRATIONS", (*migrations, ("ALTER TABLE events ADD energy INTEGER", "NONSENSE")))
    with pytest.raises(BooksUnavailable, match="NONSENSE"):
        open_books(path, read_only=False)
    monkeypatch.setattr(schema, "MIGRATIONS", (*migrations, ("ALTER TABLE events ADD energy INTEGER",)))
    open_books(path, read_only=False).close()
    assert rows(path, "SELECT id, energy FROM events") == [("request-0000001", None)]
    assert rows(path, "SELECT max(version) FROM books_schema") == [(len(migrations) + 1,)]


def test_a_crash_while_the_file_is_made_leaves_nothing_in_the_way(path: Path) -> None:
    with child("die_making", str(path)) as maker:
        maker.wait(60)
    assert maker.returncode == -9
    assert not path.exists()
    fill(path, request(1))
    assert rows(path) == [("request-0000001",)]


def test_readers_are_told_how_books_come_about(path: Path) -> None:
    with pytest.raises(BooksUnavailable, match="start the collector"):
        open_books(path, read_only=True)
    assert not path.exists()

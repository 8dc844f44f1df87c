"""JSON Lines: files change by size and by day, a torn line is cut off, and a reader misses nothing meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kong_plugins.adapters.sinks import jsonl_sink, open_sink
from kong_plugins.adapters.sinks.jsonl_sink import JsonLinesSink, read_jsonl
from kong_plugins.application.ports import SinkUnavailable
from tests.contract.sink_events import POSTED, request
from tests.contract.sink_stores import held_open


class Calendar:
    """Stands still until it is turned."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC).replace(hour=23, minute=59)

    def __call__(self) -> datetime:
        return self.now


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("*.jsonl"))


def ids(directory: Path) -> list[str]:
    return [entry.event_id for entry in read_jsonl(directory)]


def expected(count: int) -> list[str]:
    return [f"request-{number:07}" for number in range(count)]


def test_a_line_is_position_event_and_posting(tmp_path: Path) -> None:
    """The event as the outbox has it."""
    sink = JsonLinesSink(tmp_path)
    sink.write([request(1)])
    sink.close()
    (line,) = (tmp_path / "events.jsonl").read_bytes().splitlines()
    assert json.loads(line) == {
        "position": request(1).position,
        "event": json.loads(request(1).event),
        "posted": dict(POSTED),
    }
    assert request(1).event in line
    assert list(read_jsonl(tmp_path)) == [request(1)]


def test_a_full_file_is_put_aside(tmp_path: Path) -> None:
    """After the batch that fills it, by one rename: each line is in one file, in order."""
    sink = JsonLinesSink(tmp_path, rotate_bytes=3000)
    for number in range(12):
        sink.write([request(number)])
    sink.close()
    files = names(tmp_path)
    assert len(files) > 2
    assert all((tmp_path / name).stat().st_size >= 3000 for name in files if name != "events.jsonl")
    lines = [line for name in files for line in (tmp_path / name).read_bytes().splitlines()]
    assert [json.loads(line)["event"]["id"] for line in lines] == expected(12)
    assert ids(tmp_path) == expected(12)


def test_a_new_day_begins_a_new_file(tmp_path: Path) -> None:
    """By UTC, with the first batch of that day, and also where the writer was started anew in between."""
    calendar = Calendar()
    sink = JsonLinesSink(tmp_path, daily=True, now=calendar)
    sink.write([request(0)])
    sink.write([request(1)])
    assert names(tmp_path) == ["events.jsonl"]
    calendar.now += timedelta(minutes=1)
    sink.write([request(2)])
    sink.write([request(3)])
    first_day = [name for name in names(tmp_path) if name != "events.jsonl"]
    assert len(first_day) == 1
    assert len((tmp_path / first_day[0]).read_bytes().splitlines()) == 2
    sink.close()
    calendar.now += timedelta(days=1)
    again = JsonLinesSink(tmp_path, daily=True, now=calendar)
    again.write([request(4)])
    again.close()
    assert len(names(tmp_path)) == 3
    assert ids(tmp_path) == expected(5)


def test_files_put_aside_in_one_second_have_names_of_their_own(tmp_path: Path) -> None:
    calendar = Calendar()
    sink = JsonLinesSink(tmp_path, rotate_bytes=1, now=calendar)
    for number in range(5):
        sink.write([request(number)])
    sink.close()
    assert len(names(tmp_path)) == 5
    assert ids(tmp_path) == expected(5)


@pytest.mark.parametrize("torn", [b'{"position":"1-0","ev', b"\0" * 70_000, b"{}"])
def test_a_torn_last_line_is_cut_off_and_never_joined_to_the_next(tmp_path: Path, torn: bytes) -> None:
    """A reader leaves it out before that, and no whole line goes with it."""
    sink = JsonLinesSink(tmp_path)
    sink.write([request(0), request(1)])
    sink.close()
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(torn)
    assert ids(tmp_path) == expected(2)
    again = JsonLinesSink(tmp_path)
    again.write([request(2)])
    again.close()
    assert torn not in (tmp_path / "events.jsonl").read_bytes().splitlines()
    assert ids(tmp_path) == expected(3)


def test_a_file_of_one_torn_line_is_emptied(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_bytes(b"{")
    sink = JsonLinesSink(tmp_path)
    sink.write([request(0)])
    sink.close()
    assert ids(tmp_path) == expected(1)


def test_a_reader_misses_nothing_that_is_put_aside_while_it_looks_for_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = JsonLinesSink(tmp_path, rotate_bytes=1)
    sink.write([request(0)])
    look = os.listdir

    def look_and_then(directory: Path) -> list[str]:
        found = look(directory)
        sink.write([request(1)])
        return found

    monkeypatch.setattr(jsonl_sink.os, "listdir", look_and_then)
    assert ids(tmp_path) == expected(1)
    monkeypatch.undo()
    sink.close()
    assert ids(tmp_path) == expected(2)


def test_a_reader_misses_nothing_while_files_are_put_aside(tmp_path: Path) -> None:
    """The file it has open is put aside, and others after it, between its lines."""
    sink = JsonLinesSink(tmp_path, rotate_bytes=1)
    sink.write([request(0), request(1)])
    seen = []
    for entry in read_jsonl(tmp_path):
        seen.append(entry.event_id)
        sink.write([request(len(seen) + 1)])
    sink.close()
    assert seen[:2] == expected(2)
    assert ids(tmp_path) == expected(4)


def test_a_second_writer_is_refused_and_told_of_the_first(tmp_path: Path) -> None:
    second = open_sink(f"jsonl://{tmp_path}")
    with held_open([sys.executable, "-m", "tests.contract.sink_child", f"jsonl://{tmp_path}", "1", "1"]) as (first, _):
        assert first.stdout is not None
        assert first.stdout.readline() == "1\n"
        with pytest.raises(SinkUnavailable, match=f"process {first.pid} writes there"):
            second.write([request(1)])
    second.write([request(1)])
    second.close()
    assert ids(tmp_path) == expected(2)


def test_a_full_disk_is_no_loss(tmp_path: Path) -> None:
    """What was acknowledged stays; the batch that did not fit is there once after it was written again."""
    script = f"""
import resource, signal
from kong_plugins.adapters.sinks import jsonl_sink, open_sink
from kong_plugins.application.ports import SinkUnavailable
from tests.contract.sink_events import request
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
sink = open_sink('jsonl://{tmp_path}')
sink.write([request(0)])
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
try:
    sink.write([request(number) for number in range(1, 20)])
except SinkUnavailable as full:
    print(full)
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
sink.write([request(number) for number in range(1, 20)])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert f"cannot write to {tmp_path}" in done.stdout
    assert ids(tmp_path) == expected(20)


def test_a_line_that_no_sink_wrote_is_named(tmp_path: Path) -> None:
    sink = JsonLinesSink(tmp_path)
    sink.write([request(0)])
    sink.close()
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(b"not ours\n")
    with pytest.raises(ValueError, match=r"events\.jsonl, line 2"):
        list(read_jsonl(tmp_path))

"""Processes that share the books' file, for tests/integration/test_sink_books.py."""

from __future__ import annotations

import importlib
import math
import os
import resource
import signal
import sys
from pathlib import Path

from kong_plugins.adapters.books import open_books
from kong_plugins.adapters.sinks import duckdb_sink, open_sink
from kong_plugins.application.ports import SinkUnavailable
from tests.contract.sink_events import request


def write_and_keep(url: str) -> None:
    """Without a pause, and giving the file up to nobody but who is seen to wait."""
    duckdb_sink.HELD_S_MAX = math.inf
    write_without_pause(url)


def write_and_give_up(url: str) -> None:
    """Without a pause, and giving the file up ten times a second whether anybody waits or not."""
    duckdb_sink.HELD_S_MAX = 0.1
    write_without_pause(url)


def write_without_pause(url: str) -> None:
    """Batches of 200 for ever; one line when the first is written."""
    sink = open_sink(url)
    first = 0
    while True:
        sink.write([request(number) for number in range(first, first + 200)])
        if not first:
            print("writing", flush=True)
        first += 200


def write_until_full(path: str) -> None:
    """With a limit on the size of files, as a full disk would have it; then lift it and go on."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    sink = open_sink(f"duckdb://{path}")
    sink.write([request(0)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(path) + 400_000, hard))
    done = 1
    try:
        while done < 100_000:
            sink.write([request(number) for number in range(done, done + 1000)])
            done += 1000
    except SinkUnavailable as full:
        print(done, full, flush=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    sink.write([request(number) for number in range(done, done + 1000)])
    sink.close()
    print(done + 1000, flush=True)


def write_as_nobody(path: str) -> None:
    """Where only root may."""
    sink = open_sink(f"duckdb://{path}")
    for module in ("duckdb", "pyarrow"):
        importlib.import_module(module)  # while we may still read them
    os.setgid(65534)
    os.setuid(65534)
    try:
        sink.write([request(0)])
    except SinkUnavailable as refused:
        print(refused, flush=True)


def die_making(path: str) -> None:
    """Killed where the file is made and has not its name yet."""
    os.link = lambda *names: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    open_books(Path(path), read_only=False)


if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2])

"""The stores behind the sinks: each can be written to, read back and taken away."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from kong_plugins.adapters.books import open_books
from kong_plugins.adapters.books.rows import row_of
from kong_plugins.adapters.sinks.jsonl_sink import read_jsonl
from kong_plugins.application.ports import OutboxEntry
from tests.contract.sink_events import Booked


class Store(Protocol):
    """``url`` opens its sink, ``impatient_url`` one that soon gives up waiting. What ``read_back`` tells is what its
    readers count: how a store comes to count an event once, by refusing to take it twice or by reading it once, is its
    own affair."""

    url: str
    impatient_url: str

    def read_back(self) -> list[Booked]:
        """Everything, in order of ids; an event that counts twice is in it twice."""

    def away(self) -> AbstractContextManager[None]:
        """Within the block the store takes nothing."""


def booked(entries: Iterable[OutboxEntry]) -> list[Booked]:
    """As a reader of the events themselves counts them."""
    rows = [row_of(entry) for entry in entries]
    return sorted(Booked(row[0], row[1], row[4], row[12], row[13], row[34]) for row in rows)


class DuckDBStore:
    def __init__(self, directory: Path) -> None:
        self.path = directory / "books.duckdb"
        self.url = f"duckdb://{self.path}?wait_s=30"
        self.impatient_url = f"duckdb://{self.path}?wait_s=0.1"

    def read_back(self) -> list[Booked]:
        if not self.path.exists():
            return []
        with open_books(self.path, read_only=True) as books:
            rows = books.execute("SELECT id, kind, tenant, prompt, completion, amount FROM events").fetchall()
        return sorted(Booked(*row) for row in rows)

    @contextmanager
    def away(self) -> Iterator[None]:
        """Somebody else has the file, and keeps it."""
        keep = (
            f"import sys, duckdb; c = duckdb.connect({str(self.path)!r}); print('held', flush=True); sys.stdin.read()"
        )
        if not self.path.exists():
            open_books(self.path, read_only=False).close()
        with held_open([sys.executable, "-c", keep]):
            yield


class JsonLinesStore:
    def __init__(self, directory: Path) -> None:
        self.directory = directory / "lines"
        self.url = self.impatient_url = f"jsonl://{self.directory}?rotate_mb=1&rotate=daily"

    def read_back(self) -> list[Booked]:
        return booked(read_jsonl(self.directory)) if self.directory.exists() else []

    def away(self) -> AbstractContextManager[None]:
        return place_taken(self.directory)


@contextmanager
def place_taken(directory: Path) -> Iterator[None]:
    """A file is where the store's directory should be."""
    aside = directory.with_name("aside")
    if existed := directory.exists():
        directory.rename(aside)
    directory.write_text("in the way")
    try:
        yield
    finally:
        directory.unlink()
        if existed:
            aside.rename(directory)


@contextmanager
def held_open(command: list[str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A child that has said its first line, and that line. It is killed at the end of the block."""
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        said = child.stdout.readline()
        assert said
        yield child, said.strip()
    finally:
        child.kill()
        child.communicate()

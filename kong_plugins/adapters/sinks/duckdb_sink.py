"""The books' own sink: rows in a DuckDB file, which it shares with reports by taking turns."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kong_plugins.adapters.books import BooksUnavailable, open_books
from kong_plugins.adapters.books.rows import COLUMNS, Row, arrow_table, rows_of
from kong_plugins.application.ports import OutboxEntry, Rejected

if TYPE_CHECKING:
    import duckdb

WAIT_S = 5.0  # for a report that reads
HELD_S_MAX = 0.8  # under load; with a batch on top of it still about a second
GAP_S = 0.04  # a reader tries every 10 ms, and opening the file takes it some 15
IDLE_S = 0.2

_NAMES = ", ".join(f'"{name}"' for name in COLUMNS)
_INSERT = f"INSERT INTO events ({_NAMES}) SELECT {_NAMES} FROM batch"  # noqa: S608 - constants of ours
_INSERT_NEW = f"{_INSERT} WHERE NOT EXISTS (FROM events WHERE events.id = batch.id)"  # noqa: S608


class DuckDBSink:
    """Events in the books' table ``events``. Safe to use from several threads, which then take turns."""

    def __init__(self, path: Path, *, wait_s: float = WAIT_S) -> None:
        """Opens the file when first written to. ``wait_s``: how long somebody else may have it."""
        self._path = path
        self._wait_s = wait_s
        self._turn = threading.Condition()
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._opened_at = self._used_at = 0.0
        self._free_at = 0.0  # the file is left alone until then
        self._closer: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"DuckDBSink({str(self._path)!r})"

    def write(self, entries: Sequence[OutboxEntry]) -> tuple[Rejected, ...]:
        """In one transaction, its log flushed to the disk when this returns."""
        rows, rejected = rows_of(entries)
        if rows:
            with self._turn:
                self._write(rows)
        return tuple(rejected)

    def close(self) -> None:
        with self._turn:
            self._let_go()
            closer, self._closer = self._closer, None
            self._turn.notify_all()
        if closer is not None:
            closer.join()

    def _write(self, rows: Sequence[Row]) -> None:
        import duckdb

        connection = self._hold_file()
        try:
            connection.register("batch", arrow_table(rows))
            try:
                connection.execute(_INSERT)
            except duckdb.ConstraintException:
                # Some are there already, as after a crash. Looking for them each time would be three times as slow.
                connection.execute(_INSERT_NEW)
            connection.unregister("batch")
        except duckdb.Error as error:
            # A full disk ends a DuckDB session for good: what was written is read again from the file.
            self._let_go()
            raise BooksUnavailable(f"cannot write to the books {self._path}: {error}") from error
        now = time.monotonic()
        self._used_at = now
        if now - self._opened_at > HELD_S_MAX:
            self._let_go()

    def _hold_file(self) -> duckdb.DuckDBPyConnection:
        if self._connection is None:
            time.sleep(max(0.0, self._free_at - time.monotonic()))  # a reader's turn
            self._connection = open_books(self._path, read_only=False, wait_s=self._wait_s)
            self._opened_at = self._used_at = time.monotonic()
            if self._closer is None:
                self._closer = threading.Thread(target=self._close_when_idle, name="books-idle", daemon=True)
                self._closer.start()
            self._turn.notify_all()
        return self._connection

    def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
            self._free_at = time.monotonic() + GAP_S

    def _close_when_idle(self) -> None:
        with self._turn:
            while self._closer is threading.current_thread():
                if self._connection is None:
                    self._turn.wait()
                    continue
                left = self._used_at + IDLE_S - time.monotonic()
                if left > 0:
                    self._turn.wait(left)
                else:
                    self._let_go()

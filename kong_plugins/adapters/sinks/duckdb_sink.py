"""The books' own sink: rows in a DuckDB file, which it shares with reports by taking turns."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kong_plugins.adapters.books import BooksUnavailable, open_books
from kong_plugins.adapters.books.rows import COLUMNS, Row, arrow_table, rows_of
from kong_plugins.adapters.books.turns import somebody_waits_for
from kong_plugins.application.ports import OutboxEntry, Rejected

if TYPE_CHECKING:
    import duckdb

WAIT_S = 5.0  # for a report that reads
IDLE_S = 1.0  # then the file is given up; longer than the collector lingers: opening it costs ten small batches
LOOK_S = 0.1  # how soon an idle sink sees that somebody waits
YIELD_S_MAX = 0.5  # for one who waits to get in; trying every 10 ms, it takes some 20
HELD_S_MAX = 5.0  # then it is left alone for a moment, for one who waits unseen, as with a shell of DuckDB's own
GAP_S = 0.03
_POLL_S = 0.005

_NAMES = ", ".join(f'"{name}"' for name in COLUMNS)
_INSERT = f"INSERT INTO events ({_NAMES}) SELECT {_NAMES} FROM batch"  # noqa: S608 - constants of ours
_INSERT_NEW = f"{_INSERT} WHERE NOT EXISTS (FROM events WHERE events.id = batch.id)"


class DuckDBSink:
    """Events in the books' table ``events``. Safe to use from several threads, which then take turns."""

    def __init__(self, path: Path, *, wait_s: float = WAIT_S) -> None:
        """Opens the file when first written to. ``wait_s``: how long somebody else may have it."""
        self._path = path
        self._wait_s = wait_s
        self._turn = threading.Condition()
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._opened_at = self._used_at = self._let_go_at = self._free_at = 0.0
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
            # What a failed write, a full disk say, leaves of a session is anyone's guess: the file is read again.
            self._let_go()
            raise BooksUnavailable(f"cannot write to the books {self._path}: {error}") from error
        self._used_at = time.monotonic()
        if somebody_waits_for(self._path):
            self._let_go()
        elif self._used_at - self._opened_at > HELD_S_MAX:
            self._let_go()
            self._free_at = time.monotonic() + GAP_S

    def _hold_file(self) -> duckdb.DuckDBPyConnection:
        if self._connection is None:
            self._yield_turn()
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
            self._let_go_at = time.monotonic()

    def _yield_turn(self) -> None:
        """Let in who waited when the file was given up; it says no more that it waits once it is in."""
        time.sleep(max(0.0, self._free_at - time.monotonic()))
        while time.monotonic() < self._let_go_at + YIELD_S_MAX and somebody_waits_for(self._path):
            time.sleep(_POLL_S)

    def _close_when_idle(self) -> None:
        with self._turn:
            while self._closer is threading.current_thread():
                if self._connection is None:
                    self._turn.wait()
                    continue
                left = self._used_at + IDLE_S - time.monotonic()
                if left > 0 and not somebody_waits_for(self._path):
                    self._turn.wait(min(left, LOOK_S))
                else:
                    self._let_go()

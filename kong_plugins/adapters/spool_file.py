"""One file of the spool: postings that wait, in SQLite (a write-ahead log, synced at every commit).

Blocking: see :mod:`kong_plugins.adapters.spool` for a process with an event loop.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)

FORMAT = 1
READ_BYTES = 4 * 2**20  # of one reading: kept answers may be large
LOG_PAGES = 128  # half a megabyte: SQLite's own bound, eight times that, alone fills a small volume

# due_ms: 0 waits in line, above it is deferred until then, NULL is set aside.
_SCHEMA = """
CREATE TABLE postings (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL,
  at_ms INTEGER NOT NULL,
  due_ms INTEGER DEFAULT 0,
  failures INTEGER NOT NULL DEFAULT 0,
  reason TEXT,
  posting BLOB NOT NULL
);
CREATE INDEX postings_due ON postings (due_ms, seq);
CREATE TABLE about (ledger TEXT NOT NULL);
"""

# A file that may not be used, or is not one: others may be. Anything else is about the disk, or this process's limits.
_OF_ONE_FILE = {errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP}
_DISK_CODES = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOMEM}

_KIND_AND_SIZE = "SELECT due_ms, length(posting) FROM postings WHERE seq = ?"
_ROW = "SELECT seq, id, at_ms, due_ms, failures, reason, posting FROM postings"
_IN_LINE = f"{_ROW} WHERE due_ms = 0 ORDER BY seq LIMIT ?"
_DUE = f"{_ROW} WHERE due_ms > 0 AND due_ms <= ? ORDER BY due_ms, seq LIMIT ?"
_ASIDE = f"{_ROW} WHERE due_ms IS NULL ORDER BY seq LIMIT ?"


class SpoolFileError(Exception):
    """The file cannot be used. The message says why, and what to do."""


class SpoolDiskError(SpoolFileError):
    """Nothing can be kept there now, and it is not the file's fault: another one would fare the same."""


@dataclass(frozen=True, slots=True)
class SpoolRow:
    """``at_ms``: when it came, epoch milliseconds. ``due_ms``: 0 in line, None set aside."""

    seq: int
    posting_id: str
    at_ms: int
    due_ms: int | None
    failures: int
    reason: str | None
    posting: bytes


@dataclass(frozen=True, slots=True)
class SpoolSums:
    """How many postings there are of each kind. ``size``: bytes of all."""

    waiting: int = 0
    deferred: int = 0
    aside: int = 0
    size: int = 0

    @property
    def rows(self) -> int:
        return self.waiting + self.deferred + self.aside

    def plus(self, due_ms: int | None, rows: int, size: int) -> SpoolSums:
        """With ``rows`` more of one kind (negative: fewer)."""
        if due_ms is None:
            return replace(self, aside=self.aside + rows, size=self.size + size)
        if due_ms:
            return replace(self, deferred=self.deferred + rows, size=self.size + size)
        return replace(self, waiting=self.waiting + rows, size=self.size + size)


class SpoolFile:
    """Open, and locked: no other process uses it until it is closed or this process is gone. ``sums`` may be read from
    any thread.

    Raises:
        SpoolFileError: from every method.
    """

    def __init__(self, path: Path, ledger: str) -> None:
        """Makes it if there is none. ``ledger``: the address of the ledger it is for, without secrets.

        Raises:
            BlockingIOError: another process has it.
            SpoolDiskError: no file can be used there now.
        """
        self.path = path
        self._ledger = ledger
        self._database: sqlite3.Connection | None = None  # None: there is nothing in it, not even a file
        self._gone: set[int] = set()  # removed, which could not be written yet
        try:
            self._lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _of_opening(path, error) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._open()
        except BlockingIOError:
            os.close(self._lock)
            raise
        except (sqlite3.Error, OSError) as error:
            os.close(self._lock)
            raise _of_opening(path, error) from error
        except BaseException:
            os.close(self._lock)
            raise

    def _open(self) -> sqlite3.Connection:
        # SQLite gives its other files the permissions of this one.
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        database = _connect(self.path)
        try:
            self._prepare(database)
            self.sums = sums_of(database)
        except BaseException:
            database.close()
            raise
        self._database = database
        return database

    def _prepare(self, database: sqlite3.Connection) -> None:
        run = database.execute
        version = run("PRAGMA user_version").fetchone()[0]
        if version == 0:
            run("PRAGMA auto_vacuum = INCREMENTAL")
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = FULL")
        run(f"PRAGMA wal_autocheckpoint = {LOG_PAGES}")
        if version == 0:
            run("BEGIN IMMEDIATE")
            for statement in _SCHEMA.split(";"):
                run(statement)
            run("INSERT INTO about VALUES (?)", (self._ledger,))
            run(f"PRAGMA user_version = {FORMAT}")
            run("COMMIT")
        elif version != FORMAT:
            raise SpoolFileError(f"{self.path} was written by a newer version: replay it with that one")

    def append(self, rows: Sequence[tuple[str, int, bytes]]) -> None:
        """Id, time and posting of each; all of them durable on return, or none."""
        insert = "INSERT INTO postings (id, at_ms, posting) VALUES (?, ?, ?)"
        self._write(lambda run: run.executemany(insert, rows))
        self.sums = self.sums.plus(0, len(rows), sum(len(posting) for _, _, posting in rows))

    def oldest(self, count: int, now_ms: int | None = None) -> tuple[SpoolRow, ...]:
        """In line, in the order they came; with ``now_ms``: those deferred that are due."""
        if now_ms is None:
            return self._read(_IN_LINE, (count,))
        return self._read(_DUE, (now_ms, count))

    def aside(self, count: int) -> tuple[SpoolRow, ...]:
        """Those set aside, in the order they came."""
        return self._read(_ASIDE, (count,))

    def remove(self, seqs: Sequence[int]) -> None:
        """They may be gone already. Where that cannot be written, on a full disk, they are gone for this process all
        the same, and from the file with the next write that succeeds: else what waits behind them would not go on."""
        sums = self.sums
        for seq in set(seqs) - self._gone:
            for due_ms, size in self._select(_KIND_AND_SIZE, (seq,)):
                sums = sums.plus(due_ms, -1, -size)
        self._gone.update(seqs)
        self.sums = sums
        try:
            self._write(lambda _: None)
        except SpoolFileError as error:
            if self.sums.rows:
                _log.error("%d postings are in the ledger and still in the spool: %s", len(self._gone), error)
            else:
                self._begin_anew()

    def defer(self, seq: int, reason: str, due_ms: int | None) -> None:
        """One failure more. ``due_ms`` None: set aside."""
        sums = self.sums
        for before_ms, size in self._select(_KIND_AND_SIZE, (seq,)):
            sums = sums.plus(before_ms, -1, -size).plus(due_ms, 1, size)
        change = "UPDATE postings SET due_ms = ?, failures = failures + 1, reason = ? WHERE seq = ?"
        self._write(lambda run: run.execute(change, (due_ms, reason, seq)))
        self.sums = sums

    def retry_all(self) -> None:
        """Back into line with everything that was deferred or set aside."""
        self._write(lambda run: run.execute("UPDATE postings SET due_ms = 0, failures = 0 WHERE due_ms IS NOT 0"))
        self.sums = SpoolSums(waiting=self.sums.rows, size=self.sums.size)

    def oldest_ms(self) -> int | None:
        """When the first in line came, epoch milliseconds."""
        found = self.oldest(1)
        return found[0].at_ms if found else None

    def _begin_anew(self) -> None:
        """Nothing in it is needed any more, and it may be what fills the disk."""
        if self._database is not None:
            self._database.close()
            self._database = None
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(f"{self.path.name}{suffix}").unlink(missing_ok=True)
        self._gone.clear()
        self.sums = SpoolSums()

    def shrink(self) -> None:
        """Give an emptied file's space back."""
        if self._database is None:
            return
        try:
            self._database.execute("PRAGMA incremental_vacuum").fetchall()
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as error:
            raise SpoolFileError(f"{self.path} cannot be written: {error}") from error

    def close(self) -> None:
        """What is in it stays, for whoever opens it next."""
        try:
            if self._database is not None:
                self._database.close()
        finally:
            os.close(self._lock)

    def _read(self, query: str, values: Sequence[int]) -> tuple[SpoolRow, ...]:
        rows: list[SpoolRow] = []
        size = 0
        if self._database is None:
            return ()
        *others, count = values
        try:
            for found in self._database.execute(query, (*others, count + len(self._gone))):
                row = SpoolRow(*found)
                if row.seq in self._gone:
                    continue
                rows.append(row)
                size += len(row.posting)
                if size >= READ_BYTES or len(rows) == count:
                    break
        except sqlite3.Error as error:
            raise SpoolFileError(f"{self.path} cannot be read: {error}") from error
        return tuple(rows)

    def _select(self, query: str, values: Sequence[int]) -> list[tuple[Any, ...]]:
        if self._database is None:
            return []
        try:
            return self._database.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise SpoolFileError(f"{self.path} cannot be read: {error}") from error

    def _write(self, change: Any) -> None:
        try:
            database = self._database or self._open()
            try:
                self._commit(database, change)
            except sqlite3.OperationalError:
                # Its log may be what fills the disk: what it holds goes into the file, and its room is free again.
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                self._commit(database, change)
        except (sqlite3.Error, OSError) as error:
            raise SpoolFileError(f"{self.path} cannot be written ({error}): is its disk full?") from error

    def _commit(self, database: sqlite3.Connection, change: Any) -> None:
        gone = [(seq,) for seq in self._gone]
        database.execute("BEGIN IMMEDIATE")
        try:
            database.executemany("DELETE FROM postings WHERE seq = ?", gone)
            change(database)
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise
        self._gone.clear()


def _of_opening(path: Path, error: sqlite3.Error | OSError) -> SpoolFileError:
    if isinstance(error, OSError):
        about_disk = error.errno not in _OF_ONE_FILE
    else:
        about_disk = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF in _DISK_CODES  # without its extension
    if about_disk:
        advice = "is its disk full, or the directory gone? TOKEN_QUOTA_SPOOL_DIR names another"
        return SpoolDiskError(f"no spool can be kept in {path.parent} now ({error}): {advice}")
    return SpoolFileError(f"{path} is no spool that can be read ({error}): move it away")


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, timeout=5.0, check_same_thread=False)


def sums_of(database: sqlite3.Connection) -> SpoolSums:
    """Also over a connection that only reads."""
    found = database.execute(
        "SELECT count(*) FILTER (WHERE due_ms = 0), count(*) FILTER (WHERE due_ms > 0),"
        " count(*) FILTER (WHERE due_ms IS NULL), coalesce(sum(length(posting)), 0) FROM postings"
    ).fetchone()
    return SpoolSums(*found)

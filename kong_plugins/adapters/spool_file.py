"""One file of the spool: postings that wait, in SQLite (a write-ahead log, synced at every commit).

Blocking: see :mod:`kong_plugins.adapters.spool` for a process with an event loop.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgpack

from kong_plugins.adapters.registration_codec import decode_registration, encode_registration
from kong_plugins.application.ports import Posting, Recording
from kong_plugins.domain.attempts import AnswerKept
from kong_plugins.domain.holds import Outcome, Settlement
from kong_plugins.domain.usage import Evidence, Usage

FORMAT = 1
READ_BYTES = 4 * 2**20  # of one reading: kept answers may be large

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
        try:
            self._lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _of_opening(path, error) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # SQLite gives its other files the permissions of this one.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._database = _connect(path)
            try:
                self._prepare(ledger)
                self.sums = sums_of(self._database)
            except BaseException:
                self._database.close()
                raise
        except BlockingIOError:
            os.close(self._lock)
            raise
        except (sqlite3.Error, OSError) as error:
            os.close(self._lock)
            raise _of_opening(path, error) from error
        except BaseException:
            os.close(self._lock)
            raise

    def _prepare(self, ledger: str) -> None:
        run = self._database.execute
        version = run("PRAGMA user_version").fetchone()[0]
        if version == 0:
            run("PRAGMA auto_vacuum = INCREMENTAL")
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = FULL")
        if version == 0:
            run("BEGIN IMMEDIATE")
            for statement in _SCHEMA.split(";"):
                run(statement)
            run("INSERT INTO about VALUES (?)", (ledger,))
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
        """They may be gone already."""
        sums = self.sums
        for seq in seqs:
            for due_ms, size in self._select(_KIND_AND_SIZE, (seq,)):
                sums = sums.plus(due_ms, -1, -size)
        self._write(lambda run: run.executemany("DELETE FROM postings WHERE seq = ?", [(seq,) for seq in seqs]))
        self.sums = sums

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
        found = self._select("SELECT at_ms FROM postings WHERE due_ms = 0 ORDER BY seq LIMIT 1", ())
        return found[0][0] if found else None

    def shrink(self) -> None:
        """Give an emptied file's space back."""
        try:
            self._database.execute("PRAGMA incremental_vacuum").fetchall()
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as error:
            raise SpoolFileError(f"{self.path} cannot be written: {error}") from error

    def close(self) -> None:
        """What is in it stays, for whoever opens it next."""
        try:
            self._database.close()
        finally:
            os.close(self._lock)

    def _read(self, query: str, values: Sequence[int]) -> tuple[SpoolRow, ...]:
        rows, size = [], 0
        try:
            for found in self._database.execute(query, values):
                rows.append(SpoolRow(*found))
                size += len(rows[-1].posting)
                if size >= READ_BYTES:
                    break
        except sqlite3.Error as error:
            raise SpoolFileError(f"{self.path} cannot be read: {error}") from error
        return tuple(rows)

    def _select(self, query: str, values: Sequence[int]) -> list[tuple[Any, ...]]:
        try:
            return self._database.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise SpoolFileError(f"{self.path} cannot be read: {error}") from error

    def _write(self, change: Any) -> None:
        database = self._database
        try:
            database.execute("BEGIN IMMEDIATE")
            try:
                change(database)
                database.execute("COMMIT")
            except BaseException:
                if database.in_transaction:
                    database.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise SpoolFileError(f"{self.path} cannot be written ({error}): is its disk full?") from error


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


def encode(posting: Posting) -> bytes:
    """With a version in front; text that was no UTF-8 keeps its bytes."""
    table: dict[str, Any] = {"v": FORMAT, "tenant": posting.tenant, "event": posting.event}
    if isinstance(posting, Recording):
        table["id"] = posting.event_id
    else:
        usage = posting.usage
        table |= {
            "hold": posting.hold_id,
            "usage": [usage.prompt, usage.completion, usage.cached, usage.reasoning],
            "evidence": posting.evidence.value,
            "outcome": posting.outcome.value,
            "reversal": posting.reversal,
            "answer": posting.answer,
            "kept": posting.kept.value,
        }
        if posting.registration is not None:
            table["registration"] = encode_registration(posting.registration)
    packed: bytes = msgpack.packb(table, unicode_errors="surrogateescape")
    return packed


def decode(data: bytes) -> Posting:
    """
    Raises:
        ValueError: it is no posting that this version knows.
    """
    try:
        table: Mapping[str, Any] = msgpack.unpackb(data, unicode_errors="surrogateescape")
        if table["v"] != FORMAT:
            raise ValueError(f"a posting of version {table['v']}, not {FORMAT}")
        if "hold" not in table:
            return Recording(table["tenant"], table["id"], table["event"])
        registration = decode_registration(table["registration"]) if "registration" in table else None
        if registration is not None:
            registration = replace(registration, request=replace(registration.request, event=table["event"]))
        return Settlement(
            table["tenant"],
            table["hold"],
            Usage(*table["usage"]),
            Evidence(table["evidence"]),
            table["event"],
            outcome=Outcome(table["outcome"]),
            reversal=table["reversal"],
            answer=table["answer"],
            kept=AnswerKept(table["kept"]),
            registration=registration,
        )
    except (msgpack.UnpackException, KeyError, TypeError) as error:  # some are ValueErrors without a word
        raise ValueError(f"no posting can be read from it ({type(error).__name__}: {error})") from error

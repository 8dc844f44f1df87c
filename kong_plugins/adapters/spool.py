"""The durable spool of a process with gevent's loop: files in a directory, written in a thread of their own.

A file is named after the ledger it is for and a number. A process takes the first number that is free, so that a
restarted server finds what it left; files that nobody has are adopted, drained and given back. Files are kept: their
number is that of the processes there have been at one time.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import gevent
from gevent.event import AsyncResult
from gevent.threadpool import ThreadPool

from kong_plugins.adapters.spool_file import (
    SpoolDiskError,
    SpoolFile,
    SpoolFileError,
    SpoolRow,
    SpoolSums,
)
from kong_plugins.adapters.spool_postings import decode, encode
from kong_plugins.application.ports import Posting, Spooled, SpoolUnavailable
from kong_plugins.application.posting import name_of
from kong_plugins.domain.attempts import AnswerKept
from kong_plugins.domain.holds import Settlement

_log = logging.getLogger(__name__)

DIRECTORY_ENV = "TOKEN_QUOTA_SPOOL_DIR"
MEGABYTES_ENV = "TOKEN_QUOTA_SPOOL_MAX_MB"
KONG_PREFIX_ENV = "KONG_PREFIX"
DIRECTORY_NAME = "token-quota-spool"

ROWS_MAX = 1_000_000  # an hour of 300 requests a second
BYTES_MAX = 1024 * 2**20
COMMIT_MAX = 500  # postings in one commit
SLOTS = 1_000

_T = TypeVar("_T")


def spool_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """``TOKEN_QUOTA_SPOOL_DIR``; else under Kong's prefix, where the plugin server knows it; else of this user."""
    if given := environ.get(DIRECTORY_ENV):
        return Path(given)
    if prefix := environ.get(KONG_PREFIX_ENV):
        return Path(prefix) / DIRECTORY_NAME
    return Path.home() / ".local" / "state" / "token-quota" / "spool"


def spool_bytes_max(environ: Mapping[str, str] = os.environ) -> int:
    """``TOKEN_QUOTA_SPOOL_MAX_MB`` in bytes.

    Raises:
        SpoolUnavailable: it is no number of megabytes.
    """
    text = environ.get(MEGABYTES_ENV)
    if not text:
        return BYTES_MAX
    if not text.isdigit() or int(text) < 1:
        raise SpoolUnavailable(f"{MEGABYTES_ENV}: {text!r} is no number of megabytes, 1 or more")
    return int(text) * 2**20


def ledger_address(url: str) -> str:
    """What a ledger's URL says of where it is, without user and password: they may change while postings wait."""
    parts = urlsplit(url)
    database = parse_qs(parts.query).get("db", [])
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}{'?db=' + database[0] if database else ''}"


def file_stem(address: str) -> str:
    """What the names of a ledger's files begin with."""
    return blake2b(address.encode(), digest_size=6).hexdigest()


@dataclass(frozen=True, slots=True)
class SpoolLimits:
    """Of one file. Above half the bytes the answers that settlements keep for retries are left out."""

    rows: int = ROWS_MAX
    size: int = BYTES_MAX


class DurableSpool:
    """Postings of this process to one ledger, and those that it adopted. Call from greenlets of one thread."""

    def __init__(
        self,
        directory: Path,
        address: str,
        *,
        limits: SpoolLimits = SpoolLimits(),
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """
        Raises:
            SpoolUnavailable: the directory cannot be made or written to.
        """
        self._directory = directory
        self._address = address
        self._stem = file_stem(address)
        self._limits = limits
        self._clock_ms = clock_ms
        self._files: dict[int, SpoolFile] = {}  # by number
        self._own: int | None = None
        self._pending: list[tuple[tuple[str, int, bytes], AsyncResult]] = []
        self._writer: gevent.Greenlet | None = None
        self._closed = False
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            writable = os.access(directory, os.W_OK | os.X_OK)
        except OSError as error:
            raise SpoolUnavailable(f"no spool can be kept in {directory} ({error}): {_ADVICE}") from error
        if not writable:
            raise SpoolUnavailable(f"no spool can be kept in {directory}, this user may not write there: {_ADVICE}")
        self._thread = ThreadPool(1)

    @property
    def waiting(self) -> int:
        return self.sums.waiting

    @property
    def depth(self) -> int:
        return self.sums.waiting + self.sums.deferred

    @property
    def sums(self) -> SpoolSums:
        """Of all files that this process has."""
        total = SpoolSums()
        for file in self._files.values():
            sums = file.sums
            total = SpoolSums(
                total.waiting + sums.waiting,
                total.deferred + sums.deferred,
                total.aside + sums.aside,
                total.size + sums.size,
            )
        return total

    def oldest_ms(self) -> int | None:
        """When the first that waits came, epoch milliseconds."""
        found = [self._off_loop(file.oldest_ms) for file in list(self._files.values())]
        return min((each for each in found if each is not None), default=None)

    def append(self, posting: Posting) -> None:
        if self._closed:
            raise SpoolUnavailable("the process ends and its spool is closed")
        posting = self._without_answer(posting)
        done = AsyncResult()
        self._pending.append(((name_of(posting).partition(" ")[2], self._clock_ms(), encode(posting)), done))
        if self._writer is None or self._writer.dead:  # of a lack of memory, before it began
            self._writer = gevent.spawn(self._write)
        refusal = done.get()
        if refusal is not None:
            raise SpoolUnavailable(refusal)

    def oldest(self, count: int) -> tuple[Spooled, ...]:
        # An adopted file's before our own: they were there first.
        for number in sorted(self._files, key=lambda each: (each == self._own, each)):
            if self._files[number].sums.waiting:
                return self._readable(number, self._off_loop(self._files[number].oldest, count))
        return ()

    def due(self, count: int) -> tuple[Spooled, ...]:
        for number, file in list(self._files.items()):
            if file.sums.deferred:
                rows = self._off_loop(file.oldest, count, self._clock_ms())
                if rows:
                    return self._readable(number, rows)
        return ()

    def remove(self, entries: Sequence[Spooled]) -> None:
        by_file: dict[int, list[int]] = {}
        for entry in entries:
            number, seq = entry.position
            by_file.setdefault(number, []).append(seq)
        for number, seqs in by_file.items():
            file = self._file(number)
            self._off_loop(file.remove, seqs)
            if not file.sums.rows:
                self._off_loop(file.shrink)

    def defer(self, entry: Spooled, reason: str, seconds: float | None) -> None:
        due_ms = None if seconds is None else self._clock_ms() + round(seconds * 1000)
        self._put_off(*entry.position, reason, due_ms)

    def adopt(self) -> None:
        for number, file in list(self._files.items()):
            if not _to_try(file) and number != self._own:
                del self._files[number]
                self._off_loop(file.close)
        for number in self._numbers():
            if number in self._files:
                continue
            left = self._open(number)
            if left is None:
                continue
            if not _to_try(left):
                self._off_loop(left.close)
                continue
            self._files[number] = left
            _log.warning("%d postings that an ended process left are taken over from %s", _to_try(left), left.path)

    def close(self) -> None:
        self._closed = True
        while self._writer is not None:
            self._writer.join()
        files = list(self._files.values())
        for file in files:
            self._thread.apply(_outcome, (file.close, ()))
        self._files.clear()
        self._thread.kill()

    def _without_answer(self, posting: Posting) -> Posting:
        size = self._files[self._own].sums.size if self._own is not None else 0
        if isinstance(posting, Settlement) and posting.answer and 2 * size > self._limits.size:
            return replace(posting, answer=b"", kept=AnswerKept.TOO_LARGE)
        return posting

    def _write(self) -> None:
        """Whatever came while the last commit was made goes into the next."""
        try:
            while self._pending:
                batch, self._pending = self._pending[:COMMIT_MAX], self._pending[COMMIT_MAX:]
                try:
                    refused = self._commit([row for row, _ in batch])
                except Exception as error:  # noqa: BLE001  # whatever it is, nobody may be left waiting
                    refused = dict.fromkeys(range(len(batch)), str(error) or type(error).__name__)
                for index, (_, done) in enumerate(batch):
                    done.set(refused.get(index))
        finally:
            self._writer = None

    def _commit(self, rows: list[tuple[str, int, bytes]]) -> dict[int, str]:
        """Why each was refused that was, by its place."""
        if self._own is None:
            self._own = self._take_one()
        file = self._file(self._own)
        taken, refused = [], {}
        count, size = file.sums.rows, file.sums.size
        for index, row in enumerate(rows):
            count, size = count + 1, size + len(row[2])
            if count > self._limits.rows or size > self._limits.size:
                count, size = count - 1, size - len(row[2])
                refused[index] = (
                    f"the spool {file.path} is full ({count} postings, {size} bytes): bring the ledger back,"
                    f" or allow more with {MEGABYTES_ENV}"
                )
            else:
                taken.append(row)
        if taken:
            self._off_loop(file.append, taken)
        return refused

    def _take_one(self) -> int:
        """The number of the file that is ours from now on."""
        if self._files:
            return min(self._files)
        for number in range(SLOTS):
            file = self._open(number)
            if file is not None:
                self._files[number] = file
                return number
        raise SpoolUnavailable(f"no spool can be opened in {self._directory}: {_ADVICE}")

    def _open(self, number: int) -> SpoolFile | None:
        """None where another process has it, or it cannot be read.

        Raises:
            SpoolUnavailable: no other could be opened either.
        """
        path = self._directory / f"{self._stem}-{number}.db"
        found = self._thread.apply(_outcome, (SpoolFile, (path, self._address)))
        if isinstance(found, _Failed):
            if isinstance(found.error, SpoolDiskError):
                raise SpoolUnavailable(str(found.error)) from found.error
            if not isinstance(found.error, BlockingIOError):
                _log.error("spool left out: %s", found.error)
            return None
        assert isinstance(found, SpoolFile)
        return found

    def _numbers(self) -> list[int]:
        name = re.compile(rf"{self._stem}-(\d+)\.db")
        try:
            found = [name.fullmatch(entry) for entry in os.listdir(self._directory)]
        except OSError as error:
            raise SpoolUnavailable(f"{self._directory} cannot be read: {error}") from error
        return sorted(int(match[1]) for match in found if match)

    def _file(self, number: int) -> SpoolFile:
        try:
            return self._files[number]
        except KeyError:
            raise SpoolUnavailable("the spool is closed") from None

    def _readable(self, number: int, rows: Sequence[SpoolRow]) -> tuple[Spooled, ...]:
        entries = []
        for row in rows:
            try:
                entries.append(Spooled((number, row.seq), decode(row.posting), row.failures))
            except ValueError as error:
                _log.error("posting %s in %s is set aside: %s", row.posting_id, self._files[number].path, error)
                self._put_off(number, row.seq, str(error), None)
        return tuple(entries)

    def _put_off(self, number: int, seq: int, reason: str, due_ms: int | None) -> None:
        file = self._file(number)
        self._off_loop(file.defer, seq, reason, due_ms)

    def _off_loop(self, function: Callable[..., _T], *args: Any) -> _T:
        outcome = self._thread.apply(_outcome, (function, args))
        if isinstance(outcome, _Failed):
            if isinstance(outcome.error, SpoolFileError):
                raise SpoolUnavailable(str(outcome.error)) from outcome.error
            raise outcome.error
        return outcome  # type: ignore[no-any-return]


_ADVICE = f"name a directory of the plugin server's user in {DIRECTORY_ENV}"


def _to_try(file: SpoolFile) -> int:
    return file.sums.waiting + file.sums.deferred


class _Failed:
    def __init__(self, error: BaseException) -> None:
        self.error = error


def _outcome(function: Callable[..., object], args: tuple[object, ...]) -> object:
    """Errors are returned, because a thread pool prints what its threads raise."""
    try:
        return function(*args)
    except BaseException as error:  # noqa: BLE001  # raised again where it was asked for
        return _Failed(error)

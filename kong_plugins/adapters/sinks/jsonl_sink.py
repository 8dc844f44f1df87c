"""JSON Lines in a directory: a line for each event, on the disk with each batch; files change by size and by day.

A crash may leave a torn last line, cut off at the next open, and lines that are written again: whoever reads takes each
event id once, as :func:`read_jsonl` does.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, date, datetime
from itertools import chain
from pathlib import Path

import msgspec

from kong_plugins.adapters.event_records import NotAnEvent, read_entry
from kong_plugins.application.ports import OutboxEntry, Rejected, SinkUnavailable

_CURRENT = "events.jsonl"
_ROTATED = re.compile(r"events-(\d{8}T\d{6})-(\d{6})\.jsonl")
_TAIL = 1 << 16

_encode = msgspec.json.encode


class _Line(msgspec.Struct):
    position: str
    event: msgspec.Raw
    posted: dict[str, int]


class _LineId(msgspec.Struct):
    id: str


_decode_line = msgspec.json.Decoder(_Line).decode
_decode_id = msgspec.json.Decoder(_LineId).decode


class JsonLinesSink:
    """``events.jsonl`` in a directory is appended to; full or of another day (UTC), it is renamed to
    ``events-TIME-NUMBER.jsonl``, the time being that of the renaming. One process writes, its threads in turns."""

    def __init__(
        self,
        directory: Path,
        *,
        rotate_bytes: int | None = None,
        daily: bool = False,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Opens when first written to. ``rotate_bytes``: after the batch with which the file has as many."""
        self._directory = directory
        self._rotate_bytes = rotate_bytes
        self._daily = daily
        self._now = now
        self._turn = threading.RLock()
        self._file: int | None = None
        self._lock: int | None = None
        self._size = 0
        self._day = date.min  # of the last line

    def __repr__(self) -> str:
        return f"JsonLinesSink({str(self._directory)!r})"

    def write(self, entries: Sequence[OutboxEntry]) -> tuple[Rejected, ...]:
        """Each line ``{"position", "event", "posted"}``, the event as it was in the outbox; flushed to the disk when
        this returns."""
        lines, rejected = _lines_of(entries)
        if lines:
            with self._turn:
                try:
                    self._append(lines)
                except OSError as error:
                    # How much of it is in the file is not known: the next write opens it anew and cuts off a torn line.
                    self.close()
                    raise SinkUnavailable(f"cannot write to {self._directory}: {error.strerror or error}") from error
        return rejected

    def close(self) -> None:
        with self._turn:
            for descriptor in (self._file, self._lock):
                if descriptor is not None:
                    os.close(descriptor)
            self._file = self._lock = None

    def _append(self, lines: bytes) -> None:
        file = self._open() if self._file is None else self._file
        today = self._now().date()
        full = self._rotate_bytes is not None and self._size >= self._rotate_bytes
        if self._size and (full or (self._daily and self._day < today)):
            file = self._rotate(file)
        left = memoryview(lines)
        while left:
            left = left[os.write(file, left) :]
        os.fdatasync(file)
        self._size += len(lines)
        self._day = today

    def _open(self) -> int:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        self._file = file = os.open(
            self._directory / _CURRENT, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640
        )
        before = os.fstat(file)
        self._day = datetime.fromtimestamp(before.st_mtime, UTC).date()
        self._size = _whole_lines(file, before.st_size)
        if self._size < before.st_size:
            os.ftruncate(file, self._size)
            os.fsync(file)
        directory = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        return file

    def _take_lock(self) -> None:
        if self._lock is None:
            self._lock = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._lock, 32, 0).decode().strip()
            raise OSError(errno.EBUSY, f"process {holder} writes there: end it, or give another directory") from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def _rotate(self, file: int) -> int:
        stamp = self._now().strftime("%Y%m%dT%H%M%S")
        number = 1
        while (target := self._directory / f"events-{stamp}-{number:06}.jsonl").exists():
            number += 1
        (self._directory / _CURRENT).rename(target)
        os.close(file)
        self._file = None
        return self._open()


def read_jsonl(directory: Path) -> Iterator[OutboxEntry]:
    """Every event once, oldest file first; also while a sink writes. A torn last line is left out.

    Raises:
        ValueError: a line that no sink wrote; the message names file and line.
        OSError: the directory cannot be read.
    """
    seen = set[str]()
    with ExitStack() as files:
        current = directory / _CURRENT
        # Opened before the others are looked for: it may become one of them meanwhile.
        last = [files.enter_context(current.open("rb"))] if current.exists() else []
        names = sorted(name for name in os.listdir(directory) if _ROTATED.fullmatch(name))
        for file in chain((files.enter_context((directory / name).open("rb")) for name in names), last):
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break  # being written now, or torn
                try:
                    read = _decode_line(line)
                    event_id = _decode_id(read.event).id
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    raise ValueError(f"{file.name}, line {number}: {error}") from None
                if event_id not in seen:
                    seen.add(event_id)
                    yield OutboxEntry(read.position, event_id, bytes(read.event), tuple(read.posted.items()))
            file.close()


def _lines_of(entries: Sequence[OutboxEntry]) -> tuple[bytes, tuple[Rejected, ...]]:
    lines: dict[str, bytes] = {}
    rejected: list[Rejected] = []
    for entry in entries:
        try:
            read, posted = read_entry(entry)
        except NotAnEvent as reason:
            rejected.append(Rejected(entry, str(reason)))
            continue
        event = msgspec.json.format(entry.event, indent=-1) if b"\n" in entry.event else entry.event
        line = _Line(entry.position, msgspec.Raw(event), posted)
        lines.setdefault(read.id, _encode(line))
    return b"".join(line + b"\n" for line in lines.values()), tuple(rejected)


def _whole_lines(file: int, size: int) -> int:
    """Bytes up to the last line's end."""
    while size:
        start = max(0, size - _TAIL)
        end = os.pread(file, size - start, start).rfind(b"\n")
        if end >= 0:
            return start + end + 1
        size = start
    return 0

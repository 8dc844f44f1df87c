"""The one way to open the books: waits for whoever has them, and says who that is."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from kong_plugins.adapters.books import schema
from kong_plugins.adapters.books.turns import waiting_for
from kong_plugins.application.ports import SinkUnavailable

if TYPE_CHECKING:
    import duckdb

WAIT_S = 10.0
_POLL_S = 0.01  # DuckDB has no way to wait for its lock
_HOLDER = re.compile(r"PID (\d+)")

_Config = dict[str, str | bool | int | float | list[str]]
_READING: _Config = {"autoinstall_known_extensions": "false"}  # nothing is ever downloaded
_WRITING: _Config = {
    **_READING,
    # Batches are far smaller than what DuckDB shares out among threads; a second one only makes the insert slower
    # (36,000 rows/s in place of 52,000 at a million rows).
    "threads": "1",
    # Each checkpoint writes the whole index anew. This log is read again after a crash, in a few seconds.
    "checkpoint_threshold": "64MB",
}


class BooksUnavailable(SinkUnavailable):
    """The books cannot be opened, read or written now. The message says why and what to do.

    ``holder``: the process that has them, where that is the reason and it is known.
    """

    def __init__(self, message: str, holder: int | None = None) -> None:
        super().__init__(message)
        self.holder = holder


def open_books(path: str | Path, *, read_only: bool, wait_s: float = WAIT_S) -> duckdb.DuckDBPyConnection:
    """A connection to the books, their tables as this version knows them; give it up (``close``, or ``with``) soon.

    For writing, a missing file is made and an older one brought up to date. Times in the books are UTC, and so is
    the session's time zone. ``wait_s`` is how long another process may have the file.

    Raises:
        BooksUnavailable: no file, no room, no DuckDB, not ours, of a newer version, or in use for longer than that.
    """
    try:
        import duckdb
    except ImportError:
        raise BooksUnavailable("no duckdb here: pip install 'kong-token-quota[books]'") from None
    path = Path(path)
    if not path.exists():
        if read_only:
            raise BooksUnavailable(f"no books at {path}: start the collector with --sink duckdb://{path.absolute()}")
        _create(path)
    connection = _connect_in_turn(path, read_only, wait_s)
    try:
        if read_only:
            _check_current(connection)
        else:
            _flush_log(path)
            schema.migrate(connection)
        connection.execute("SET TimeZone = 'UTC'")
    except schema.WrongSchema as wrong:
        connection.close()
        raise BooksUnavailable(f"{path} {wrong}") from None
    except (duckdb.Error, OSError) as error:
        connection.close()
        raise BooksUnavailable(f"cannot read the books {path}: {_first_line(error)}") from error
    return connection


def _connect_in_turn(path: Path, read_only: bool, wait_s: float) -> duckdb.DuckDBPyConnection:
    try:
        return _connect(path, read_only)
    except BooksUnavailable as busy:
        if busy.holder is None:
            raise
    deadline = time.monotonic() + wait_s
    with waiting_for(path):
        while True:
            try:
                return _connect(path, read_only)
            except BooksUnavailable as busy:
                if busy.holder is None or time.monotonic() >= deadline:
                    raise
            time.sleep(_POLL_S)


def _connect(path: Path, read_only: bool) -> duckdb.DuckDBPyConnection:
    import duckdb

    try:
        return duckdb.connect(str(path), read_only=read_only, config=_READING if read_only else _WRITING)
    except duckdb.ConnectionException as error:
        if "different configuration" not in str(error):
            raise BooksUnavailable(f"cannot open the books {path}: {_first_line(error)}") from error
        # Reading and writing exclude each other within one process too.
        raise BooksUnavailable(f"the books {path} are open otherwise in this very process", os.getpid()) from error
    except duckdb.IOException as error:
        said = str(error)
        if "Could not set lock" not in said:
            raise BooksUnavailable(f"cannot open the books {path}: {_first_line(error)}") from error
        named = _HOLDER.search(said)
        holder = int(named[1]) if named else 0
        who = f"process {holder}" if holder else "another process"
        raise BooksUnavailable(
            f"the books {path} are in use by {who}: a collector gives them up to whoever waits,"
            " anything else has to end first",
            holder,
        ) from error
    except duckdb.Error as error:
        raise BooksUnavailable(f"cannot open the books {path}: {_first_line(error)}") from error


def _create(path: Path) -> None:
    """Under another name first: a crash in between leaves no half file that nobody could open any more."""
    import duckdb

    fresh = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with _connect(fresh, read_only=False) as connection:
                schema.migrate(connection)
            os.link(fresh, path)
        finally:
            fresh.unlink(missing_ok=True)
            Path(f"{fresh}.wal").unlink(missing_ok=True)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except FileExistsError:
        if not path.exists():
            raise BooksUnavailable(f"cannot make the books {path}: {path.parent} is no directory") from None
        # else somebody else made them at the same time
    except (OSError, duckdb.Error, BooksUnavailable) as error:
        raise BooksUnavailable(f"cannot make the books {path}: {_first_line(error)}") from error


def _flush_log(path: Path) -> None:
    """A writer that was killed may have left rows in its log that never reached the disk. They count from now on: who
    finds them there writes them no more."""
    try:
        log = os.open(f"{path}.wal", os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        os.fsync(log)
    finally:
        os.close(log)


def _check_current(connection: duckdb.DuckDBPyConnection) -> None:
    version = schema.check(connection)
    if version < schema.VERSION:
        raise schema.WrongSchema(
            f"has schema {version}, and reading needs {schema.VERSION}: start the collector once, it adds what is new"
        )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]

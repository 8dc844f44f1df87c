"""The books in ClickHouse, for many nodes and long times: rows as in DuckDB, deduplicated when read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kong_plugins.adapters.books.rows import COLUMNS, Row, arrow_table, rows_of
from kong_plugins.adapters.sinks import clickhouse_schema as schema
from kong_plugins.adapters.sinks.secrets import Secret
from kong_plugins.application.ports import OutboxEntry, Rejected, SinkUnavailable

if TYPE_CHECKING:
    import pyarrow as pa
    from clickhouse_connect.driver.client import Client

TIMEOUT_S = 30.0

_SETTINGS = {
    "async_insert": 0,  # acknowledged means written, not waiting in the server's memory
    "max_partitions_per_insert_block": 0,  # a batch may have events of any months
}
_NEVER_NULL = ("budgets", "over", "attributes", "posted")  # ClickHouse has no NULL of these: they are empty


class ClickHouseSink:
    """Rows for ``events``. Its threads write in turns."""

    def __init__(self, connect: Callable[[], Client], name: str) -> None:
        """``connect`` gives a client whose database is there, ``name`` says where that is; without any secret."""
        self._connect = connect
        self._name = name
        self._turn = threading.Lock()
        self._client: Client | None = None

    def __repr__(self) -> str:
        return f"ClickHouseSink({self._name!r})"

    def write(self, entries: Sequence[OutboxEntry]) -> tuple[Rejected, ...]:
        """One insert, on the server's disk when this returns. Months are written one after the other: a failure in
        between leaves some of them, which are written again and read once."""
        rows, rejected = rows_of(entries)
        if rows:
            with self._turn:
                self._insert(rows)
        return tuple(rejected)

    def close(self) -> None:
        with self._turn:
            self._disconnect()

    def _insert(self, rows: Sequence[Row]) -> None:
        from clickhouse_connect.driver.exceptions import Error

        try:
            if self._client is None:
                self._client = self._connect()
                schema.migrate(self._client)
            self._client.insert_arrow(schema.WRITTEN, _table(rows), settings=_SETTINGS)
        except schema.WrongSchema as wrong:
            self._disconnect()
            raise SinkUnavailable(f"{self._name} {wrong}") from None
        except (Error, OSError) as error:
            self._disconnect()
            said = str(error).partition("\n")[0]
            raise SinkUnavailable(f"cannot write to {self._name}: {said}") from None

    def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()


def _table(rows: Sequence[Row]) -> pa.Table:
    import pyarrow as pa

    table = arrow_table(rows)
    for name in _NEVER_NULL:
        at = COLUMNS.index(name)
        if table.column(at).null_count:
            filled = pa.array([row[at] or [] for row in rows], table.schema.field(at).type)
            table = table.set_column(at, name, filled)
    return table


def connect_server(
    host: str,
    port: int,
    database: str,
    *,
    user: str,
    password: Secret,
    secure: bool = False,
    ca_file: str | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Client:
    """A client of a server, its database made if it is not there yet.

    Raises:
        clickhouse_connect.driver.exceptions.Error: no connection, or not allowed.
        SinkUnavailable: the password's file cannot be read.
    """
    import clickhouse_connect

    options: dict[str, Any] = {
        "host": host,
        "port": port,
        "interface": "https" if secure else "http",
        "username": user,
        "password": password.read() or "",
        "connect_timeout": timeout_s,
        "send_receive_timeout": timeout_s,
        "query_retries": 0,
        "autogenerate_session_id": False,
        "client_name": "token-quota",
    }
    if ca_file is not None:
        options["ca_cert"] = ca_file
    return _in_database(lambda **more: clickhouse_connect.get_client(**options, **more), database)


def connect_embedded(directory: Path, database: str) -> Client:
    """A client of chdb, ClickHouse as a library, with its data in ``directory``; one process at a time.

    Raises:
        clickhouse_connect.driver.exceptions.Error: the directory is in use, or is none.
    """
    import clickhouse_connect

    return _in_database(
        lambda **more: clickhouse_connect.get_client(interface="chdb", path=str(directory), **more), database
    )


def _in_database(connect: Callable[..., Client], database: str) -> Client:
    first = connect()
    try:
        # Asked before it is made: a user may write to a database and not be allowed to make one.
        there = first.query("SELECT 1 FROM system.databases WHERE name = %(name)s", {"name": database}).result_rows
        if not there:
            first.command(f"CREATE DATABASE IF NOT EXISTS `{database}`")
    finally:
        first.close()
    return connect(database=database)

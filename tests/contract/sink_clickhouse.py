"""ClickHouse behind its sink: as a library (chdb) in this process, or a server that the environment names."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from kong_plugins.adapters.sinks.clickhouse_sink import connect_embedded, connect_server
from kong_plugins.adapters.sinks.secrets import Secret
from tests.contract.sink_events import Booked
from tests.contract.sink_stores import place_taken

SERVER = "TOKEN_QUOTA_TEST_CLICKHOUSE"  # clickhouse://user@host:8123/, password as for the sink
_READ = "SELECT id, kind, tenant, prompt, completion, amount FROM events"


class _ClickHouse(ABC):
    url: str
    impatient_url: str

    @abstractmethod
    def connect(self): ...

    def rows(self, query: str) -> list[tuple]:
        client = self.connect()
        try:
            if not client.query("EXISTS TABLE books_schema").result_rows[0][0]:
                return []
            return [tuple(row) for row in client.query(query).result_rows]
        finally:
            client.close()

    def read_back(self) -> list[Booked]:
        return sorted(Booked(*row) for row in self.rows(_READ))


class EmbeddedStore(_ClickHouse):
    def __init__(self, directory: Path) -> None:
        self.directory = directory / "clickhouse"
        self.url = self.impatient_url = f"clickhouse+chdb://{self.directory}"

    def connect(self):
        return connect_embedded(self.directory, "token_quota")

    def away(self) -> AbstractContextManager[None]:
        return place_taken(self.directory)


class ServerStore(_ClickHouse):
    """A database of its own for each test, dropped after it."""

    def __init__(self, server: str) -> None:
        self.parts: SplitResult = urlsplit(server)
        self.database = f"test_{uuid.uuid4().hex}"
        self.url = self.impatient_url = f"clickhouse://{self.parts.netloc}/{self.database}"

    def connect(self):
        return connect_server(
            self.parts.hostname or "127.0.0.1",
            self.parts.port or 8123,
            self.database,
            user=self.parts.username or "default",
            password=Secret("TOKEN_QUOTA_CLICKHOUSE_PASSWORD"),
        )

    def drop(self) -> None:
        client = self.connect()
        client.command(f"DROP DATABASE `{self.database}`")
        client.close()

    @contextmanager
    def away(self) -> Iterator[None]:
        """The database is there, the table is not what it should be."""
        client = self.connect()
        there = client.query("EXISTS TABLE events_written").result_rows[0][0]
        if there:
            client.command("RENAME TABLE events_written TO events_aside")
        else:
            client.command("CREATE TABLE events_written (nothing UInt8) ENGINE = Memory")
        try:
            yield
        finally:
            if there:
                client.command("RENAME TABLE events_aside TO events_written")
            else:
                client.command("DROP TABLE events_written")
            client.close()

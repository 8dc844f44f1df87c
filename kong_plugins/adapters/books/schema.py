"""What is in the books' file, and how an older file becomes a newer one. Forward only."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb

_EVENTS = """
CREATE TABLE events (
    id VARCHAR PRIMARY KEY,
    kind VARCHAR NOT NULL,
    source VARCHAR NOT NULL,
    time TIMESTAMP_MS NOT NULL,
    tenant VARCHAR NOT NULL,
    model VARCHAR,
    credential VARCHAR,
    consumer VARCHAR,
    service VARCHAR,
    route VARCHAR,
    endpoint VARCHAR,
    stream BOOLEAN,
    prompt BIGINT NOT NULL,
    completion BIGINT NOT NULL,
    cached BIGINT NOT NULL,
    reasoning BIGINT NOT NULL,
    evidence VARCHAR,
    outcome VARCHAR,
    status INTEGER,
    upstream_status VARCHAR,
    finish VARCHAR,
    engine_id VARCHAR,
    started_ms BIGINT,
    first_ms BIGINT,
    last_ms BIGINT,
    proxy_ms BIGINT,
    choices INTEGER,
    prompt_bound BIGINT,
    completion_bound BIGINT,
    budgets VARCHAR[],
    "over" VARCHAR[],
    attributes MAP(VARCHAR, VARCHAR),
    posted MAP(VARCHAR, BIGINT),
    reverses VARCHAR,
    amount BIGINT,
    currency VARCHAR,
    account VARCHAR,
    reason VARCHAR,
    reference VARCHAR,
    adjustment VARCHAR,
    schema INTEGER NOT NULL
)
"""

# Appended to, never edited: each entry takes a file from its index to the next version, in one transaction.
MIGRATIONS: tuple[tuple[str, ...], ...] = ((_EVENTS,),)
VERSION = len(MIGRATIONS)

_VERSIONS = "CREATE TABLE books_schema (version INTEGER PRIMARY KEY, applied TIMESTAMP_MS NOT NULL)"


class WrongSchema(Exception):  # noqa: N818 - a state, not a fault
    """Another version's file, or no books at all. The message says what to do."""


def check(connection: duckdb.DuckDBPyConnection) -> int:
    """The version of an open file; 0: it is empty.

    Raises:
        WrongSchema: it is newer than we know, or somebody else's database.
    """
    tables = {name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    if not tables:
        return 0
    if "books_schema" not in tables:
        raise WrongSchema("is a DuckDB database, but not our books: give another path")
    row = connection.execute("SELECT max(version) FROM books_schema").fetchone()
    version = int(row[0]) if row and row[0] is not None else 0
    if version > VERSION:
        raise WrongSchema(
            f"has schema {version}, and this version of kong-token-quota knows none above {VERSION}: upgrade it here"
        )
    return version


def migrate(connection: duckdb.DuckDBPyConnection) -> None:
    """Bring a file that is open for writing to :data:`VERSION`. A crash leaves the version it had.

    Raises:
        WrongSchema: as :func:`check`.
    """
    version = check(connection)
    if version == VERSION:
        return
    connection.begin()
    try:
        if version == 0:
            connection.execute(_VERSIONS)
        for number, statements in enumerate(MIGRATIONS[version:], start=version + 1):
            for statement in statements:
                connection.execute(statement)
            connection.execute("INSERT INTO books_schema VALUES (?, make_timestamp_ms(epoch_ms(now())))", [number])
        connection.commit()
    except BaseException:
        connection.rollback()
        raise

"""The books in ClickHouse. What is written lands in ``events_written``, a repeated write as a row more until a merge in
the background takes it out; ``events`` is what to read, each id once, as it was first written.

Sum over ``events`` only. A materialized sum over what is written would count each repeated write.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kong_plugins.adapters.books.rows import COLUMNS

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

WRITTEN = "events_written"

# Rows of one id are neighbours, so merges and FINAL find them; months keep a period's reads to its own parts.
# The greatest `precedence` stays: of the first write. Without the last two settings a row that was acknowledged is in
# the kernel's cache only.
_WRITTEN = f"""
CREATE TABLE IF NOT EXISTS {WRITTEN} (
    id String,
    kind LowCardinality(String),
    source LowCardinality(String),
    time DateTime64(3, 'UTC'),
    tenant LowCardinality(String),
    model LowCardinality(Nullable(String)),
    credential LowCardinality(Nullable(String)),
    consumer LowCardinality(Nullable(String)),
    service LowCardinality(Nullable(String)),
    route LowCardinality(Nullable(String)),
    endpoint LowCardinality(Nullable(String)),
    stream Nullable(Bool),
    prompt Int64,
    completion Int64,
    cached Int64,
    reasoning Int64,
    evidence LowCardinality(Nullable(String)),
    outcome LowCardinality(Nullable(String)),
    status Nullable(Int32),
    upstream_status LowCardinality(Nullable(String)),
    finish LowCardinality(Nullable(String)),
    engine_id Nullable(String),
    started_ms Nullable(Int64),
    first_ms Nullable(Int64),
    last_ms Nullable(Int64),
    proxy_ms Nullable(Int64),
    choices Nullable(Int32),
    prompt_bound Nullable(Int64),
    completion_bound Nullable(Int64),
    budgets Array(String),
    over Array(String),
    attributes Map(String, String),
    posted Map(String, Int64),
    reverses Nullable(String),
    amount Nullable(Int64),
    currency LowCardinality(Nullable(String)),
    account LowCardinality(Nullable(String)),
    reason Nullable(String),
    reference Nullable(String),
    adjustment LowCardinality(Nullable(String)),
    schema Int32,
    precedence Int64 DEFAULT -toUnixTimestamp64Micro(now64(6))
)
ENGINE = ReplacingMergeTree(precedence)
PARTITION BY toYYYYMM(time)
ORDER BY id
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1
"""

# The setting makes FINAL look across months too: an id is one event, whatever its time.
_EVENTS = f"""
CREATE OR REPLACE VIEW events AS
SELECT {", ".join(COLUMNS)} FROM {WRITTEN} FINAL
SETTINGS do_not_merge_across_partitions_select_final = 0
"""  # noqa: S608 - constants of ours

# Appended to, never edited: each takes the database from its index to the next version. ClickHouse has no transactions
# over several statements, so each statement can be made again, by several collectors at a time.
MIGRATIONS: tuple[tuple[str, ...], ...] = ((_WRITTEN, _EVENTS),)
VERSION = len(MIGRATIONS)

_VERSIONS = """
CREATE TABLE IF NOT EXISTS books_schema (version UInt32, applied DateTime64(3, 'UTC') DEFAULT now64(3))
ENGINE = ReplacingMergeTree ORDER BY version
"""


class WrongSchema(Exception):  # noqa: N818 - a state, not a fault
    """The database is another version's. The message says what to do."""


def migrate(client: Client) -> None:
    """Bring the client's database to :data:`VERSION`.

    Raises:
        WrongSchema: it is newer than we know.
    """
    client.command(_VERSIONS)
    version = int(client.query("SELECT max(version) FROM books_schema").result_rows[0][0])
    if version > VERSION:
        raise WrongSchema(
            f"has schema {version}, and this version of kong-token-quota knows none above {VERSION}: upgrade it here"
        )
    for number, statements in enumerate(MIGRATIONS[version:], start=version + 1):
        for statement in statements:
            client.command(statement)
        client.command(f"INSERT INTO books_schema (version) VALUES ({number:d})")  # noqa: S608

"""The books' table `engine_counters`: scrapes of the engines' counters, kept over the engines' restarts and ours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from kong_plugins.application.reconcile_scrapes import Scrape

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

# Beside the migrations of `events`: whoever never scrapes an engine has no such table.
_TABLE = """
CREATE TABLE IF NOT EXISTS engine_counters (
    engine VARCHAR NOT NULL,
    model VARCHAR NOT NULL,
    rank VARCHAR NOT NULL,
    life VARCHAR NOT NULL,
    scraped TIMESTAMP NOT NULL,
    born TIMESTAMP,
    prompt BIGINT NOT NULL,
    completion BIGINT NOT NULL,
    cached BIGINT NOT NULL,
    finished MAP(VARCHAR, BIGINT) NOT NULL,
    running BIGINT NOT NULL,
    PRIMARY KEY (engine, model, rank, scraped)
)
"""

_INSERT = """
INSERT INTO engine_counters
VALUES ($1, $2, $3, $4, make_timestamp($5), make_timestamp($6), $7, $8, $9, map($10, $11), $12)
ON CONFLICT DO NOTHING
"""

_SELECT = """
WITH scrapes AS (
    SELECT engine, model, rank, life, epoch_us(scraped) AS at_us, epoch_us(born), prompt, completion, cached, finished,
           running
    FROM engine_counters
)
SELECT * FROM scrapes WHERE at_us > $start AND at_us <= $end
UNION ALL (SELECT * FROM scrapes WHERE at_us <= $start
    QUALIFY row_number() OVER (PARTITION BY engine, model, rank, life ORDER BY at_us DESC) = 1)
UNION ALL (SELECT * FROM scrapes WHERE at_us > $end
    QUALIFY row_number() OVER (PARTITION BY engine, model, rank, life ORDER BY at_us) = 1)
ORDER BY at_us, engine, model, rank
"""


def store_scrapes(connection: DuckDBPyConnection, scrapes: Iterable[Scrape]) -> None:
    """Keep scrapes; one that is kept already is left as it is. ``connection`` is the writer's; committed on return,
    unless it is within a transaction of its own."""
    connection.execute(_TABLE)
    for each in scrapes:
        connection.execute(
            _INSERT,
            [
                *(each.engine, each.model, each.rank, each.life, each.at_us, each.born_us),
                *(each.prompt, each.completion, each.cached),
                *(list(each.finished), list(each.finished.values()), each.running),
            ],
        )


def load_scrapes(connection: DuckDBPyConnection, start_us: int, end_us: int) -> Sequence[Scrape]:
    """Every scrape of a span, and of each engine's counters the last before it and the first after it, by time."""
    known = connection.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = 'engine_counters'").fetchone()
    if known is None:
        return ()
    rows = connection.execute(_SELECT, {"start": start_us, "end": end_us}).fetchall()
    return [Scrape(*row) for row in rows]

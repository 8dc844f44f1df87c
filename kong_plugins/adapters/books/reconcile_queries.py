"""What reconciliation asks of the books' `events` table, in DuckDB's SQL."""

# ruff: noqa: S608 - queries are put together from the constants of this file and integers; names are parameters

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kong_plugins.application.reconcile import BookedSpan, BookedSums
from kong_plugins.application.reconcile_events import UNHEARD_US, BookedEvent
from kong_plugins.application.reconcile_ledger import Posting, Postings
from kong_plugins.application.reconcile_scrapes import EngineSpan, Interval, Place, Tokens

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

NAMED_MAX = 20  # events that are named as suspects

# A reversal has no times of its own: it stands where the attempt stood that it takes back.
_EVENTS = """
WITH ran AS (
    SELECT id, kind, model, started_ms * 1000 AS started,
           coalesce(last_ms, epoch_ms(time)) * 1000 + CASE WHEN outcome = 'expired' THEN {unheard} ELSE 0 END AS ended,
           prompt, completion, evidence, outcome, status, coalesce(choices, 1) AS choices,
           coalesce(prompt_bound, 0) AS prompt_bound, coalesce(completion_bound, 0) AS completion_bound, tenant, time
    FROM events WHERE kind = 'request'
    UNION ALL
    SELECT own.id, own.kind, own.model, coalesce(attempt.started_ms, epoch_ms(own.time)) * 1000,
           coalesce(attempt.last_ms, epoch_ms(own.time)) * 1000, own.prompt, own.completion, own.evidence, own.outcome,
           own.status, 1, 0, 0, own.tenant, own.time
    FROM (SELECT * FROM events WHERE kind = 'reversal') AS own LEFT JOIN events AS attempt ON attempt.id = own.reverses
), placed AS (
    SELECT *, {place} AS place,
           coalesce(kind = 'request' AND choices = 1 AND (outcome = 'denied'
               OR (evidence = 'exact' AND (status < 500 OR prompt + completion > 0))), false) AS plain
    FROM ran
    WHERE list_contains($models, coalesce(model, '')) AND time >= make_timestamp({first} - {slack} - {unheard})
      AND ended + {slack} > {first} AND started - {slack} < {last}
)
"""

_POSTED = """
SELECT tenant, entry.key AS line, id, entry.value AS units, started FROM (
    SELECT id, tenant, started_ms * 1000 AS started, unnest(map_entries(posted)) AS entry
    FROM events WHERE kind = 'request' AND time >= make_timestamp({first})
    UNION ALL
    SELECT own.id, own.tenant, coalesce(attempt.started_ms, epoch_ms(own.time)) * 1000, unnest(map_entries(own.posted))
    FROM (SELECT * FROM events WHERE kind = 'reversal') AS own LEFT JOIN events AS attempt ON attempt.id = own.reverses
    WHERE own.time >= make_timestamp({first})
)
"""


@dataclass(frozen=True, slots=True)
class DaySums:
    """What a day bills of a model, by its events' own time."""

    model: str
    requests: int
    tokens: Tokens
    cached: int


@dataclass(frozen=True, slots=True)
class Suspects:
    """Events that look wrong, for a person to begin with. ``twins``: pairs of ids that claim the same answer of an
    engine. ``misposted``: their postings do not follow from their counts, as those of the others do."""

    twins: tuple[tuple[str, ...], ...]
    misposted: tuple[str, ...]


class ReconcileQueries:
    """Questions over a connection to the books. What it reads stands still while the connection is open."""

    def __init__(self, connection: DuckDBPyConnection) -> None:
        self._connection = connection

    def day(self, start_us: int, end_us: int) -> list[DaySums]:
        """Every model that events of the day are of."""
        rows = self._rows(
            "SELECT coalesce(model, ''), count(*) FILTER (kind = 'request' AND outcome <> 'denied'), sum(prompt),"
            " sum(completion), sum(cached) FROM events WHERE kind IN ('request', 'reversal')"
            " AND time >= make_timestamp($start) AND time < make_timestamp($end) GROUP BY 1 ORDER BY 1",
            {"start": start_us, "end": end_us},
        )
        return [DaySums(model, count, Tokens(int(p), int(c)), int(k)) for model, count, p, c, k in rows]

    def of(self, models: Iterable[str]) -> ModelEvents:
        """The events of a model by any of its names."""
        return ModelEvents(self._connection, list(models))

    def pace(self, models: Iterable[str], start_us: int, end_us: int) -> float | None:
        """Tokens a second of the day's fastest streamed answer, of those long enough to tell by."""
        ((pace,),) = self._rows(
            "SELECT max((completion - 1) * 1000.0 / (last_ms - first_ms)) FROM events WHERE kind = 'request' AND stream"
            " AND evidence = 'exact' AND outcome = 'completed' AND choices IS NULL AND completion >= 16"
            " AND last_ms - first_ms >= 100 AND list_contains($models, coalesce(model, ''))"
            " AND time >= make_timestamp($start) AND time < make_timestamp($end)",
            {"models": list(models), "start": start_us, "end": end_us},
        )
        return None if pace is None else float(pace)

    def postings(self, start_us: int, end_us: int, slack_us: int) -> Postings:
        """``application.reconcile_ledger.PostedEvents``."""
        posted = _POSTED.format(first=start_us - slack_us)
        first, last = start_us + slack_us, end_us - slack_us
        sums = self._rows(
            f"SELECT tenant, line, sum(units) FROM ({posted})"
            f" WHERE started >= {first} AND started < {last} GROUP BY ALL"
        )
        near = self._rows(
            f"SELECT * FROM ({posted}) WHERE (started >= {start_us - slack_us} AND started < {first})"
            f" OR (started >= {last} AND started < {end_us + slack_us}) ORDER BY started, id"
        )
        return Postings({(tenant, line): int(units) for tenant, line, units in sums}, [Posting(*row) for row in near])

    def known(self, ids: Sequence[str]) -> set[str]:
        """Those of these event ids that are in the books."""
        rows = self._rows("SELECT id FROM events WHERE id IN (SELECT unnest($ids::VARCHAR[]))", {"ids": list(ids)})
        return {event_id for (event_id,) in rows}

    def started(self, event_id: str) -> int | None:
        """When a request in the books began, in microseconds."""
        rows = self._rows("SELECT started_ms * 1000 FROM events WHERE id = $id", {"id": event_id})
        return rows[0][0] if rows else None

    def unposted(self, start_us: int, end_us: int) -> list[tuple[str, str, int]]:
        """Requests with budgets that were charged and posted to none: id, tenant, tokens. Their hold was lost."""
        return self._rows(
            "SELECT id, tenant, prompt + completion FROM events WHERE kind = 'request' AND len(budgets) > 0"
            " AND prompt + completion > 0 AND coalesce(cardinality(posted), 0) = 0"
            " AND time >= make_timestamp($start) AND time < make_timestamp($end) ORDER BY time, id",
            {"start": start_us, "end": end_us},
        )

    def suspects(self, start_us: int, end_us: int) -> Suspects:
        """Of the requests that began in a span."""
        within = f"kind = 'request' AND started_ms * 1000 >= {start_us} AND started_ms * 1000 < {end_us}"
        twins = self._rows(
            f"SELECT list_sort(list(id)) FROM events WHERE {within} AND engine_id IS NOT NULL"
            f" AND prompt + completion > 0 GROUP BY engine_id HAVING count(*) > 1 ORDER BY 1 LIMIT {NAMED_MAX}"
        )
        # Which counts a budget posts is not in the books; nine in ten of its events agree on it.
        misposted = self._rows(
            f"""
            WITH posted AS (
                SELECT id, tenant, entry.key AS line, entry.value = prompt + completion AS of_total,
                       entry.value = prompt AS of_prompt, entry.value = completion AS of_completion
                FROM (SELECT *, unnest(map_entries(posted)) AS entry FROM events WHERE {within})
            ), share AS (
                SELECT *, avg(of_total::INT) OVER line AS total, avg(of_prompt::INT) OVER line AS prompts,
                       avg(of_completion::INT) OVER line AS completions
                FROM posted WINDOW line AS (PARTITION BY split_part(line, '|', 1))
            )
            SELECT DISTINCT id FROM share
            WHERE (total >= 0.9 AND NOT of_total) OR (prompts >= 0.9 AND NOT of_prompt)
               OR (completions >= 0.9 AND NOT of_completion)
            ORDER BY id LIMIT {NAMED_MAX}
            """
        )
        return Suspects(tuple(tuple(ids) for (ids,) in twins), tuple(event_id for (event_id,) in misposted))

    def _rows(self, query: str, parameters: dict[str, object] | None = None) -> list[tuple[Any, ...]]:
        return self._connection.execute(query, parameters or {}).fetchall()


class ModelEvents:
    """``application.reconcile.BookedEvents`` of one model."""

    def __init__(self, connection: DuckDBPyConnection, models: list[str]) -> None:
        self._connection = connection
        self._models = models

    def span(self, span: EngineSpan, slack_us: int) -> BookedSpan:
        events = _EVENTS.format(
            place=_place(span, slack_us),
            slack=slack_us,
            unheard=UNHEARD_US,
            first=min(span.start_us, span.from_us),
            last=max(span.end_us, span.to_us),
        )
        sums = self._rows(
            events + "SELECT place, count(*) FILTER (kind = 'request'), sum(prompt), sum(completion) FROM placed"
            " WHERE place <> 'crossing' AND (plain OR place <> 'inside') GROUP BY place"
        )
        seen = {Place(place): BookedSums(count, Tokens(int(p), int(c))) for place, count, p, c in sums}
        rows = self._rows(
            events + "SELECT id, kind, model, started, ended, abs(prompt), abs(completion), evidence, outcome, status,"
            " choices, prompt_bound, completion_bound, tenant FROM placed"
            " WHERE place = 'crossing' OR (place = 'inside' AND NOT plain) ORDER BY started, id"
        )
        plain = seen.pop(Place.INSIDE, BookedSums())
        return BookedSpan(plain, seen, [_booked(row) for row in rows])

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        return self._connection.execute(query, {"models": self._models}).fetchall()


def _booked(row: tuple[Any, ...]) -> BookedEvent:
    event_id, kind, model, started, ended, prompt, completion, evidence, outcome, status, *rest = row
    return BookedEvent(
        event_id, kind, model or "", started, ended, prompt, completion, evidence, outcome, status or 0, *rest
    )


def _place(span: EngineSpan, slack_us: int) -> str:
    """``EngineSpan.place`` in SQL."""
    started, ended = f"(started - {slack_us})", f"(ended + {slack_us})"
    return (
        f"CASE WHEN NOT {_any(span.unsure, f'{{low}} < {ended} AND {started} < {{high}}')} THEN 'inside'"
        f" WHEN NOT {_any(span.hidden, f'{{low}} <= {started} AND {ended} <= {{high}}')} THEN 'crossing'"
        f" WHEN {ended} <= {span.from_us} THEN 'before' WHEN {started} >= {span.to_us} THEN 'after' ELSE 'between' END"
    )


def _any(intervals: Sequence[Interval], condition: str) -> str:
    parts = [f"({condition.format(low=low, high=high)})" for low, high in intervals]
    return f"({' OR '.join(parts) or 'false'})"

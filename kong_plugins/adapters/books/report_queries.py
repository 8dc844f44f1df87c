"""Sums for reports over the books' `events` table, in DuckDB's SQL: one pass over a period for each question.

The charge of an event is worked out here for each row, in integers of 128 bits, exactly as ``domain.rating.rate_event``
does it; a test holds the two together.
"""

# ruff: noqa: S608 - queries are put together from the constants of this file; every value is a parameter

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kong_plugins.adapters.books.opening import BooksUnavailable
from kong_plugins.application.report import Bucket, Latency, Percentiles, Scope, Sums, Tokens, Top, UsageSum
from kong_plugins.domain.double_entry import Adjustment, Charged
from kong_plugins.domain.pricing import PER_TOKENS
from kong_plugins.domain.rating import SETTLED, PriceSpan, RequestFee

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

STEP_MS = 900_000  # a quarter of an hour: every zone's midnight of today is on one
PAGE = 10_000

_SCOPE = """
    time >= make_timestamp_ms($start_ms) AND time < make_timestamp_ms($end_ms)
    AND ($tenant IS NULL OR tenant = $tenant)
"""

_FEES = {
    RequestFee.METERED: "prompt + completion <> 0",
    RequestFee.ALL: f"kind = 'reversal' OR outcome IN ({', '.join(repr(name) for name in sorted(SETTLED))})",
}

# Counts of a reversal are negative in the books, and rounding up is of what it takes back.
_RATED = f"""
WITH spans AS (
    SELECT unnest($models) AS model, unnest($starts) AS start_ms, unnest($ends) AS end_ms, unnest($numbers) AS span,
           unnest($prompts) AS prompt_rate, unnest($cacheds) AS cached_rate, unnest($completions) AS completion_rate,
           unnest($reasonings) AS reasoning_rate, unnest($requests) AS request_rate
), counted AS (
    SELECT id, time, kind = 'reversal' AS reversal, tenant, coalesce(model, '') AS model, route, credential,
           coalesce(outcome, '') AS outcome, coalesce(evidence, '') AS evidence,
           CASE WHEN outcome = 'denied' THEN status END AS status,
           epoch_ms(time) // {STEP_MS} AS step, prompt, cached, completion, reasoning,
           coalesce({{fees}}, false)::BIGINT * (CASE WHEN kind = 'reversal' THEN -1 ELSE 1 END) AS fees
    FROM events WHERE kind IN ('request', 'reversal') AND {_SCOPE}
), rated AS (
    SELECT counted.*, span,
           (span IS NULL AND (prompt + completion <> 0 OR fees <> 0))::BIGINT AS unrated,
           CASE WHEN span IS NULL THEN 0::HUGEINT ELSE
               ((prompt_rate::HUGEINT * abs(prompt - cached) + cached_rate::HUGEINT * abs(cached)
                 + completion_rate::HUGEINT * abs(completion - reasoning) + reasoning_rate::HUGEINT * abs(reasoning)
                 + {PER_TOKENS - 1}) // {PER_TOKENS})
               * (CASE WHEN reversal THEN -1 ELSE 1 END) + request_rate::HUGEINT * fees
           END AS amount
    FROM counted LEFT JOIN spans
        ON counted.model = spans.model
        AND time >= make_timestamp_ms(spans.start_ms) AND time < make_timestamp_ms(spans.end_ms)
)
"""

_TOKENS = "sum(prompt), sum(cached), sum(completion), sum(reasoning)"
_PERCENTILES = "[0.5, 0.95, 0.99]"


class ReportQueries:
    """``application.report.Books`` over a connection to the books. What it reads stands still while the connection is
    open read-only: the writer waits."""

    def __init__(self, connection: DuckDBPyConnection) -> None:
        self._connection = connection

    def models(self, scope: Scope) -> Sequence[str]:
        rows = self._rows(
            "SELECT DISTINCT coalesce(model, '') AS model FROM events"
            f" WHERE kind IN ('request', 'reversal') AND {_SCOPE} ORDER BY model",
            _bounds(scope),
        )
        return [model for (model,) in rows]

    def sums(self, scope: Scope, spans: Sequence[PriceSpan], fee: RequestFee) -> Sums:
        rows = self._rated(
            f"""
            SELECT grouping(model) = 0, grouping(route) = 0, grouping(credential) = 0,
                   tenant, model, reversal, outcome, evidence, status, span, route, credential, step,
                   count(*), count(*) FILTER (NOT reversal), sum(fees), sum(unrated), sum(amount), {_TOKENS}
            FROM rated
            GROUP BY GROUPING SETS (
                (tenant, model, reversal, outcome, evidence, status, span),
                (tenant, route), (tenant, credential), (step)
            )
            ORDER BY ALL
            """,
            scope,
            spans,
            fee,
        )
        sums = Sums([], defaultdict(list), defaultdict(list), [])
        for of_usage, of_route, of_credential, tenant, model, reversal, outcome, evidence, status, *rest in rows:
            span, route, credential, step, events, requests, fees, unrated, amount, *counts = rest
            tokens = Tokens(*map(int, counts))
            if of_usage:
                known = (tenant, model, reversal, outcome, evidence, status, span)
                sums.usage.append(UsageSum(*known, events, int(fees), int(unrated), tokens, int(amount)))
            elif of_route or of_credential:
                name = route if of_route else credential
                if name is not None:
                    tops = sums.routes if of_route else sums.credentials
                    tops[tenant].append(Top(name, requests, tokens.total, int(amount)))
            else:
                sums.steps.append(Bucket(step * STEP_MS, requests, tokens, int(amount)))
        return sums

    def adjustments(self, scope: Scope) -> Sequence[Adjustment]:
        rows = self._rows(
            f"""
            SELECT id, epoch_ms(time), tenant, adjustment, amount, currency, account, reason, reference
            FROM events WHERE kind = 'adjustment' AND {_SCOPE} ORDER BY time, id
            """,
            _bounds(scope),
        )
        # Looked up apart, and only where there are any: a join would read every event there ever was.
        about = sorted({row[-1] for row in rows if row[-1] is not None})
        times: dict[str, int] = {}
        if about:
            query = "SELECT id, epoch_ms(time) FROM events WHERE id IN (SELECT unnest($ids))"
            times = dict(self._rows(query, {"ids": about}))
        return [
            Adjustment(event_id, at_ms, tenant, kind, amount, currency, account, reason, about_id, times.get(about_id))
            for event_id, at_ms, tenant, kind, amount, currency, account, reason, about_id in rows
        ]

    def latency(self, scope: Scope) -> Mapping[str | None, Latency]:
        rows = self._rows(
            f"""
            SELECT grouping(tenant), tenant,
                   count(first), quantile_disc(first, {_PERCENTILES}),
                   count(whole), quantile_disc(whole, {_PERCENTILES}),
                   count(proxy_ms), quantile_disc(proxy_ms, {_PERCENTILES})
            FROM (
                SELECT tenant, proxy_ms, first_ms - started_ms AS first,
                       CASE WHEN outcome = 'completed' THEN last_ms - started_ms END AS whole
                FROM events WHERE kind = 'request' AND outcome IN ('completed', 'aborted') AND {_SCOPE}
            ) GROUP BY GROUPING SETS ((tenant), ())
            """,
            _bounds(scope),
        )
        return {
            None if overall else tenant: Latency(*(_percentiles(*rest[n : n + 2]) for n in (0, 2, 4)))
            for overall, tenant, *rest in rows
        }

    def charged(self, scope: Scope, spans: Sequence[PriceSpan], fee: RequestFee, currency: str) -> Iterator[Charged]:
        cursor = self._connection.cursor()
        cursor.execute(
            _RATED.format(fees=_FEES[fee])
            + "SELECT id, epoch_ms(time), tenant, model, amount FROM rated WHERE amount <> 0 ORDER BY time, id",
            {**_bounds(scope), **_columns(spans)},
        )
        while rows := cursor.fetchmany(PAGE):
            for event_id, time_ms, tenant, model, amount in rows:
                yield Charged(event_id, time_ms, tenant, model, int(amount), currency)

    def _rated(self, query: str, scope: Scope, spans: Sequence[PriceSpan], fee: RequestFee) -> list[tuple[Any, ...]]:
        return self._rows(_RATED.format(fees=_FEES[fee]) + query, {**_bounds(scope), **_columns(spans)})

    def _rows(self, query: str, parameters: Mapping[str, object]) -> list[tuple[Any, ...]]:
        import duckdb

        try:
            return self._connection.execute(query, parameters).fetchall()
        except duckdb.Error as error:
            raise BooksUnavailable(f"cannot read the books: {error}") from error


def _bounds(scope: Scope) -> dict[str, object]:
    return {"start_ms": scope.period.start_ms, "end_ms": scope.period.end_ms, "tenant": scope.tenant}


def _columns(spans: Sequence[PriceSpan]) -> dict[str, object]:
    rates = [span.entry.rate for span in spans]
    return {
        "models": [span.model for span in spans],
        "starts": [span.start_ms for span in spans],
        "ends": [span.end_ms for span in spans],
        "numbers": list(range(len(spans))),
        "prompts": [rate.prompt for rate in rates],
        "cacheds": [rate.cached for rate in rates],
        "completions": [rate.completion for rate in rates],
        "reasonings": [rate.reasoning for rate in rates],
        "requests": [rate.request for rate in rates],
    }


def _percentiles(count: int, values: list[int] | None) -> Percentiles | None:
    return Percentiles(count, *values) if count and values else None

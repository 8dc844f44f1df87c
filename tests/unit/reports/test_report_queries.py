"""What SQL works out for a million rows is what the domain says of each event."""

from __future__ import annotations

from collections import Counter
from datetime import date

import duckdb
from hypothesis import given, settings
from hypothesis import strategies as st
from report_books import NOON, adjustment, request

from kong_plugins.adapters.books.report_queries import ReportQueries
from kong_plugins.adapters.books.rows import arrow_table, rows_of
from kong_plugins.adapters.books.schema import migrate
from kong_plugins.application.ports import OutboxEntry
from kong_plugins.application.report import Scope, ledger_entries, make_report
from kong_plugins.domain.holds import Outcome
from kong_plugins.domain.periods import day_period
from kong_plugins.domain.rating import RATE_MAX, MeteredEvent, PriceEntry, PriceList, Rate, RequestFee, rate_event
from kong_plugins.domain.usage import Usage

SCOPE = Scope(day_period(date(2026, 11, 22), "UTC"))

# Far beyond any request, so that only exact integers come through.
counts = st.one_of(st.integers(0, 50), st.integers(0, 2**32))
amounts = st.one_of(st.integers(0, 5_000_000), st.integers(0, RATE_MAX))


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    prompt, completion = draw(counts), draw(counts)
    return Usage(prompt, completion, draw(st.integers(0, prompt)), draw(st.integers(0, completion)))


@st.composite
def rates(draw: st.DrawFn) -> Rate:
    prompt = draw(amounts)
    return Rate(prompt, draw(st.integers(0, prompt)), draw(amounts), draw(amounts), draw(amounts))


@st.composite
def price_lists(draw: st.DrawFn) -> PriceList:
    models: dict[str, tuple[PriceEntry, ...]] = {}
    for pattern in draw(st.sets(st.sampled_from(["m1", "m*", "*2"]))):
        begins = sorted(draw(st.sets(st.integers(-5, 5), min_size=1, max_size=3)))
        models[pattern] = tuple(PriceEntry(pattern, f"{n}", NOON + n, draw(rates())) for n in begins)
    return PriceList("EUR", models, draw(st.sampled_from(RequestFee)))


outcomes = st.sampled_from([Outcome.COMPLETED, Outcome.ABORTED, Outcome.FAILED, Outcome.DENIED])
known = st.tuples(
    st.sampled_from(["t1", "t2"]),
    st.sampled_from(["m1", "m2", "x"]),
    usages(),
    st.integers(-6, 6),
    outcomes,
    st.booleans(),
)


def books_of(entries: list[OutboxEntry]) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    migrate(connection)
    rows, rejected = rows_of(entries)
    assert not rejected
    if rows:
        connection.register("batch", arrow_table(rows))
        connection.execute("INSERT INTO events BY NAME SELECT * FROM batch")
    return connection


@settings(max_examples=25)
@given(st.lists(known, max_size=12), price_lists())
def test_sql_charges_each_event_as_the_domain_does(
    drawn: list[tuple[str, str, Usage, int, Outcome, bool]], prices: PriceList
) -> None:
    """Amounts, what has no price, parts and rounding, reversals, both fee policies; and double entry sums to zero."""
    entries: list[OutboxEntry] = []
    expected, unrated = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for n, (tenant, model, usage, offset, outcome, reversed_too) in enumerate(drawn):
        taken = Usage() if outcome is Outcome.DENIED else usage
        back = reversed_too and outcome is not Outcome.DENIED
        at_ms = NOON + offset
        entries += request(f"r{n}", tenant, taken, at_ms=at_ms, model=model, outcome=outcome, reversed_too=back)
        events = [MeteredEvent(f"r{n}", tenant, model, at_ms, taken, outcome)]
        events += [MeteredEvent(f"reversal:r{n}", tenant, model, at_ms, taken, "", True)] if back else []
        for event in events:
            charge = rate_event(event, prices)
            if charge is None:
                unrated[tenant, model] += 1
            else:
                expected[tenant, model] += charge.amount
    entries += adjustment("a", "t1", 5)
    with books_of(entries) as connection:
        queries = ReportQueries(connection)
        report = make_report(queries, prices, SCOPE)
        booked = list(ledger_entries(queries, prices, SCOPE))
    found = {(tenant.tenant, model.model): model.summary for tenant in report.tenants for model in tenant.models}
    assert {key: summary.charges.amount for key, summary in found.items()} == {key: expected[key] for key in found}
    assert {key: summary.unrated for key, summary in found.items() if summary.unrated} == dict(unrated)
    assert all(line.charges.rounding * (-1 if line.usage.reversal else 1) >= 0 for line in report.lines)
    assert sum(entry.amount for entry in booked) == 0
    owed = sum(entry.amount for entry in booked if entry.account.startswith("receivable:"))
    assert owed == report.net["EUR"] == sum(expected.values()) - 5


def test_sql_counts_in_integers_where_a_double_would_not_do() -> None:
    """Charges of 10^15 micro-units with one, or all but one, of a million parts above the last whole one."""
    dearest = Rate(RATE_MAX - 1, RATE_MAX - 1, RATE_MAX - 1, RATE_MAX - 1)
    usages = [Usage(millions * 10**6 + rest, rest) for millions in range(4200, 4294) for rest in (0, 1, 999_999)]
    entries = [one for n, usage in enumerate(usages) for one in request(f"r{n}", f"t{n}", usage, model="m")]
    prices = PriceList("EUR", {"m": (PriceEntry("m", "d", 0, dearest),)})
    with books_of(entries) as connection:
        report = make_report(ReportQueries(connection), prices, SCOPE)
    found = {tenant.tenant: tenant.net["EUR"] for tenant in report.tenants}
    assert found == {f"t{n}": dearest.charge(usage) for n, usage in enumerate(usages)}


def test_names_that_look_like_sql_are_names() -> None:
    """A tenant and a model with quotes are found by exactly their names."""
    tenant = "'; DROP TABLE events; --"
    entries = request("r1", tenant, Usage(5, 5), model="m'\"") + request("r2", "other", Usage(5, 5))
    prices = PriceList("EUR", {"m'\"": (PriceEntry("m'\"", "d", 0, Rate(10**6, 10**6, 10**6, 10**6)),)})
    with books_of(entries) as connection:
        report = make_report(ReportQueries(connection), prices, Scope(SCOPE.period, tenant))
    assert [(one.tenant, one.net) for one in report.tenants] == [(tenant, {"EUR": 10})]


def test_the_busiest_five_are_named() -> None:
    """Of seven routes the five with most tokens, most first; what has no route is in none."""
    entries = [one for n in range(7) for one in request(f"r{n}", "t", Usage(10 * n, 0), model="x", route=f"route-{n}")]
    entries += request("none", "t", Usage(10**6, 0), model="x", route=None)
    with books_of(entries) as connection:
        report = make_report(ReportQueries(connection), PriceList("EUR", {}), SCOPE)
    assert [top.name for top in report.tenants[0].routes] == [f"route-{n}" for n in (6, 5, 4, 3, 2)]
    assert [(top.requests, top.tokens) for top in report.tenants[0].credentials] == [(8, 10**6 + 210)]

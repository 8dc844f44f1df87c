"""The collector's own sink beside the plain one: real rows in a real file, compared at every audit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kong_plugins.adapters.books import open_books
from kong_plugins.adapters.books.report_queries import ReportQueries
from kong_plugins.adapters.books.rows import row_of
from kong_plugins.adapters.sinks.duckdb_sink import DuckDBSink
from kong_plugins.application.ports import OutboxEntry
from kong_plugins.application.report import Scope, ledger_entries, make_report
from kong_plugins.domain.periods import Period
from tests.simulation.account import check
from tests.simulation.collecting import Books

COLUMNS = "id, kind, tenant, model, prompt, completion, cached, reasoning, evidence, outcome, posted, amount"
_PLACES = (0, 1, 4, 5, 12, 13, 14, 15, 16, 17, 32, 34)


class DuckDBBooks(Books):
    """Its rows are those of the plain books, event by event; its report owes what double entry of them owes."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._path = directory / "books.duckdb"
        self._sink = DuckDBSink(self._path)

    def store(self, entries: Sequence[OutboxEntry]) -> None:
        if entries:
            self._sink.write(entries)
        super().store(entries)

    def compare(self) -> None:
        self._sink.close()
        self._sink = DuckDBSink(self._path)
        with open_books(self._path, read_only=False) as connection:
            found = connection.execute(f"SELECT {COLUMNS} FROM events").fetchall()
            expected = {each.event_id: row_of(each) for each in self.rows.values()}
            check(len(found) == len(expected), "the books' file has other events", len(found), len(expected))
            for row in found:
                plain = tuple(expected[row[0]][place] for place in _PLACES)
                posted = dict(plain[10]) if plain[10] else {}
                check(row[:10] == plain[:10] and row[11] == plain[11], "the books' file says otherwise", row, plain)
                check((row[10] or {}) == posted, "the books' file has other postings", row, plain)
            end_ms = self.world.kernel.now_us // 1000 + 86_400_000
            scope = Scope(Period("2040-03", "UTC", 0, end_ms, (0,)))
            queries, prices = ReportQueries(connection), self.world.prices
            report = make_report(queries, prices, scope)
            entries = list(ledger_entries(queries, prices, scope))
            check(sum(each.amount for each in entries) == 0, "the report's entries do not sum to zero", scope)
            for tenant in report.tenants:
                owed = sum(each.amount for each in entries if each.account == f"receivable:{tenant.tenant}")
                check(tenant.net["EUR"] == owed, "a report owes something else", tenant.tenant, tenant.net, owed)
            connection.execute("DELETE FROM events")

    def close(self) -> None:
        self._sink.close()

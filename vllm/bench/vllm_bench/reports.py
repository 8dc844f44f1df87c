"""The files that a run leaves to be read: table.md and chart.svg."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vllm_bench.chart import svg
from vllm_bench.figures import Row
from vllm_bench.table import cells_table, summary

IN_TABLE = {None, "window"}  # a ceiling or a long prompt has other sizes than the rest of a chart


def write_reports(rows: Sequence[Row], out: Path) -> None:
    """``rows`` of one or more runs, each begun by its conditions."""
    (out / "table.md").write_text(f"{summary(rows)}\n\n{cells_table(rows)}\n", encoding="utf-8")
    notes = []
    for row in rows:
        if row["kind"] == "conditions":
            cards = row["cards"] if isinstance(row["cards"], str) else "; ".join(row["cards"])
            notes += [f"{cards}; {row['processor']}", f"{row['at']}, commit {row['commit']}"]
    charted = [row for row in rows if row.get("purpose") in IN_TABLE]
    (out / "chart.svg").write_text(svg(charted, "\n".join(notes)), encoding="utf-8")

"""The bench as one runs it, against the engine stand-in: every kind of figure, and books that balance."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUN = ROOT / "vllm" / "bench" / "run.py"


@pytest.mark.slow
def test_a_quick_run_leaves_rows_table_and_chart_and_balanced_books(tmp_path: Path) -> None:
    """Ceiling first, then the engine direct and through the gateway; kept rows make the same table again."""
    arguments = ["--stand-in", "--quick", "--processes", "2", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, str(RUN), *arguments], capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows if row["kind"] != "cell"] == [
        "conditions",
        "added",
        "engine",
        "added",
        "added",
        "ratio",
        "books",
    ]
    cells = [row for row in rows if row["kind"] == "cell"]
    assert {(row["engine"], row["way"]) for row in cells} == {
        (engine, way) for engine in ("instant", "stand-in") for way in ("direct", "local")
    }
    assert all(row["output_counted"] == row["requests"] * row["output_tokens"] for row in cells)
    assert cells[0]["purpose"] == "ceiling"
    shared = [row for row in cells if row["engine"] == "stand-in" and row["shared_percent"] == 90]
    assert shared
    assert all(row["prompt_counted"] > row["cached_counted"] for row in shared)
    books = next(row for row in rows if row["kind"] == "books")
    assert (books["requests"], books["unexplained"]) == (60, [])
    assert books["left_before_the_end"] > 0
    table = (tmp_path / "table.md").read_text()
    again = [str(RUN.with_name("report.py")), "--out", str(tmp_path / "again"), str(tmp_path / "results.jsonl")]
    subprocess.run([sys.executable, *again], check=True, timeout=60)
    assert (tmp_path / "again" / "table.md").read_text() == table
    assert (tmp_path / "again" / "chart.svg").read_text() == (tmp_path / "chart.svg").read_text()


def test_help_teaches_and_a_run_of_nothing_is_refused(tmp_path: Path) -> None:
    told = subprocess.run([sys.executable, str(RUN), "--help"], capture_output=True, text=True, timeout=60, check=True)
    assert "--stand-in --quick" in told.stdout
    nothing = [sys.executable, str(RUN), "--out", str(tmp_path)]
    refused = subprocess.run(nothing, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 2
    assert "nothing to measure" in refused.stderr
    misspelt = subprocess.run(
        [sys.executable, str(RUN), "--stand-in", "--steps", "tabel", "--out", str(tmp_path)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert misspelt.returncode == 2
    assert "no step tabel: ceiling, added" in misspelt.stderr

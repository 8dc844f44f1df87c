"""`python -m tests.bench.report`: how long `token-quota report daily` takes over a million events of one day.

The whole command, from the start of its process to its end, in every format: best and median of some runs, and the
processor time of the best, which says more on a machine that others use too. The books
are real ones: the collector's own tables, 40 tenants, three models, 200 credentials, 1 % reversals.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kong_plugins.adapters.books import open_books
from kong_plugins.reports.render import Format

DAY = "2026-11-22"
DAY_MS = 86_400_000
PRICES = """\
currency: USD
models:
  deepseek-r1:
    - {from: 2025-01-20, prompt: "0.55", cached: "0.14", completion: "2.19"}
    - {from: 2026-11-22, prompt: "0.50", cached: "0.12", completion: "2.00", reasoning: "2.10"}
  "qwen*":
    - {from: 2025-01-20, prompt: "0.10", completion: "0.40", request: "0.0001"}
  "*":
    - {from: 2025-01-20, prompt: "0.30", completion: "0.90"}
"""

# Spread by hashes of the row's number: the same books each time.
_FILL = """
INSERT INTO events BY NAME
SELECT md5(i::VARCHAR) AS id, 'request' AS kind, 'gateway-1' AS source,
    make_timestamp_ms(epoch_ms(TIMESTAMP $day) + i * $day_ms // $events) AS time,
    'tenant_' || hash(i) % 40 AS tenant,
    CASE hash(i + 7) % 10 WHEN 0 THEN 'qwen3-32b' WHEN 1 THEN 'llama-3' ELSE 'deepseek-r1' END AS model,
    substr(md5((hash(i) % 200)::VARCHAR), 1, 16) AS credential, 'c' AS consumer, 'deepseek' AS service,
    'v1-' || hash(i + 3) % 5 AS route, 'chat' AS endpoint, true AS stream,
    prompt, completion, prompt * (hash(i + 5) % 100) // 100 AS cached,
    completion * (hash(i + 6) % 100) // 100 AS reasoning,
    CASE WHEN hash(i) % 50 = 0 THEN 'continuous' ELSE 'exact' END AS evidence,
    CASE WHEN hash(i) % 50 = 0 THEN 'aborted' ELSE 'completed' END AS outcome, 200 AS status,
    '200' AS upstream_status, 'stop' AS finish, 'chatcmpl-' || i AS engine_id,
    epoch_ms(TIMESTAMP $day) AS started_ms, started_ms + hash(i + 8) % 900 AS first_ms,
    started_ms + 900 + hash(i + 9) % 60000 AS last_ms, (hash(i + 8) % 900)::BIGINT AS proxy_ms, 1 AS choices,
    ['daily'] AS budgets, MAP {'daily': prompt + completion} AS posted, 1 AS schema
FROM (
    SELECT i, (hash(i + 1) % 8000)::BIGINT AS prompt, (hash(i + 2) % 3000)::BIGINT AS completion
    FROM range($events) AS numbers (i)
)
"""
_REVERSE = """
INSERT INTO events BY NAME
SELECT 'reversal:' || id AS id, 'reversal' AS kind, source, time, tenant, model, credential, consumer, service, route,
    endpoint, -prompt AS prompt, -completion AS completion, -cached AS cached, -reasoning AS reasoning, evidence,
    id AS reverses, 'retried' AS reason, 1 AS schema
FROM events WHERE hash(id) % 100 = 0
"""


def make_books(path: Path, events: int) -> int:
    """Events and reversals of a day. Returns how many there are."""
    with open_books(path, read_only=False) as connection:
        connection.execute("SET threads = 2")
        fill = _FILL.replace("TIMESTAMP $day", f"TIMESTAMP '{DAY}'")
        connection.execute(fill, {"day_ms": DAY_MS, "events": events})
        connection.execute(_REVERSE)
        counted = connection.execute("SELECT count(*) FROM events").fetchone()
        assert counted is not None
        return int(counted[0])


def _busy_s() -> float:
    """Processor time of the commands that ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.report", description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="report-bench-") as folder:
        books, prices, out = Path(folder) / "books.duckdb", Path(folder) / "prices.yaml", Path(folder) / "out"
        prices.write_text(PRICES)
        began = time.perf_counter()
        count = make_books(books, arguments.events)
        print(f"{count:,} events, {books.stat().st_size / 1e6:.0f} MB, made in {time.perf_counter() - began:.0f} s")
        print(f"{'format':<10} {'best s':>8} {'median s':>9} {'CPU s':>6}")
        for form in Format:
            took, busy = [], []
            for _ in range(arguments.runs):
                began, before = time.perf_counter(), _busy_s()
                subprocess.run(
                    [
                        *(sys.executable, "-m", "kong_plugins.cli", "report", "daily", "--day", DAY, "-f", form.value),
                        *("--books", str(books), "--prices", str(prices), "-o", str(out), "--strict"),
                    ],
                    check=True,
                )
                took.append(time.perf_counter() - began)
                busy.append(_busy_s() - before)
            print(f"{form.value:<10} {min(took):>8.2f} {statistics.median(took):>9.2f} {min(busy):>6.2f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

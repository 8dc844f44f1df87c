"""Table and chart from results that were measured before, of one run or of several together.

python vllm/bench/report.py --out /tmp/bench vllm/bench/results/*.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from vllm_bench.reports import write_reports


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for table.md and chart.svg")
    parser.add_argument("results", nargs="+", type=Path, help="results.jsonl of runs")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for path in options.results for line in path.read_text(encoding="utf-8").splitlines()]
    write_reports(rows, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

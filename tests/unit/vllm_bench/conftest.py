"""The bench lives beside the package and not in it; its folder is put on the path as run.py does."""

from __future__ import annotations

import sys
from pathlib import Path

BENCH = Path(__file__).parents[3] / "vllm" / "bench"
sys.path.insert(0, str(BENCH))

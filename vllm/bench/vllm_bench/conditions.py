"""What a figure was measured on: written beside every run's figures."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any


def _said(*argv: str) -> str:
    try:
        return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def conditions(command: str) -> dict[str, Any]:
    """Machine, cards, versions and the command. No host name."""
    cards = _said("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    commit = _said("git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "--short", "HEAD")
    return {
        "kind": "conditions",
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cards": cards.splitlines() or "none",
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": os.environ.get("BENCH_COMMIT") or commit or "not a checkout",
        "command": command,
    }


def engine_version(root: str) -> str:
    """vLLM's own word, or "unknown"."""
    try:
        with urllib.request.urlopen(f"{root}/version", timeout=5) as response:  # noqa: S310 an address the user gave
            return str(json.load(response)["version"])
    except (OSError, ValueError, KeyError):
        return "unknown"

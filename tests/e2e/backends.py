"""Where the scenarios run: the local gateway always, a native Kong and Docker where they are there."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest

from kong_plugins.cli.kong_node import find_kong

BACKENDS = ("local", "kong", "docker")
# Fixtures whose parameter names a backend.
STACK_FIXTURES = ("running", "reloadable", "nodes", "outage", "ending")
ENGINE_ANSWERS_WITHIN_S = 10


@functools.cache
def left_out(backend: str) -> str | None:
    """Why there is no such backend here; None: there is one."""
    if backend == "kong" and find_kong() is None:
        return "no `kong` on PATH and KONG_BIN is not set"
    if backend == "docker":
        docker = shutil.which("docker")
        if docker is None:
            return "no `docker` on PATH"
        try:
            info = subprocess.run([docker, "info"], capture_output=True, check=False, timeout=ENGINE_ANSWERS_WITHIN_S)
        except subprocess.TimeoutExpired:
            return f"no engine answers within {ENGINE_ANSWERS_WITHIN_S} s"
        if info.returncode != 0:
            return "no engine answers"
    return None


def params(*names: str) -> list[Any]:
    """These backends as pytest's parameters, skipped with their reason where they are not there."""
    reasons = {name: left_out(name) for name in names}
    return [
        pytest.param(name, marks=[pytest.mark.skip(reason=f"{name}: {reason}")] if reason else [])
        for name, reason in reasons.items()
    ]


def backend_of(item: pytest.Item) -> str | None:
    """The backend that a test runs on, where it runs on one."""
    callspec = getattr(item, "callspec", None)
    found = [callspec.params[name] for name in STACK_FIXTURES if name in callspec.params] if callspec else []
    return str(found[0]) if found else None


def summary(outcomes: Iterable[tuple[str, str]]) -> str:
    """One line of (backend, outcome) pairs, outcomes as pytest names them."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in BACKENDS}
    for backend, outcome in outcomes:
        counts[backend][outcome] += 1
    parts = []
    for name, counter in counts.items():
        reason = left_out(name)
        if reason is not None:
            parts.append(f"{name} left out: {reason}")
            continue
        ran = counter["passed"] + counter["failed"] + counter["error"]
        more = [f"{number} {word}" for word, number in counter.items() if word != "passed" and number]
        parts.append(f"{name} ran {ran}" + (f" ({', '.join(more)})" if more else ""))
    return "e2e backends: " + ", ".join(parts)

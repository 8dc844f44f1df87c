"""What is measured in each minute of the run, and how much of it may grow."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from tests.longrun.flatness import Tolerance, Verdict, judge
from tests.longrun.sampling import Figures
from tests.longrun.stage import JUDGED
from tests.longrun.traffic import Latencies

PERCENTILES = (50, 95, 99)
ADDED = ("added_first_ms", "added_whole_ms")
QUIET = 0.25
_MEMORY = Tolerance(0.05, 3.0)
# Memory that so many requests at once have needed stays with the allocator: a burst from 6 to 80 took the gateway 12
# MB, token-quota 7.5 and billing-events 4, and 9,000 requests afterwards nothing more.
MB_FOR_EACH_AT_ONCE = 0.16
_KEYS = Tolerance(0.10, 100)
TOLERANCES: dict[str, Tolerance] = {
    **{f"{name} pss_mb": _MEMORY for name in JUDGED},
    **{f"{name} fds": Tolerance(0.10, 20) for name in JUDGED},  # kept connections: as many as were once needed at once
    **{f"{name} threads": Tolerance(0.0, 1) for name in JUDGED},
    **{f"{name} cpu_ms": Tolerance(0.5, 0.1, QUIET) for name in JUDGED},
    "keys": _KEYS,
    "keys_for_ever": Tolerance(0.0, 10),
    "store_mb": Tolerance(0.10, 1.0),
    "outbox": Tolerance(0.5, 200),
    "spool_kb": Tolerance(0.0, 64),
    "books_kb_per_event": Tolerance(0.10, 0.05),
    "logs_kb_per_minute": Tolerance(0.25, 5),
    "plugin server 1 series": Tolerance(0.0, 0),
    "plugin server 2 series": Tolerance(0.0, 0),
    "collector series": Tolerance(0.0, 5),
    **{f"{what} p50": Tolerance(0.35, 2.0, QUIET) for what in ADDED},
    **{f"{what} p95": Tolerance(0.50, 10.0, QUIET) for what in ADDED},
    **{f"{what} p99": Tolerance(1.00, 30.0, QUIET) for what in ADDED},
}


@dataclass
class Minute:
    """``samples``: some moments of it; ``events``: in the books' and outbox's way by now, as far as clients know."""

    samples: list[Figures] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    latencies: Latencies = field(default_factory=Latencies)
    at_once: int = 0  # the most requests under way at one time
    families: Counter[str] = field(default_factory=Counter)
    series: Figures = field(default_factory=dict)


def row(minute: Minute, before: Figures, requests_so_far: int) -> Figures:
    """A minute's figures by name; ``before``: the last sample of the minute before."""
    names = minute.samples[-1].keys()
    found = {name: statistics.median(sample[name] for sample in minute.samples) for name in names}
    last, requests = minute.samples[-1], max(1, sum(minute.counts.values()))
    for name in [name for name in names if name.endswith("cpu_s")]:
        found.pop(name)
        found[name.replace("cpu_s", "cpu_ms")] = 1000 * (last[name] - before[name]) / requests
    found["logs_kb_per_minute"] = last["logs_kb"] - before["logs_kb"]
    found["books_kb_per_event"] = last["books_kb"] / requests_so_far
    for what in ("first", "whole", "added_first", "added_whole", "bare_first", "bare_trip"):
        values = getattr(minute.latencies, what)
        found |= {f"{what}_ms p{share}": percentile(values, share) for share in PERCENTILES}
    found |= minute.series
    found |= {f"keys: {name}": count for name, count in minute.families.items()}
    found |= {"requests": requests, "at_once": minute.at_once}
    return found


def percentile(values: Sequence[float], share: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * share // 100)] if ordered else 0.0


def verdicts(rows: Sequence[Mapping[str, float]], warm_up: int) -> list[Verdict]:
    """Of every measure that has a tolerance.

    Raises:
        ValueError: too few minutes.
    """
    found = []
    for name, tolerance in TOLERANCES.items():
        values = _series(rows, name)
        if name.endswith("pss_mb"):
            tolerance = replace(tolerance, beyond=MB_FOR_EACH_AT_ONCE * _more_at_once(rows, warm_up))  # noqa: PLW2901
        verdict = judge(name, values, warm_up, tolerance)
        if not verdict.flat and (trips := _round_trips(rows, name)):
            middle = statistics.median(trips)
            scaled = [value * middle / trip for value, trip in zip(values, trips, strict=True)]
            verdict = judge(f"{name} (by the bare round trip)", scaled, warm_up, tolerance)
        found.append(verdict)
    return found


def _more_at_once(rows: Sequence[Mapping[str, float]], warm_up: int) -> float:
    """How many requests more were under way at one time than ever until the end of the first third."""
    first = warm_up + (len(rows) - warm_up) // 3
    at_once = _series(rows, "at_once")
    return max(0.0, max(at_once) - max(at_once[:first]))


def _round_trips(rows: Sequence[Mapping[str, float]], name: str) -> list[float]:
    """What the machine took for anything at all in each minute, at the same percentile: where others use it, it gets
    slower and faster by itself, and what is added to an answer with it."""
    what, _, share = name.partition(" ")
    return _series(rows, f"bare_trip_ms {share}") if what in ADDED else []


def untold(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """Names of the measures that no tolerance judges."""
    return sorted({name for each in rows for name in each} - TOLERANCES.keys())


def _series(rows: Sequence[Mapping[str, float]], name: str) -> list[float]:
    return [each.get(name, 0.0) for each in rows]

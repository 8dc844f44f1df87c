"""Figures of a run: percentiles, rates and the rows that table and chart are made from. Pure."""

from __future__ import annotations

import math
import random
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from vllm_bench.load import Cell, Run
from vllm_bench.wire import Reply

Row = dict[str, Any]


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: the smallest value that at least ``percent`` of all values do not exceed.

    Raises:
        ValueError: no values, or a percent outside 0 to 100.
    """
    if not values or not 0 <= percent <= 100:
        raise ValueError(f"percentile {percent} of {len(values)} values")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def spread(values: Iterable[float | None], scale: float = 1.0) -> Row | None:
    """p50, p95 and p99 of the known values times ``scale``; None when none is known."""
    known = [value * scale for value in values if value is not None]
    if not known:
        return None
    return {f"p{percent}": round(percentile(known, percent), 3) for percent in (50, 95, 99)}


def token_gap(reply: Reply) -> float | None:
    """Mean seconds between tokens after the first."""
    if reply.first_s is None or reply.last_s is None or reply.completion < 2:
        return None
    return (reply.last_s - reply.first_s) / (reply.completion - 1)


def cell_row(cell: Cell, run: Run) -> Row:
    """A measured cell. Rates are over the whole run, its start and its tail included."""
    good = [reply for reply in run.replies if reply.good]
    failures = Counter(reply.error for reply in run.replies if not reply.good)
    output = sum(reply.completion for reply in good)
    return {
        "concurrency": cell.concurrency,
        "prompt_tokens": cell.prompt_tokens,
        "output_tokens": cell.output_tokens,
        "shared_percent": cell.shared_percent,
        "prefixes": cell.prefixes,
        "requests": len(run.replies),
        "failures": dict(failures.most_common(3)),
        "cut": run.cut,
        "seconds": round(run.seconds, 3),
        "output_tokens_per_s": round(output / run.seconds, 1),
        "requests_per_s": round(len(good) / run.seconds, 2),
        "first_token_ms": spread((reply.first_s for reply in good), 1000),
        "token_gap_ms": spread((token_gap(reply) for reply in good), 1000),
        "latency_ms": spread((reply.total_s for reply in good), 1000),
        "events": sum(reply.events for reply in good),
        "prompt_counted": sum(reply.prompt for reply in good),
        "cached_counted": sum(reply.cached for reply in good),
        "output_counted": output,
        "client_busy": round(run.busy, 2),
        "client_processes": run.processes,
        "seed": cell.seed,
    }


def paired_row(cell: Cell, direct: Sequence[Reply], through: Sequence[Reply]) -> Row:
    """What a route adds to the first token, from single requests sent in turns."""
    pairs = [
        (first.first_s, second.first_s)
        for first, second in zip(direct, through, strict=True)
        if first.first_s is not None and second.first_s is not None and first.good and second.good
    ]
    ours, theirs = [second for _, second in pairs], [first for first, _ in pairs]
    added = [second - first for first, second in pairs]
    low, high = added_interval(pairs) if pairs else (None, None)
    return {
        "pairs": len(pairs),
        "failures": dict(Counter(reply.error for reply in [*direct, *through] if not reply.good).most_common(3)),
        "prompt_tokens": cell.prompt_tokens,
        "output_tokens": cell.output_tokens,
        "direct_first_token_ms": spread(theirs, 1000),
        "through_first_token_ms": spread(ours, 1000),
        "added_p50_ms": round(1000 * (percentile(ours, 50) - percentile(theirs, 50)), 3) if pairs else None,
        "added_p50_95_percent_ms": [low, high],
        "median_of_differences_ms": round(1000 * statistics.median(added), 3) if pairs else None,
    }


def added_interval(pairs: Sequence[tuple[float, float]], draws: int = 1000) -> tuple[float, float]:
    """Where the difference of the medians lies for 95 of 100 resamples of the pairs, milliseconds; fixed dice."""
    dice = random.Random(0)  # noqa: S311 no secret
    differences = []
    for _ in range(draws):
        sample = dice.choices(pairs, k=len(pairs))
        differences.append(
            percentile([after for _, after in sample], 50) - percentile([first for first, _ in sample], 50)
        )
    return round(1000 * percentile(differences, 2.5), 3), round(1000 * percentile(differences, 97.5), 3)


def ratio_row(direct: Sequence[Row], through: Sequence[Row]) -> Row:
    """Throughput through a route as a share of direct, over cells measured in turns."""
    rates = [[row["output_tokens_per_s"] for row in rows] for rows in (direct, through)]
    turns = [100 * after / first for first, after in zip(*rates, strict=True)]
    return {
        "concurrency": direct[0]["concurrency"],
        "direct_tokens_per_s": rates[0],
        "through_tokens_per_s": rates[1],
        "percent_of_direct": round(100 * statistics.median(rates[1]) / statistics.median(rates[0]), 2),
        "percent_by_turn": [round(turn, 2) for turn in turns],
        "percent_mean": round(statistics.mean(turns), 2),
        "percent_standard_error": round(statistics.stdev(turns) / math.sqrt(len(turns)), 2) if len(turns) > 1 else None,
    }

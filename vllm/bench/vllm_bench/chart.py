"""Rows as one SVG with nothing outside it: tokens/s and first-token time over the number of streams."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape

from vllm_bench.figures import Row

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 70, 16, 34, 40
LEGEND_LINE = 16
COLOURS = ("#1f6feb", "#d1495b", "#2a9d5c", "#b8860b", "#7b4bb7", "#11808c", "#8c564b", "#555555")
Series = dict[str, list[tuple[float, float]]]


def series(rows: Iterable[Row], value: Callable[[Row], float | None]) -> Series:
    """Points by engine, way and share, sorted by streams; of cells measured twice the last counts."""
    found: dict[str, dict[float, float]] = {}
    for row in rows:
        number = value(row)
        if row["kind"] == "cell" and number is not None:
            name = f"{row['engine']} {row['way']}, {row['shared_percent']} % shared"
            found.setdefault(name, {})[row["concurrency"]] = number
    return {name: sorted(points.items()) for name, points in found.items()}


def ticks(low: float, high: float) -> list[float]:
    """Powers of ten, with 2 and 5 between them, that lie within the range."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = [factor * 10.0**exponent for exponent in exponents for factor in (1, 2, 5)]
    return [step for step in steps if low <= step <= high]


def _panel(title: str, unit: str, data: Series, names: Sequence[str], top: float) -> list[str]:
    points = [point for line in data.values() for point in line if point[1] > 0]
    if not points:
        return []
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low_x, high_x = min(xs) / 1.15, max(xs) * 1.15
    low_y, high_y = min(ys) / 1.3, max(ys) * 1.3

    def x_at(value: float) -> float:
        share = math.log(value / low_x) / math.log(high_x / low_x)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y_at(value: float) -> float:
        share = math.log(value / low_y) / math.log(high_y / low_y)
        return top + HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    bottom = top + HEIGHT - BOTTOM
    parts = [f'<text x="{LEFT}" y="{top + 20}" class="title">{escape(title)}</text>']
    for tick in ticks(low_y, high_y):
        y = y_at(tick)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:,.10g}</text>')
    for x in sorted(set(xs)):
        parts.append(f'<line x1="{x_at(x):.1f}" x2="{x_at(x):.1f}" y1="{top + TOP}" y2="{bottom}" class="grid"/>')
        parts.append(f'<text x="{x_at(x):.1f}" y="{bottom + 15}" text-anchor="middle">{x:g}</text>')
    parts.append(
        f'<text x="{(LEFT + WIDTH) / 2}" y="{bottom + 31}" text-anchor="middle">streams at once; {unit}</text>'
    )
    for name, line in data.items():
        colour, dash = _style(names.index(name))
        drawn = " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in line if y > 0)
        parts.append(f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        parts += [
            f'<circle cx="{x_at(x):.1f}" cy="{y_at(y):.1f}" r="3" fill="{colour}"><title>{y:,.1f}</title></circle>'
            for x, y in line
            if y > 0
        ]
    return parts


def _style(number: int) -> tuple[str, str]:
    dash = ' stroke-dasharray="5 4"' if number % 2 else ""
    return COLOURS[number // 2 % len(COLOURS)], dash


def svg(rows: Sequence[Row], conditions: str) -> str:
    """Two panels, a legend and the conditions under it; both axes logarithmic."""
    rates = series(rows, lambda row: row.get("output_tokens_per_s"))
    firsts = series(rows, lambda row: (row.get("first_token_ms") or {}).get("p50"))
    names = list(dict.fromkeys([*rates, *firsts]))
    panels = [*_panel("Output tokens per second", "tokens/s", rates, names, 0)]
    panels += _panel("Time to the first token, p50", "milliseconds", firsts, names, HEIGHT)
    legend = []
    for number, name in enumerate(names):
        colour, dash = _style(number)
        y = 2 * HEIGHT + 16 + number * LEGEND_LINE
        legend.append(
            f'<line x1="{LEFT}" x2="{LEFT + 28}" y1="{y - 4}" y2="{y - 4}" stroke="{colour}" stroke-width="2"{dash}/>'
        )
        legend.append(f'<text x="{LEFT + 36}" y="{y}">{escape(name)}</text>')
    end = 2 * HEIGHT + 24 + len(names) * LEGEND_LINE
    note = [
        f'<text x="{LEFT}" y="{end + 12 + 14 * n}">{escape(line)}</text>'
        for n, line in enumerate(conditions.splitlines())
    ]
    height = end + 24 + 14 * len(note)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
            f'height="{height}">',
            "<style>text{font:11px sans-serif;fill:#222}.title{font-weight:bold;font-size:13px}"
            ".grid{stroke:#ddd;stroke-width:1}</style>",
            f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
            *panels,
            *legend,
            *note,
            "</svg>\n",
        ]
    )

"""Charts as SVG in the page: shapes only. Words stand beside them as HTML, for a small screen would shrink them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kong_plugins.reports.html.markup import Markup, join, lone, tag

HEIGHT = 1000  # of the drawing; the page stretches it
SLOT = 100
GAP = 16


@dataclass(frozen=True, slots=True)
class Series:
    """``style``: its class in the page's style sheet."""

    name: str
    style: str


@dataclass(frozen=True, slots=True)
class Column:
    """A stacked column: ``values`` in the order of the series, not negative. ``mark``: label below it, where it has
    one. ``words``: all of it, for a pointer that rests on it."""

    values: tuple[int, ...]
    words: str
    mark: str | None = None


def stacked_columns(columns: Sequence[Column], series: Sequence[Series], what: str) -> Markup:
    """``what``: the chart in a sentence, for those who do not see it."""
    top = _round_up(max((sum(column.values) for column in columns), default=0))
    width = SLOT * len(columns)
    drawing = tag(
        "svg",
        *(_column(n, column, series, top) for n, column in enumerate(columns)),
        viewBox=f"0 0 {width} {HEIGHT}",
        preserveAspectRatio="none",
        role="img",
        aria_label=what,
    )
    lines = tag("div", *(tag("span", short(top * part // 2)) for part in (2, 1, 0)), class_="scale", aria_hidden="true")
    marks = tag(
        "div",
        *(
            tag("span", column.mark, style=f"left:{100 * (2 * n + 1) / (2 * len(columns)):.2f}%")
            for n, column in enumerate(columns)
            if column.mark is not None
        ),
        class_="marks",
        aria_hidden="true",
    )
    legend = tag(
        "ul",
        *(tag("li", tag("i", class_=one.style), one.name) for one in series),
        class_="legend",
    )
    return tag("div", legend, tag("div", lines, drawing, marks, class_="plot"), class_="chart")


def _column(n: int, column: Column, series: Sequence[Series], top: int) -> Markup:
    shapes = []
    below = 0
    for value, one in zip(column.values, series, strict=True):
        upper = HEIGHT * (below + value) // top
        height = upper - HEIGHT * below // top
        if height > 0:
            shapes.append(
                lone(
                    "rect",
                    class_=one.style,
                    x=n * SLOT + GAP // 2,
                    y=HEIGHT - upper,
                    width=SLOT - GAP,
                    height=height,
                )
            )
        below += value
    whole = lone("rect", class_="hover", x=n * SLOT, y=0, width=SLOT, height=HEIGHT)
    return tag("g", tag("title", column.words), join(*shapes), whole)


def _round_up(value: int) -> int:
    """The next whole number with one digit that counts, even where half of it would not be whole; at least 2."""
    step = 1
    while True:
        for first in (2, 3, 4, 5, 6, 8, 10) if step > 1 else (2, 4, 6, 8, 10):
            if first * step >= value:
                return first * step
        step *= 10


def short(value: int) -> str:
    """``1.2 M``, ``34 k``: for an axis, where three digits do."""
    for name, size in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if value >= size:
            tenths = 10 * value // size
            return f"{tenths // 10}.{tenths % 10} {name}".replace(".0 ", " ")
    return str(value)

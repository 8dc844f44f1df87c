"""The collector's progress for a person: a live table, or a line now and then where nobody watches."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from rich.table import Table

from kong_plugins.adapters.outbox import SinkStatus
from kong_plugins.application.deliver import Progress, State


class Rates:
    """Events a second by sink, between two looks."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, int]] = {}

    def of(self, progress: Mapping[str, Progress]) -> dict[str, float]:
        now = time.monotonic()
        rates = {}
        for sink, each in progress.items():
            at, written = self._seen.get(sink, (now, each.written))
            rates[sink] = (each.written - written) / (now - at) if now > at else 0.0
            self._seen[sink] = (now, each.written)
        return rates


def age(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes = int(seconds) // 60
    return f"{minutes}m {int(seconds) % 60}s" if minutes < 60 else f"{minutes // 60}h {minutes % 60}m"


def table(
    status: Sequence[SinkStatus],
    progress: Mapping[str, Progress] | None = None,
    rates: Mapping[str, float] | None = None,
) -> Table:
    """A row for each sink. With ``progress`` and ``rates``: those of this process too."""
    view = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    view.add_column("sink", overflow="fold")
    for name in ("events/s", "written") if progress is not None else ():
        view.add_column(name, justify="right", no_wrap=True)
    for name in ("behind", "oldest", "dead"):
        view.add_column(name, justify="right", no_wrap=True)
    view.add_column("state", overflow="fold")
    found = {each.sink: each for each in status}
    for sink in sorted({*found, *(progress or {})}):
        each = found.get(sink, SinkStatus(sink))
        row = [sink]
        mine = progress.get(sink) if progress is not None else None
        if progress is not None:
            row += [f"{(rates or {}).get(sink, 0.0):,.0f}", f"{mine.written:,}"] if mine else ["", ""]
        dead = f"[red]{each.dead:,}[/red]" if each.dead else "0"
        row += [f"{each.behind:,}", age(each.oldest_s), dead, _state(each, mine)]
        view.add_row(*row)
    return view


def line(sink: str, progress: Progress, status: SinkStatus, rate: float) -> str:
    """For a log."""
    problem = f" ({progress.problem})" if progress.problem else ""
    return (
        f"{sink}: {progress.state}{problem}, {rate:,.0f} events/s, {progress.written:,} written,"
        f" {status.behind:,} behind, oldest {age(status.oldest_s)}, {status.dead:,} dead letters"
    )


def _state(status: SinkStatus, mine: Progress | None) -> str:
    if mine is not None:
        problem = mine.problem.replace("[", "\\[")
        return f"[green]{mine.state}[/green]" if mine.state is State.UP else f"[yellow]{mine.state}[/yellow] {problem}"
    if status.attended:
        return "[green]collected[/green]"
    return "[yellow]no collector[/yellow]" if status.behind else "no collector"

"""Is a measure flat: its last third of the run beside the first third after the warm-up, and a stated tolerance."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_BARS = "▁▂▃▄▅▆▇█"
MINUTES_MIN = 3


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Flat where the last third's level is not over the first third's by more than the larger of both.

    ``level``: which share of a third's minutes lies below its level. Neighbours on the machine only ever slow some
    minutes down, code that gets slower does so in all of them: for times the quieter minutes tell more than the median.
    """

    share: float
    absolute: float
    level: float = 0.5
    beyond: float = 0.0  # allowed beside that, for a reason that is no leak

    def allowed(self, first: float) -> float:
        return max(self.share * abs(first), self.absolute) + self.beyond


@dataclass(frozen=True, slots=True)
class Verdict:
    """``growth``: of the level, from the first third to the last. ``per_hour``: the median slope of all pairs."""

    name: str
    first: float
    last: float
    highest: float
    growth: float
    allowed: float
    per_hour: float
    bars: str

    @property
    def flat(self) -> bool:
        return self.growth <= self.allowed


def judge(name: str, minutes: Sequence[float], warm_up: int, tolerance: Tolerance) -> Verdict:
    """``minutes``: a value for each minute, of which the first ``warm_up`` are left out.

    Raises:
        ValueError: there are not three minutes after the warm-up.
    """
    values = list(minutes[warm_up:])
    if len(values) < MINUTES_MIN:
        raise ValueError(f"{name}: {len(minutes)} minutes, of which {warm_up} are warm-up: too few to compare thirds")
    third = len(values) // 3
    first, last = level(values[:third], tolerance.level), level(values[-third:], tolerance.level)
    return Verdict(
        name, first, last, max(values), last - first, tolerance.allowed(first), 60 * slope(values), bars(minutes)
    )


def level(values: Sequence[float], share: float) -> float:
    """The value that this share of them is not over."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def slope(values: Sequence[float]) -> float:
    """Theil and Sen's: the median over all pairs, which single spikes do not move."""
    return statistics.median((values[j] - values[i]) / (j - i) for j in range(len(values)) for i in range(j))


def bars(values: Sequence[float], width: int = 30) -> str:
    """The course in one line, from the lowest to the highest."""
    step = max(1, -(-len(values) // width))
    means = [statistics.fmean(values[n : n + step]) for n in range(0, len(values), step)]
    low, high = min(means), max(means)
    span = (high - low) or 1.0
    return "".join(_BARS[min(7, int(8 * (mean - low) / span))] for mean in means)

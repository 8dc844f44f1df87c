"""The in-memory ledger's counters: which there are, and how long each is kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from kong_plugins.adapters.ledger import layout
from kong_plugins.domain.budgets import Mode
from kong_plugins.domain.counters import BucketCounter, Counter, FixedCounter, RollingCounter
from kong_plugins.domain.holds import Line, LineState
from kong_plugins.domain.partitions import partition_of
from kong_plugins.domain.windows import SLICES, FixedWindow, RollingWindow, describe, window_at


@dataclass(slots=True)
class Kept:
    """A counter as the store keeps it, with what an operator is shown."""

    counter: Counter
    tenant: str
    line_key: str
    window: str
    limit: int
    mode: Mode
    expires_us: int = 0

    @property
    def live_until_us(self) -> int:
        return self.counter.span.end_us if isinstance(self.counter, FixedCounter) else self.expires_us


def apart(kept: Kept) -> Kept:
    """A bucket is looked at apart from what is kept: refilled at the asker's limit, it stays so only if it is posted
    to. In the other counters time does the same whoever asks."""
    if isinstance(kept.counter, BucketCounter):
        return replace(kept, counter=replace(kept.counter))
    return kept


def state_of(line: Line, counter: Counter, now_us: int) -> LineState:
    lacking = counter.committed + counter.held + line.amount - line.limit
    reset_us = counter.reset_us(now_us, line.limit, lacking)
    return LineState(line.key, line.limit, counter.committed, counter.held, reset_us, short=lacking > 0)


class Counters:
    """By path. Not safe to share: the ledger's lock is around every call."""

    def __init__(self) -> None:
        self._kept: dict[str, Kept] = {}

    def __getitem__(self, path: str) -> Kept:
        return self._kept[path]

    def values(self) -> Iterable[Kept]:
        return self._kept.values()

    def find(self, path: str) -> Kept | None:
        """Also one whose time is over, while nobody has looked."""
        return self._kept.get(path)

    def live(self, path: str | None, now_us: int) -> Kept | None:
        """None where there is none, or none any more."""
        kept = self._kept.get(path or "")
        return kept if kept is not None and now_us < kept.expires_us else None

    def forget(self, partition: int, now_us: int) -> None:
        """Those of a partition whose time is over."""
        for path in [path for path, kept in self._kept.items() if now_us >= kept.expires_us]:
            if partition_of(self._kept[path].tenant) == partition:
                del self._kept[path]

    def give_back(self, amounts: Mapping[str, int]) -> None:
        """Take amounts by path off what is held; also where its time is over: a clock that goes back finds it again."""
        for path, amount in amounts.items():
            if (kept := self._kept.get(path)) is not None:
                kept.counter.held -= amount

    def at(self, tenant: str, line: Line, now_us: int, at_us: int | None = None) -> tuple[str, Kept]:
        """The line's counter as of now, a fixed window's of the time ``at_us``. A new one is not kept before something
        is counted."""
        path = layout.counter_path(tenant, line.key, line.window)
        counter: Counter
        if isinstance(line.window, FixedWindow):
            span = window_at(line.window, now_us if at_us is None else at_us)
            path, counter = f"{path}:{span.start_us}", FixedCounter(span)
        elif isinstance(line.window, RollingWindow):
            counter = RollingCounter(line.window)
        else:
            counter = BucketCounter(line.window, now_us)
        kept = self._kept.get(path)
        if kept is None or now_us >= kept.expires_us:
            kept = Kept(counter, tenant, line.key, describe(line.window), line.limit, line.mode)
        kept = apart(kept)
        kept.counter.advance(now_us, line.limit)
        return path, kept

    def keep(self, path: str, kept: Kept, extra_us: int, now_us: int) -> None:
        counter = kept.counter
        if isinstance(counter, FixedCounter):
            until_us, slack_us = max(counter.span.end_us, now_us), 0  # over already: held after the event
        else:
            extra_us, slack_us = extra_us + layout.UNSWEPT_US, layout.SLACK_US
            if isinstance(counter, RollingCounter):
                until_us = now_us + counter.window.slice_us * (SLICES + 1)
            elif counter.committed < 0:
                until_us = now_us + layout.UNSWEPT_US
            else:
                full_us = counter.reset_us(now_us, kept.limit, 0)
                until_us = max(now_us + counter.window.refill_us, full_us)
        if kept.expires_us < until_us + extra_us:
            kept.expires_us = until_us + extra_us + slack_us
        self._kept[path] = kept

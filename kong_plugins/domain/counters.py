"""Counters: what one budget has committed and held in a window, and how that changes as time passes.


The reference for the ledger's scripts, which do the same sums inside the store. Amounts are units, times microseconds.
"""
# ruff: noqa: ARG002 (three kinds of counter, one interface)

from __future__ import annotations

from dataclasses import dataclass, field

from kong_plugins.domain.windows import LENGTH_S_MAX, SECOND_US, SLICES, RollingWindow, Span, TokenBucket

FAR_US = 120 * LENGTH_S_MAX * SECOND_US  # A bucket overdrawn beyond all measure is full "in ten years".


@dataclass(slots=True)
class FixedCounter:
    """Counts within one calendar window; what is posted late stays in it."""

    span: Span
    committed: int = 0
    held: int = 0

    def advance(self, now_us: int, limit: int) -> None:
        """Nothing leaves a fixed window before it ends."""

    def post(self, amount: int, used_us: int, now_us: int) -> bool:
        """Whether the amount counts."""
        self.committed += amount
        return True

    def take_back(self, amount: int, at_us: int, now_us: int, limit: int) -> None:
        """Undo ``post``, as far as it still counts. ``at_us``: when it was used; in a bucket, when it came in."""
        self.committed -= amount

    def clear(self) -> None:
        self.committed = 0

    def reset_us(self, now_us: int, limit: int, lacking: int) -> int:
        return self.span.end_us


@dataclass(slots=True)
class RollingCounter:
    """Counts the current slice and the ``SLICES`` before it: whatever was used within the window's length, and up to
    one slice more."""

    window: RollingWindow
    committed: int = 0
    held: int = 0
    slices: dict[int, int] = field(default_factory=dict)

    def advance(self, now_us: int, limit: int) -> None:
        first = now_us // self.window.slice_us - SLICES
        for gone in [index for index in self.slices if index < first]:
            self.committed -= self.slices.pop(gone)

    def post(self, amount: int, used_us: int, now_us: int) -> bool:
        """Count ``amount`` from when it was used; not at all when that has left the window already."""
        index = used_us // self.window.slice_us
        counts = index >= now_us // self.window.slice_us - SLICES
        if counts:
            self.slices[index] = self.slices.get(index, 0) + amount
            self.committed += amount
        return counts

    def take_back(self, amount: int, at_us: int, now_us: int, limit: int) -> None:
        """From the slice it is in: taken off a later one, it would be missing there when its own had left."""
        self.post(-amount, at_us, now_us)

    def clear(self) -> None:
        self.slices.clear()
        self.committed = 0

    def reset_us(self, now_us: int, limit: int, lacking: int) -> int:
        """When ``lacking`` units have left, or all of them where that is not enough."""
        if self.committed == 0 and self.held == 0 and lacking <= 0:
            return now_us
        freed = 0
        for index in sorted(self.slices) if lacking > 0 else ():
            freed += self.slices[index]
            if freed >= lacking:
                return self._leaves_us(index)
        return self._leaves_us(now_us // self.window.slice_us)

    def _leaves_us(self, index: int) -> int:
        return (index + SLICES + 1) * self.window.slice_us


@dataclass(slots=True)
class BucketCounter:
    """``committed`` is what is missing from a full bucket. It shrinks by ``limit`` units each refill time; the part of
    a unit that has flowed back is carried in ``fraction`` (of ``refill_us``), so looking often loses nothing. A grant
    can fill it above the brim (``committed`` below zero); that stays until it is used."""

    window: TokenBucket
    at_us: int
    limit: int = 0
    committed: int = 0
    held: int = 0
    fraction: int = 0

    def advance(self, now_us: int, limit: int) -> None:
        if now_us > self.at_us:
            whole, self.fraction = divmod((now_us - self.at_us) * limit + self.fraction, self.window.refill_us)
            if whole >= self.committed:
                self.committed, self.fraction = min(self.committed, 0), 0
            else:
                self.committed -= whole
            self.at_us = now_us

    def post(self, amount: int, used_us: int, now_us: int) -> bool:
        """Take ``amount`` out; not at all when it was used so long ago that it has flowed back since."""
        counts = used_us + self.window.refill_us > now_us
        if counts:
            self.committed += amount
        return counts

    def take_back(self, amount: int, at_us: int, now_us: int, limit: int) -> None:
        """Without what may have flowed back since (at ``limit``), or that would flow back twice."""
        flowed = -(-(now_us - at_us) * limit // self.window.refill_us)
        self.committed -= max(0, amount - flowed)

    def clear(self) -> None:
        self.committed, self.fraction = 0, 0

    def reset_us(self, now_us: int, limit: int, lacking: int) -> int:
        """When ``lacking`` units have flowed back, or all of them where that is not enough."""
        if limit == 0:
            return now_us + self.window.refill_us
        wanted = lacking if 0 < lacking <= self.committed else self.committed + self.held
        if wanted <= 0:
            return now_us
        return now_us + min(-(-(wanted * self.window.refill_us - self.fraction) // limit), FAR_US)


Counter = FixedCounter | RollingCounter | BucketCounter

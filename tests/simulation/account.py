"""A plain account beside the store: what each budget holds, what was used, and what of it a failover takes back."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kong_plugins.domain.budgets import Mode
from kong_plugins.domain.holds import HoldRequest, Line
from kong_plugins.domain.partitions import partition_of
from kong_plugins.domain.windows import FixedWindow, RollingWindow, WindowSpec, window_at
from tests.simulation.kernel import Violation

Path = tuple[str, str, int]  # a counter: tenant, budget, start of its window
MOVES = -1  # of a window that has none


@dataclass(slots=True)
class Seen:
    """A hold. ``lines``: counter, weights, amount held."""

    tenant: str
    hold_id: str
    lines: list[list[Any]]
    lapses_us: int
    event: bytes
    made_us: int
    state: str = "open"
    ended_us: int = 0
    posted: tuple[tuple[str, int], ...] = ()
    tokens: int = 0
    counted: bool = True


@dataclass(slots=True)
class Lease:
    """What the store holds of counters for a node's requests to come. ``renewed_us``: in true time. ``until_us``: when
    counters' windows end."""

    tenant: str
    ends_us: int = 0
    ttl_us: int = 0
    turn: int = 0
    renewed_us: int = 0
    amounts: dict[Path, int] = field(default_factory=dict)
    until_us: dict[Path, int | None] = field(default_factory=dict)


@dataclass
class Durable:
    """All that a failover takes back with the store."""

    holds: dict[str, Seen] = field(default_factory=dict)
    open: dict[str, Seen] = field(default_factory=dict)
    leases: dict[str, Lease] = field(default_factory=dict)
    counters: dict[Path, list[int]] = field(default_factory=dict)  # committed (not where windows move), held
    rolling: dict[Path, deque[tuple[int, int, str]]] = field(default_factory=dict)
    tails: dict[int, str] = field(default_factory=dict)
    recorded: dict[str, int] = field(default_factory=dict)
    reversed: dict[str, int] = field(default_factory=dict)
    grants: dict[str, int] = field(default_factory=dict)
    latest_us: int = 0  # what the store's clock has come to


@dataclass
class Counts:
    """Of what was looked at, and of what no promise covers."""

    operations: int = 0
    holds: int = 0
    refused: int = 0
    postings: int = 0
    spooled: int = 0
    expired: int = 0
    recorded: int = 0
    reversals: int = 0
    late: int = 0  # settled after the hold lapsed
    late_units: int = 0
    over_held_units: int = 0  # of tightened holds that nobody saw the usage of, over all budgets
    lost_events: int = 0  # by failovers, before they were delivered
    windows_again: int = 0  # looks at windows that the store's clock went back into, after they were forgotten
    held_again: int = 0  # by a copy under way, when the store's clock had leapt over the memory of the end
    unknown: int = 0  # settled when the ledger knew nothing of the hold any more
    logical: int = 0
    retried: int = 0
    apart: int = 0
    runs: int = 0
    audits: int = 0
    engines: int = 0  # audits in which the engine's own counters were compared with the books
    windows: int = 0  # counters of an hour compared with the events of that hour
    by_lease: int = 0  # admitted out of one
    by_nobody: int = 0  # admitted while the ledger was away
    leases: int = 0  # granted or renewed
    stale: int = 0  # questions about a lease that came after a later one
    asked_twice: int = 0  # about a lease; the counters are as they were
    registered: int = 0
    too_late: int = 0  # registrations
    untold: int = 0  # admitted by a process that ended before it told the ledger, and settled by nobody
    expired_usage: int = 0  # holds that ended by the clock with the event of a settlement that never came
    leased_units_max: int = 0  # of all budgets at a time
    lost_units: int = 0  # of leases that were over, or that a failover took, before all was told that was given away
    above_lease_units: int = 0  # held on top of a lease therefore
    above_open_units: int = 0  # held on top of everything, of requests that nobody decided
    over_limit_units: int = 0  # of both, what a hard budget was over its limit by then


class Account:
    """``terminal_us``: how long the end of a hold is remembered; ``kept_us``: how long an ended window is."""

    def __init__(self, terminal_us: int, kept_us: int) -> None:
        self.durable = Durable()
        self.counts = Counts()
        self.clock_went_back = False
        self.failovers = 0
        self.names: dict[str, tuple[str, ...]] = {}
        self.terminal_us = terminal_us
        self._kept_us = kept_us

    def tick(self, now_us: int) -> None:
        self.counts.operations += 1
        if now_us < self.durable.latest_us:
            self.clock_went_back = True
        self.durable.latest_us = max(self.durable.latest_us, now_us)

    def path(self, tenant: str, name: str, window: WindowSpec, at_us: int) -> Path:
        return tenant, name, window_at(window, at_us).start_us if isinstance(window, FixedWindow) else MOVES

    def held(self, path: Path, units: int) -> int:
        """So much more is held. Returns what is committed and held then; of a window that moves only what is held."""
        counter = self.durable.counters.setdefault(path, [0, 0])
        counter[1] += units
        return counter[0] + counter[1]

    def fits(self, path: Path, line: Line, now_us: int, *about: Any) -> None:
        """What was just held of a hard budget is within its limit."""
        if line.mode is not Mode.HARD:
            return
        full = sum(self.durable.counters[path])
        if isinstance(line.window, FixedWindow):
            told = self.over(window_at(line.window, now_us).end_us)
            check(told or full <= line.limit, "overshot", path, self.durable.counters[path], line, *about)
        elif isinstance(line.window, RollingWindow) and not self.clock_went_back:
            full += self.used(path, now_us - line.window.length_s * 1_000_000)
            check(full <= line.limit, "overshot within the window's length", path, full, line, *about)

    def keep(self, request: HoldRequest, paths: Sequence[Path], now_us: int) -> None:
        """A new hold."""
        lines = [[path, line.weights, line.amount] for path, line in zip(paths, request.lines, strict=True)]
        lapses_us = now_us + request.ttl_us
        seen = Seen(request.tenant, request.hold_id, lines, lapses_us, request.expiry_event, now_us)
        self.durable.holds[request.hold_id] = self.durable.open[request.hold_id] = seen

    def over(self, end_us: int) -> bool:
        """The clock went back into a window that may have been forgotten, with all that could still settle in it."""
        return self.durable.latest_us >= end_us + self._kept_us

    def forgotten(self, ended_us: int, state: str = "settled") -> bool:
        return state in {"settled", "expired"} and self.durable.latest_us >= ended_us + self.terminal_us

    def lapse(self, partition: int, now_us: int) -> None:
        for seen in list(self.durable.open.values()):
            if now_us >= seen.lapses_us and partition_of(seen.tenant) == partition:
                self.release(seen)

    def release(self, seen: Seen) -> None:
        for path, _, amount in seen.lines:
            self.held(path, -amount)
        seen.state = "lapsed"
        del self.durable.open[seen.hold_id]

    def used(self, path: Path, since_us: int) -> int:
        spent = self.durable.rolling.get(path, deque())
        while spent and spent[0][0] <= since_us - 3_600_000_000:
            spent.popleft()
        return sum(amount for used_us, amount, _ in spent if used_us > since_us)


def check(holds: bool, promise: str, *about: Any) -> None:
    if not holds:
        raise Violation(f"{promise}: {' | '.join(map(repr, about))}")


__all__ = ["MOVES", "Account", "Counter", "Counts", "Durable", "Lease", "Path", "Seen", "check"]

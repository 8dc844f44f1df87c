"""Why a request was refused, in numbers a client can act on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from kong_plugins.domain.budgets import Mode
from kong_plugins.domain.holds import LineState
from kong_plugins.domain.planning import PlannedLine
from kong_plugins.domain.windows import FixedWindow, RollingWindow, Unit, WindowSpec

# Where other requests of the tenant hold the missing part, it is free again when they end: in seconds, mostly.
HELD_RETRY_US = 2_000_000

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNIT_S = {Unit.SECOND: 1, Unit.MINUTE: 60, Unit.HOUR: 3600, Unit.DAY: 86_400, Unit.WEEK: 604_800}


class Reason(StrEnum):
    """What the client can do about it."""

    WAIT = "wait"  # enough is free again within the client's patience
    SPENT = "spent"  # not before the window ends, and that is far away
    TOO_LARGE = "too_large"  # never: the request is larger than the whole limit


@dataclass(frozen=True, slots=True)
class Refusal:
    """The budget that refuses for longest. Amounts are in ``unit``; ``retry_us`` is from now, None: no use."""

    reason: Reason
    budget: str
    window: str
    unit: str
    limit: int
    asked: int
    remaining: int
    reset_us: int
    now_us: int
    retry_us: int | None


def refusal_of(
    planned: Sequence[PlannedLine], states: Sequence[LineState], now_us: int, patience_us: int
) -> Refusal | None:
    """The worst of the hard lines that fell short; None when none did."""
    refusals = [
        _refusal(each, state, now_us, patience_us)
        for each, state in zip(planned, states, strict=True)
        if state.short and each.line.mode is Mode.HARD
    ]
    return max(refusals, key=_severity, default=None)


def _refusal(planned: PlannedLine, state: LineState, now_us: int, patience_us: int) -> Refusal:
    line = planned.line
    wait_us = max(0, state.reset_us - now_us)
    if line.amount <= line.limit - state.committed:
        wait_us = min(wait_us, HELD_RETRY_US)
    reason = Reason.WAIT if wait_us <= patience_us else Reason.SPENT
    if line.amount > line.limit:
        reason = Reason.TOO_LARGE
    return Refusal(
        reason=reason,
        budget=line.key,
        window=window_text(line.window),
        unit=planned.rule.counts.unit,
        limit=line.limit,
        asked=line.amount,
        remaining=state.remaining,
        reset_us=state.reset_us,
        now_us=now_us,
        retry_us=wait_us if reason is Reason.WAIT else None,
    )


def _severity(refusal: Refusal) -> tuple[int, int]:
    return list(Reason).index(refusal.reason), refusal.retry_us if refusal.retry_us is not None else refusal.reset_us


def window_text(window: WindowSpec) -> str:
    """``day``, ``rolling 3600 s`` or ``bucket 60 s``."""
    if isinstance(window, FixedWindow):
        return window.unit.value
    if isinstance(window, RollingWindow):
        return f"rolling {window.length_s} s"
    return f"bucket {window.refill_s} s"


def window_seconds(window: WindowSpec) -> int | None:
    """Nominal length in seconds; None for a month, which has none."""
    if isinstance(window, FixedWindow):
        return _UNIT_S.get(window.unit)
    return window.length_s if isinstance(window, RollingWindow) else window.refill_s


def timestamp(time_us: int) -> str:
    """RFC 3339 in UTC, to the second, rounded up: never before the moment it names."""
    moment = _EPOCH + timedelta(seconds=-(-time_us // 1_000_000))
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def explain(refusal: Refusal) -> str:
    """One or two sentences for a person, with what to do."""
    asked = f"this request may use up to {refusal.asked} {refusal.unit}"
    budget = f"Budget {refusal.budget!r} allows {refusal.limit} {refusal.unit} per {refusal.window}"
    if refusal.reason is Reason.TOO_LARGE:
        return f"{budget}; {asked}, which never fits. Lower max_tokens or shorten the prompt."
    left = f"{budget}; {asked}, {refusal.remaining} are left until it resets at {timestamp(refusal.reset_us)}."
    if refusal.retry_us is not None:
        return f"{left} Try again in {-(-refusal.retry_us // 1_000_000)} s."
    return f"{left} Waiting a moment does not help: lower max_tokens, or ask for a larger budget."

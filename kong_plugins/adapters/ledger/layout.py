"""How a ledger names and keeps things: what the in-memory model and the Redis scripts have in common."""

from __future__ import annotations

from functools import lru_cache
from urllib.parse import quote

from kong_plugins.domain.attempts import AnswerKept, Attempt
from kong_plugins.domain.holds import HoldRequest, Outcome, Settlement
from kong_plugins.domain.windows import (
    LENGTH_S_MAX,
    SECOND_US,
    SLICES,
    RollingWindow,
    TokenBucket,
    WindowSpec,
    describe,
)

HOUR_US = 3600 * SECOND_US

# How long after its time a hold may still be settled: the longest stream, and a spool replayed after a night's outage.
GRACE_US = 24 * HOUR_US

# How long the end of a hold is remembered. The two log phases of a request come milliseconds apart and a retry within
# the deadline; a replay later than this is answered "unknown" and changes nothing either. At 100 requests a second an
# hour is about 100 MB in the store, a day would be 2 GB.
TERMINAL_US = HOUR_US

# How long after its node gave it up a question can still arrive: a connection is closed within seconds.
LATE_US = 60 * SECOND_US

# An operator's retried command; grants are few.
GRANT_US = LENGTH_S_MAX * SECOND_US

# A hold that no sweep ends (no traffic, no collector) must not vanish without its event: it outlives its grace by this.
UNSWEPT_US = LENGTH_S_MAX * SECOND_US

# Rolling windows and buckets live on with every request; extending their time to live once an hour is enough.
SLACK_US = HOUR_US

# Lapsed holds that one request sweeps before it is decided: bounded work; whatever is left is swept by the next.
SWEEP = 64

# How many logical requests are remembered under one derived key: whoever asks the same thing more often than that at a
# time is no longer told which of them a retry is for. Under a client's own key there is one.
REMEMBERED = 64

# Whole answers kept for a tenant's retries, in bytes with what the store needs for each; those that would be forgotten
# next make room.
ANSWERS_BYTES = 64 * 2**20
ANSWER_EXTRA = 256  # as in the scripts

WireWindow = tuple[str, int, int]  # kind, and two numbers: start and end, slice and slices, or refill time and 0


def member(tenant: str, name: str) -> str:
    """``tenant/name`` with the tenant encoded, so that no tenant can name another's hold or grant."""
    return f"{encode(tenant)}/{name}"


@lru_cache(maxsize=4096)
def encode(text: str) -> str:
    """Percent-encoded as in a URL, also lone surrogates from bytes that were no UTF-8."""
    return quote(text, safe="", errors="surrogateescape")


@lru_cache(maxsize=16384)
def counter_path(tenant: str, line_key: str, window: WindowSpec) -> str:
    """Name of a counter in its partition; a fixed window's start is appended to it. The limit is no part of it."""
    return f"{encode(tenant)}/{encode(line_key)}/{describe(window).replace(' ', ':')}"


def register_within_us(terminal_us: int) -> int:
    """How far from its admission a request that was admitted without the ledger can still be held: after it, or, where
    the node's clock is ahead, before. Its end would be remembered for twice as long, so that one that had been held,
    and has ended, is never held and charged again."""
    return terminal_us // 2


def slots_path(tenant: str, key: str) -> str:
    """Name of a tenant's slots in its partition."""
    return f"{encode(tenant)}/{encode(key)}"


def tries_path(tenant: str, attempt: Attempt) -> str:
    """Name of the logical requests of a key in its partition."""
    return f"{encode(tenant)}/{'derived' if attempt.derived else 'client'}/{attempt.key}"


def remembered(attempt: Attempt) -> int:
    """How many logical requests its key may stand for."""
    return REMEMBERED if attempt.derived else 1


def standing(settlement: Settlement) -> str:
    """How an attempt stands after its settlement: ``b`` broken off (a retry runs), else finished: ``u`` with no answer
    kept (a retry runs too), ``l`` with one too large to keep, ``k`` with one to keep."""
    return _FINISHED[settlement.kept] if settlement.outcome is Outcome.COMPLETED else "b"


_FINISHED = {AnswerKept.NONE: "u", AnswerKept.TOO_LARGE: "l", AnswerKept.KEPT: "k"}


def kept_us(request: HoldRequest, grace_us: int) -> int:
    """How long a hold's counters must outlive its windows, so that a late posting still finds them."""
    return request.ttl_us + grace_us


def running_window(window: RollingWindow | TokenBucket) -> WireWindow:
    """A window's numbers for the scripts, where they do not depend on the time."""
    if isinstance(window, RollingWindow):
        return ("r", window.slice_us, SLICES)
    return ("b", window.refill_us, 0)

"""Attempts at a logical request: a client that times out and tries again is charged once, whatever it does.

A logical request is known by its tenant and a key: the client's ``Idempotency-Key``, or one derived from what was asked
when an SDK says that it tries again. Each attempt is a request of its own, with its hold, its terminal posting and its
event. When an attempt settles after an earlier one of the same logical request was charged, the cheaper of the two is
reversed, in whole, in the same step: its postings are taken back and a reversal event follows it. So the sum over the
attempts is that of the dearest, at any time and through any crash, and nobody gets a second answer for nothing by
leaving early on purpose.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

ATTEMPTS_MAX = 16  # of one logical request; beyond any SDK's patience


@dataclass(frozen=True, slots=True)
class Attempt:
    """What a hold says of the logical request it is for.

    ``key``: digest of the client's key, or of what was asked (``derived``). ``fingerprint``: digest of what was asked
    (path and body as sent). ``retry``: the client says that it tried before; a derived key without it begins a new
    logical request, for two equal requests are two. ``ttl_us``: how long the ledger remembers it after its last change.
    ``attempts_max``: when so many were made, the next begins a new logical request, charged on its own.

    Raises:
        ValueError: not a sensible number of attempts or time.
    """

    key: str
    fingerprint: str
    derived: bool
    retry: bool
    ttl_us: int
    attempts_max: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.attempts_max <= ATTEMPTS_MAX:
            raise ValueError(f"a logical request has 1 to {ATTEMPTS_MAX} attempts, not {self.attempts_max}")
        if self.ttl_us < 1:
            raise ValueError(f"a logical request is remembered for at least a microsecond, not {self.ttl_us}")


class Standing(StrEnum):
    """Why a hold was not even tried."""

    RUNNING = "running"  # an earlier attempt is under way
    FINISHED = "finished"  # its answer is kept: replay it
    GONE = "gone"  # it finished, and its answer was too large to keep
    MISMATCH = "mismatch"  # the key was used for something else


@dataclass(frozen=True, slots=True)
class Earlier:
    """The earlier attempt that stands in the way of this one. ``answer``: as given to ``settle``; FINISHED only."""

    standing: Standing
    hold_id: str
    answer: bytes | None = None


class AnswerKept(StrEnum):
    """What became of a whole answer that a settlement could keep for a retry."""

    NONE = "none"  # nothing was captured (aborted, failed, or not wanted): a retry runs again
    KEPT = "kept"
    TOO_LARGE = "too_large"

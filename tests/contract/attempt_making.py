"""Attempts for the tests of what a ledger promises of them: how they are made, ended and looked at."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kong_plugins.domain.attempts import AnswerKept, Attempt
from kong_plugins.domain.budgets import TOTAL, Weights
from kong_plugins.domain.holds import HoldOutcome, HoldRequest, Line, Outcome, Settlement, SettleOutcome
from kong_plugins.domain.partitions import partition_of
from kong_plugins.domain.usage import NO_USAGE, Evidence, Usage
from kong_plugins.domain.windows import FixedWindow, RollingWindow, TokenBucket, Unit
from tests.contract.conftest import Bench

LONG_US = 60_000_000
BRIEF_US = 250_000  # to be waited for, yet longer than a few operations take on a busy machine
MONTH = FixedWindow(Unit.MONTH, "Europe/Berlin", 15)
KINDS = [MONTH, RollingWindow(3600), TokenBucket(2_678_400)]  # so slow a bucket gives nothing back during a test
kinds = pytest.mark.parametrize("window", KINDS, ids=["fixed", "rolling", "bucket"])
CLIENT = Attempt("key-1", "asked-1", derived=False, retry=False, ttl_us=LONG_US)
FIRST = Attempt("digest-1", "asked-1", derived=True, retry=False, ttl_us=LONG_US)
AGAIN = replace(FIRST, retry=True)
either = pytest.mark.parametrize("attempt", [CLIENT, AGAIN], ids=["client's key", "derived key"])


def line(amount: int = 10, *, limit: int = 1000, key: str = "daily", window=MONTH, weights: Weights = TOTAL) -> Line:
    return Line(key, window, weights, limit, amount)


def hold(
    bench: Bench, hold_id: str, attempt: Attempt | None = CLIENT, *lines: Line, ttl_us: int = LONG_US, tenant="acme"
) -> HoldOutcome:
    return bench.ledger.hold(HoldRequest(tenant, hold_id, lines or (line(),), ttl_us, attempt=attempt))


def settle(bench: Bench, hold_id: str, usage: Usage = NO_USAGE, tenant: str = "acme", **more) -> SettleOutcome:
    """With an answer it is completed, without one it was aborted, unless told otherwise."""
    answer = more.pop("answer", b"")
    more.setdefault("outcome", Outcome.COMPLETED if answer else Outcome.ABORTED)
    more.setdefault("kept", AnswerKept.KEPT if answer else AnswerKept.NONE)
    more.setdefault("reversal", b'{"reverses":"%b"}' % hold_id.encode())
    return bench.ledger.settle(
        Settlement(
            tenant, hold_id, usage, Evidence.EXACT, b'{"settled":"%b"}' % hold_id.encode(), answer=answer, **more
        )
    )


def counts(
    bench: Bench, *, tenant: str = "acme", window=MONTH, limit: int = 1000, key: str = "daily"
) -> tuple[int, int]:
    (state,) = bench.ledger.peek(tenant, [line(0, window=window, limit=limit, key=key)])
    return state.committed, state.held


def events(bench: Bench, tenant: str = "acme"):
    return [(e.event_id, e.event, e.posted) for e in bench.ledger.outbox(partition_of(tenant), count=1000)]


def reversals(bench: Bench) -> list[str]:
    return [event_id for event_id, _, _ in events(bench) if event_id.startswith("reversal:")]

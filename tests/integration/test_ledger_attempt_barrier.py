"""A hundred tries at one logical request at once: one runs, whichever way they come."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest

from kong_plugins.adapters.ledger import EmbeddedValkey, RedisLedger, connect_ledger
from kong_plugins.domain.attempts import AnswerKept, Attempt, Standing
from kong_plugins.domain.budgets import TOTAL
from kong_plugins.domain.holds import HoldOutcome, HoldRequest, Line, Outcome, Settlement, SettleOutcome, SettleStatus
from kong_plugins.domain.usage import Evidence, Usage
from kong_plugins.domain.windows import FixedWindow, Unit

REQUESTS = 100
LINE = Line("daily", FixedWindow(Unit.MONTH), TOTAL, 1_000_000, 10)
HOUR_US = 3_600_000_000
T = TypeVar("T")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
def ledgers(server: EmbeddedValkey) -> Iterator[list[RedisLedger]]:
    """Two connections, as two plugin servers would have."""
    ledgers = [connect_ledger(server.url, timeout_s=20) for _ in range(2)]
    yield ledgers
    for ledger in ledgers:
        ledger.close()


def at_once(ledgers: list[RedisLedger], ask: Callable[[RedisLedger, int], T]) -> list[T]:
    barrier = threading.Barrier(REQUESTS)
    answers: list[T] = []

    def wait_and_ask(number: int) -> None:
        barrier.wait()
        answers.append(ask(ledgers[number % 2], number))

    threads = [threading.Thread(target=wait_and_ask, args=(number,)) for number in range(REQUESTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == REQUESTS
    return answers


@pytest.mark.parametrize("derived", [False, True], ids=["client's key", "derived key"])
def test_exactly_one_of_a_hundred_tries_runs_and_after_its_abort_exactly_one_again(
    ledgers: list[RedisLedger], derived: bool
) -> None:
    """All others are told which one runs; in the end there is one charge, and the answer for everyone."""
    tenant = f"tenant-{derived}"
    attempt = Attempt("key", "asked", derived=derived, retry=True, ttl_us=HOUR_US)

    def settle(hold_id: str, completion: int, answer: bytes) -> SettleOutcome:
        outcome, kept = (Outcome.COMPLETED, AnswerKept.KEPT) if answer else (Outcome.ABORTED, AnswerKept.NONE)
        usage = Usage(10, completion)
        return ledgers[0].settle(
            Settlement(tenant, hold_id, usage, Evidence.EXACT, b"{}", outcome, b"[]", answer, kept)
        )

    for round_, answer in enumerate([b"", b"", b"whole"]):

        def ask(ledger: RedisLedger, number: int, round_: int = round_) -> tuple[str, HoldOutcome]:
            hold_id = f"{round_}-{number}"
            return hold_id, ledger.hold(HoldRequest(tenant, hold_id, (LINE,), HOUR_US, attempt=attempt))

        answers = at_once(ledgers, ask)
        (runs,) = [hold_id for hold_id, outcome in answers if outcome.admitted]
        told = Counter(
            (outcome.earlier.standing, outcome.earlier.hold_id) for _, outcome in answers if outcome.earlier is not None
        )
        assert told == {(Standing.RUNNING, runs): REQUESTS - 1}
        settle(runs, round_, answer)
    replayed = {outcome.earlier.answer for _, outcome in at_once(ledgers, ask) if outcome.earlier is not None}
    assert replayed == {b"whole"}
    (state,) = ledgers[0].peek(tenant, [LINE])
    assert (state.committed, state.held) == (12, 0)


def test_a_hundred_settlements_of_one_attempt_reverse_the_one_before_it_once(ledgers: list[RedisLedger]) -> None:
    tenant = "settler"
    attempt = Attempt("key", "asked", derived=False, retry=False, ttl_us=HOUR_US)
    for hold_id in "ab":
        assert ledgers[0].hold(HoldRequest(tenant, hold_id, (LINE,), HOUR_US, attempt=attempt)).admitted
        settlement = Settlement(tenant, hold_id, Usage(10), Evidence.EXACT, b"{}", Outcome.ABORTED, b"[]")

        def settle(ledger: RedisLedger, _: int, settlement: Settlement = settlement) -> SettleStatus:
            return ledger.settle(settlement).status

        statuses = Counter(at_once(ledgers, settle))
        assert statuses == {SettleStatus.POSTED: 1, SettleStatus.REPEATED: REQUESTS - 1}
    (state,) = ledgers[0].peek(tenant, [LINE])
    assert (state.committed, state.held) == (10, 0)

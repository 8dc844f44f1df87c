"""Postings reach the ledger once, in order; one that it cannot take blocks nobody and is set aside in the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import pytest

from kong_plugins.adapters.ledger import MemoryLedger
from kong_plugins.application import posting as application_posting
from kong_plugins.application.ports import LedgerUnavailable, Posting, Recording, Spooled, SpoolUnavailable
from kong_plugins.application.posting import FAILURES_MAX, PROBE_AFTER, Poster
from kong_plugins.domain.attempts import AnswerKept
from kong_plugins.domain.holds import Settlement
from kong_plugins.domain.usage import Evidence, Usage


class Ledger(MemoryLedger):
    """In memory, behind a line that can be cut, and with an error for some."""

    def __init__(self) -> None:
        super().__init__(lambda: 1_795_000_000_000_000)
        self.away = False
        self.poison: set[str] = set()
        self.taken: list[str] = []
        self.asked: list[str] = []

    def record(self, tenant: str, event_id: str, event: bytes) -> bool:
        self.asked.append(event_id)
        if self.away or event_id in self.poison:
            raise LedgerUnavailable("no")
        self.taken.append(event_id)
        return super().record(tenant, event_id, event)


class ListSpool:
    """The port in a list, with a clock that a pause moves."""

    def __init__(self) -> None:
        self.rows: dict[int, tuple[Spooled, float | None]] = {}  # and when it is due: 0 in line, None aside
        self.reasons: list[str] = []
        self.now = 1.0
        self.full = False

    @property
    def waiting(self) -> int:
        return sum(due == 0 for _, due in self.rows.values())

    @property
    def depth(self) -> int:
        return sum(due is not None for _, due in self.rows.values())

    def append(self, posting: Posting) -> None:
        if self.full:
            raise SpoolUnavailable("no room")
        number = max(self.rows, default=0) + 1
        self.rows[number] = Spooled((0, number), posting), 0.0

    def oldest(self, count: int) -> tuple[Spooled, ...]:
        return tuple([entry for entry, due in self.rows.values() if due == 0][:count])

    def due(self, count: int) -> tuple[Spooled, ...]:
        return tuple([entry for entry, due in self.rows.values() if due and due <= self.now][:count])

    def remove(self, entries: Sequence[Spooled]) -> None:
        if self.full:  # a removal is written, too
            raise SpoolUnavailable("no room")
        for entry in entries:
            del self.rows[entry.position[1]]

    def defer(self, entry: Spooled, reason: str, seconds: float | None) -> None:
        self.reasons.append(reason)
        changed = replace(entry, failures=entry.failures + 1)
        self.rows[entry.position[1]] = changed, None if seconds is None else self.now + seconds

    def adopt(self) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass
class Hand:
    """A background worked by hand: each pause moves the clock, runs what the test wants, and may be the last."""

    spool: ListSpool
    ledger: Ledger
    pauses_left: int = 1_000
    pauses: int = 0
    back_after: int | None = None
    free_after: int | None = None
    arrivals: Iterator[str] = field(default_factory=lambda: iter(()))
    poster: Poster | None = None

    def submit(self, task: object) -> bool:
        self.task = task
        return True

    def run(self) -> None:
        task, self.task = self.task, None
        assert callable(task)
        task()

    def pause(self, seconds: float) -> bool:
        self.pauses += 1
        self.spool.now += seconds
        if self.pauses == self.back_after:
            self.ledger.away = False
        if self.pauses == self.free_after:
            self.spool.full = False
        for name in self.arrivals:
            assert self.poster is not None
            self.poster.record(Recording("other", name, b"{}"))
            break
        return self.pauses < self.pauses_left


def bench() -> tuple[Poster, Ledger, ListSpool, Hand]:
    ledger, spool = Ledger(), ListSpool()
    hand = Hand(spool, ledger)
    hand.poster = Poster(ledger, spool, hand)
    return hand.poster, ledger, spool, hand


def record(poster: Poster, *names: str, tenant: str = "t") -> None:
    for name in names:
        poster.record(Recording(tenant, name, b"{}"))


def test_nothing_is_asked_of_a_ledger_that_is_known_to_be_away() -> None:
    """After the first failure the others go behind it at once; all arrive in order when it is back."""
    poster, ledger, spool, hand = bench()
    ledger.away = True
    record(poster, "a", "b", "c")
    assert (ledger.asked, spool.waiting) == (["a"], 3)
    hand.back_after = 6
    hand.run()
    assert ledger.taken == ["a", "b", "c"]
    assert (poster.counts.spooled, poster.counts.replayed, spool.depth) == (3, 3, 0)


@pytest.mark.parametrize("others", ["t", "u"])
def test_poison_blocks_nobody_and_is_set_aside_with_its_reason(others: str) -> None:
    """Of the same tenant or of others: they pass after a few failures, and it is tried often before it is given up."""
    poster, ledger, spool, hand = bench()
    ledger.away, ledger.poison = True, {"bad"}
    record(poster, "bad")
    record(poster, "b", "c", tenant=others)
    ledger.away = False
    hand.pauses_left = 10_000
    hand.arrivals = iter(f"later{number}" for number in range(100_000))
    hand.run()
    assert [name for name in ledger.taken if name in ("b", "c")] == ["b", "c"]
    assert len(ledger.taken) == len(set(ledger.taken))
    assert (spool.depth, poster.counts.set_aside) == (0, 1)
    ((aside, due),) = spool.rows.values()
    assert (aside.failures, due, spool.reasons[-1]) == (FAILURES_MAX, None, "no")
    assert ledger.asked.count("bad") > FAILURES_MAX


def test_an_outage_is_no_poison() -> None:
    """However long: while nothing gets through nobody is given up, or put behind others."""
    poster, ledger, spool, hand = bench()
    ledger.away = True
    record(poster, "a", "b", "c", "d", "e")
    hand.back_after = 10 * FAILURES_MAX
    hand.run()
    assert ledger.taken == ["a", "b", "c", "d", "e"]
    assert spool.reasons == []
    assert hand.pauses == hand.back_after > PROBE_AFTER


def test_a_deferred_one_is_not_given_up_in_an_outage() -> None:
    """Failures count only while the ledger takes others."""
    poster, ledger, spool, hand = bench()
    ledger.away, ledger.poison = True, {"bad"}
    record(poster, "bad", "b")
    ledger.away = False
    hand.pauses_left = PROBE_AFTER + 2
    hand.run()
    (entry,) = [entry for entry, _ in spool.rows.values()]
    failures = entry.failures
    assert ledger.taken == ["b"]
    ledger.away, hand.pauses_left = True, 200
    poster.resume()
    hand.run()
    ((entry, _),) = spool.rows.values()
    assert entry.failures <= failures + 1
    ledger.away, ledger.poison, hand.pauses_left = False, set(), 1_000
    poster.resume()
    hand.run()
    assert ledger.taken == ["b", "bad"]


def test_the_end_of_the_process_breaks_the_replay_off() -> None:
    """One more try, for the pause was not over; then it stays in the spool."""
    poster, ledger, spool, hand = bench()
    ledger.away = True
    record(poster, "a")
    hand.pauses_left = 1
    hand.run()
    assert (len(ledger.asked), spool.waiting) == (3, 1)


def test_one_that_comes_while_the_replay_ends_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the last look at an empty spool and the end of the replay."""
    poster, ledger, spool, hand = bench()
    ledger.away = True
    record(poster, "a")
    ledger.away = False
    due = spool.due

    def late(count: int) -> tuple[Spooled, ...]:
        monkeypatch.setattr(spool, "due", due)
        spool.append(Recording("t", "late", b"{}"))
        return ()

    monkeypatch.setattr(spool, "due", late)
    hand.run()
    assert ledger.taken == ["a", "late"]


def test_constants_give_a_failover_time() -> None:
    """Half an hour at least before a posting is given up."""
    module = application_posting
    pauses = [min(module.DEFER_FIRST_S * 2**n, module.DEFER_MAX_S) for n in range(FAILURES_MAX - 1)]
    assert sum(pauses) >= 1_800


@pytest.mark.parametrize(("back", "free"), [(3, 6), (6, 3), (3, None)])
def test_what_neither_takes_is_kept_until_one_does(back: int, free: int | None) -> None:
    """A full disk under both: whichever works again first has it, and nothing is lost or posted twice."""
    poster, ledger, spool, hand = bench()
    ledger.away, spool.full = True, True
    record(poster, "a", "b", "c")
    assert (poster.counts.kept, poster.counts.lost, spool.depth) == (3, 0, 0)
    hand.back_after, hand.free_after = back, free
    hand.run()
    assert ledger.taken == ["a", "b", "c"]
    assert (poster.counts.lost, spool.depth) == (0, 0)
    record(poster, "d")
    assert ledger.taken[-1] == "d"


def test_what_was_posted_and_could_not_be_removed_is_posted_once(caplog: pytest.LogCaptureFixture) -> None:
    """The spool's disk is full when the ledger is back: its postings are told again until they can be removed."""
    poster, ledger, spool, hand = bench()
    ledger.away = True
    record(poster, "a", "b")
    ledger.away, spool.full, hand.free_after = False, True, 4
    hand.run()
    assert (sorted(set(ledger.taken)), spool.depth, poster.counts.posted) == (["a", "b"], 0, 2)
    assert "the spool cannot be read or written" in caplog.text


def test_what_is_kept_is_bounded_and_goes_to_the_log_at_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each that cannot be kept, and each that is left when the process ends, with its whole event."""
    monkeypatch.setattr(application_posting, "KEPT_MAX", 2)
    poster, ledger, spool, hand = bench()
    ledger.away, spool.full, hand.pauses_left = True, True, 1
    record(poster, "a", "b", "c")
    assert (poster.counts.kept, poster.counts.lost) == (2, 1)
    hand.run()
    poster.close()
    assert poster.counts.lost == 3
    assert [name for name in ("a", "b", "c") if f"event {name} not posted" in caplog.text] == ["a", "b", "c"]
    assert "event: {}" in caplog.text


def test_an_answer_for_retries_takes_no_memory_of_settlements() -> None:
    """What is billed is kept; a retry runs again."""
    poster, ledger, spool, hand = bench()
    spool.full = True
    ledger.settle = lambda _: (_ for _ in ()).throw(LedgerUnavailable("no"))  # type: ignore[method-assign,assignment]
    poster.settle(Settlement("t", "h", Usage(3, 1), Evidence.EXACT, b"{}", answer=b"x" * 9, kept=AnswerKept.KEPT))
    spool.full, hand.pauses_left = False, 1
    hand.run()
    ((entry, _),) = spool.rows.values()
    assert isinstance(entry.posting, Settlement)
    assert (entry.posting.answer, entry.posting.kept) == (b"", AnswerKept.TOO_LARGE)

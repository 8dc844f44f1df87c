"""The way of postings into the ledger: at once, or through a durable spool while the ledger is out of reach."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from kong_plugins.application.ports import (
    Background,
    Ledger,
    LedgerUnavailable,
    Posting,
    Recording,
    Spool,
    Spooled,
    SpoolUnavailable,
)
from kong_plugins.domain.attempts import AnswerKept
from kong_plugins.domain.holds import Settlement, SettleOutcome, SettleStatus

_log = logging.getLogger(__name__)

RETRY_FIRST_S = 0.25
RETRY_MAX_S = 15.0  # A store that was down for minutes finds its first settlement within seconds of its return.
BATCH = 100  # between two removals: as many are posted again, unchanged, when the process is killed there

# One posting that the ledger answers with an error, while it takes others, must not hold these up; but a timeout at the
# end of an outage must not turn the order around either.
PROBE_AFTER = 3  # failures of the first in line before those behind it are tried
PROBES = 3
DEFER_FIRST_S = 2.0
DEFER_MAX_S = 600.0
FAILURES_MAX = 12  # with these pauses half an hour: longer than a failover, or a cluster's one missing node

KEPT_MAX = 10_000  # in memory, some 2 kB each, while neither ledger nor spool takes any: a full disk under both


@dataclass(slots=True)
class PostingCounts:
    """What became of postings since the process began, for metrics."""

    posted: int = 0
    repeated: int = 0
    unknown: int = 0  # the ledger had lost or forgotten the hold: the event was recorded, nothing was charged
    spooled: int = 0
    kept: int = 0  # neither ledger nor spool took it: in this process's memory until one of them does
    replayed: int = 0
    set_aside: int = 0
    lost: int = 0  # it could not be kept any longer: its event stands in the log

    def items(self) -> tuple[tuple[str, int], ...]:
        return tuple((each.name, getattr(self, each.name)) for each in fields(self))


class Poster:
    """Posts to one ledger. Postings arrive there in the order they came, but for those that it takes errors at, and
    those that the spool did not take when they came.

    While anything waits in the spool, what comes goes behind it: nobody waits for a ledger that is known to be away,
    and the order holds. What neither of them takes is kept in memory until one does: the ledger's disk and the spool's
    may be the same, and full.
    """

    def __init__(self, ledger: Ledger, spool: Spool, background: Background) -> None:
        self._ledger = ledger
        self._spool = spool
        self._background = background
        self._taken_at: dict[tuple[int, int], int] = {}  # what the ledger had taken when a posting last failed
        self._taken = 0
        self._kept: deque[Posting] = deque()
        self.counts = PostingCounts()

    def settle(self, settlement: Settlement) -> SettleOutcome | None:
        """None when it is in the spool: durable, and posted as soon as the ledger is back."""
        return self._now_or_later(settlement)

    def record(self, recording: Recording) -> SettleOutcome | None:
        """The event of a request that held nothing; None as for ``settle``."""
        return self._now_or_later(recording)

    def resume(self) -> None:
        """See whether anything waits: at the start, and from time to time, as other processes may leave something."""
        try:
            self._spool.adopt()
        except SpoolUnavailable as error:
            _log.error("what other processes left in the spool cannot be read: %s", error)
        if self._spool.depth or self._kept:
            self._start_replay()

    def close(self) -> None:
        """Nobody replays any more: what was kept is lost, but for the log."""
        while self._kept:
            self._lose(self._kept.popleft(), "the process ends, and neither ledger nor spool took it")

    def _now_or_later(self, posting: Posting) -> SettleOutcome | None:
        if not self._spool.waiting and not self._kept:
            try:
                return self._post(posting)
            except LedgerUnavailable as error:
                _log.error("ledger out of reach, %s goes to the spool: %s", name_of(posting), error)
        try:
            self._spool.append(posting)
        except SpoolUnavailable as error:
            self._keep(posting, str(error))
        else:
            self.counts.spooled += 1
        self._start_replay()
        return None

    def _keep(self, posting: Posting, why: str) -> None:
        if len(self._kept) >= KEPT_MAX:
            self._lose(posting, why)
            return
        if not self._kept:
            _log.error("neither ledger nor spool takes %s: kept in memory, as what follows (%s)", name_of(posting), why)
        if isinstance(posting, Settlement) and posting.answer:  # a retry runs again: memory is for what is billed
            posting = replace(posting, answer=b"", kept=AnswerKept.TOO_LARGE)
        self.counts.kept += 1
        self._kept.append(posting)

    def _lose(self, posting: Posting, why: str) -> None:
        self.counts.lost += 1
        log_lost(posting, why)

    def _post(self, posting: Posting) -> SettleOutcome:
        if isinstance(posting, Recording):
            new = self._ledger.record(posting.tenant, posting.event_id, posting.event)
            outcome = SettleOutcome(SettleStatus.POSTED if new else SettleStatus.REPEATED)
        else:
            outcome = self._ledger.settle(posting)
            if outcome.status is SettleStatus.UNKNOWN and posting.registration is not None:
                # Admitted without the ledger, and heard of by it first now. What is there again after a crash does both
                # again, and changes nothing.
                self._ledger.register(posting.registration)
                outcome = self._ledger.settle(posting)
            if outcome.status is SettleStatus.UNKNOWN:
                # A failover lost the hold, or it was forgotten long after its end, or is told of so late that it may
                # have been. The budget is not charged, but the books are: an event that was there is known by its id.
                self._ledger.record(posting.tenant, posting.hold_id, posting.event)
                _log.error(
                    "the ledger does not know hold %s of %s: its event is recorded, no budget is charged",
                    posting.hold_id,
                    posting.tenant,
                )
        self._taken += 1
        match outcome.status:
            case SettleStatus.POSTED:
                self.counts.posted += 1
            case SettleStatus.REPEATED:
                self.counts.repeated += 1
            case SettleStatus.UNKNOWN:
                self.counts.unknown += 1
        return outcome

    def _start_replay(self) -> None:
        """Refused where one is to begin anyway; one that runs is followed by another, which finds nothing or little."""
        self._background.submit(self._drain)

    def _drain(self) -> None:
        """Until nothing is left to try, or the process ends."""
        pause_s, rounds, closing = RETRY_FIRST_S, 0, False
        while True:
            progress = self._place_kept()
            try:
                entries = self._spool.oldest(BATCH)
                if entries:
                    progress |= self._replay_in_order(entries, probe=rounds >= PROBE_AFTER)
                elif entries := self._spool.due(BATCH):
                    progress |= self._replay_deferred(entries)
                elif self._spool.waiting:  # one came while we looked
                    continue
            except SpoolUnavailable as error:
                _log.error("the spool cannot be read or written, its postings wait: %s", error)
            else:
                if not entries and not self._kept:
                    if not self._spool.depth or not self._background.pause(DEFER_FIRST_S):
                        return
                    continue
            if progress:
                pause_s, rounds = RETRY_FIRST_S, 0
            else:
                rounds += 1
                if closing:
                    return
                closing = not self._background.pause(pause_s)  # then once more: the pause was not over
                pause_s = min(2 * pause_s, RETRY_MAX_S)

    def _place_kept(self) -> bool:
        """Into the spool, else into the ledger. Says whether one of them took any."""
        placed = False
        while self._kept:
            try:
                self._spool.append(self._kept[0])
            except SpoolUnavailable:
                try:
                    self._post(self._kept[0])
                except LedgerUnavailable:
                    break
                self.counts.replayed += 1
            else:
                self.counts.spooled += 1
            self._kept.popleft()
            placed = True
        return placed

    def _replay_in_order(self, entries: Sequence[Spooled], probe: bool) -> bool:
        """Up to the first that fails. ``probe``: it has failed before; see whether the ledger takes others."""
        done: list[Spooled] = []
        failure: LedgerUnavailable | None = None
        for entry in entries:
            failure = self._try(entry)
            if failure is not None:
                break
            done.append(entry)
        self._remove(done)
        if failure is None or not probe or done:
            return bool(done)
        first, *behind = entries
        behind.sort(key=lambda each: each.posting.tenant == first.posting.tenant)  # others first: it may be its alone
        for other in behind[:PROBES]:
            if self._try(other) is None:
                self._remove([other])
                failure = self._try(first)  # once more, now that it answers
                if failure is None:
                    self._remove([first])
                else:
                    self._defer(first, failure)
                return True
        return False

    def _replay_deferred(self, entries: Sequence[Spooled]) -> bool:
        for entry in entries:
            failure = self._try(entry)
            if failure is None:
                self._remove([entry])
            elif self._taken > self._taken_at.get(entry.position, 0):
                self._defer(entry, failure)
            else:
                return False  # nothing else got through either
        return True

    def _try(self, entry: Spooled) -> LedgerUnavailable | None:
        try:
            self._post(entry.posting)
        except LedgerUnavailable as error:
            return error
        return None

    def _remove(self, done: Sequence[Spooled]) -> None:
        if done:
            self._spool.remove(done)
            self.counts.replayed += len(done)
            for entry in done:
                self._taken_at.pop(entry.position, None)

    def _defer(self, entry: Spooled, failure: LedgerUnavailable) -> None:
        failures = entry.failures + 1
        what = name_of(entry.posting)
        if failures < FAILURES_MAX:
            self._taken_at[entry.position] = self._taken
            self._spool.defer(entry, str(failure), min(DEFER_FIRST_S * 2 ** (failures - 1), DEFER_MAX_S))
            _log.error("the ledger takes others, but not %s (time %d): %s", what, failures, failure)
            return
        self._taken_at.pop(entry.position, None)
        self._spool.defer(entry, str(failure), None)
        self.counts.set_aside += 1
        _log.error(
            "%s is set aside after %d times: %s. See `token-quota spool show`; `token-quota spool replay` tries again",
            what,
            failures,
            failure,
        )


def name_of(posting: Posting) -> str:
    """``settlement ID`` or ``event ID``."""
    return f"settlement {posting.hold_id}" if isinstance(posting, Settlement) else f"event {posting.event_id}"


def log_lost(posting: Posting, why: str) -> None:
    """The event holds no secret, and the log is then the only place that has it."""
    _log.error("%s not posted: %s; event: %s", name_of(posting), why, posting.event.decode("utf-8", "replace"))

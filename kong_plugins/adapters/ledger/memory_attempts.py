"""What the in-memory ledger remembers of attempts: which logical requests there are, which attempt of each is charged,
and the answers kept for retries. The model of lua/attempts.lua."""

from __future__ import annotations

from bisect import insort
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from kong_plugins.adapters.ledger import layout
from kong_plugins.domain.attempts import Attempt, Earlier, Standing

_BETTER = {"u": 1, "l": 2, "k": 3}  # what a second settlement of the same attempt may add to the first


@dataclass(slots=True)
class Posted:
    """A line of a charged attempt. ``path``: the counter that counts it, if one does; ``at_us``: when it was used, for
    a bucket when it came in."""

    path: str | None
    line_key: str
    amount: int
    at_us: int
    limit: int


@dataclass(slots=True)
class Charged:
    """The attempt that its logical request is charged for."""

    hold_id: str
    tokens: int
    reversal: bytes
    lines: list[Posted]
    forgotten_us: int = 0


@dataclass(slots=True)
class Logical:
    """A logical request, ``number`` of its key. ``stands``: ``r`` while the current attempt runs, else as in
    ``layout.standing``. ``when_us``: when that attempt's grace is over, or when the logical request is forgotten.
    ``dropped``: younger ones took its place; a retry no longer finds it."""

    number: int
    tenant: str
    current: str
    first: str
    fingerprint: str
    when_us: int
    attempts: int = 1
    stands: str = "r"
    dropped: bool = False

    def remembered(self, now_us: int) -> bool:
        return now_us < self.when_us + (layout.UNSWEPT_US if self.stands == "r" else 0)


@dataclass(frozen=True, slots=True)
class Try:
    """What a hold knows of its logical request."""

    logical: Logical
    hold_id: str
    ttl_us: int


@dataclass(slots=True)
class _Answers:
    """Of one tenant: what is kept, by when it is forgotten."""

    order: list[tuple[int, bytes, str]] = field(default_factory=list)
    kept: dict[str, tuple[int, bytes]] = field(default_factory=dict)  # until when, and the answer
    bytes_: int = 0


class Attempts:
    """Not safe to share: the ledger's lock is around every call."""

    def __init__(self, answers_bytes: int) -> None:
        self._answers_bytes = answers_bytes
        self._keys: defaultdict[str, list[Logical]] = defaultdict(list)  # oldest first
        self._charged: dict[str, Charged] = {}
        self._answers: defaultdict[str, _Answers] = defaultdict(_Answers)

    def look(
        self, tenant: str, attempt: Attempt, now_us: int, end: Callable[[str], None]
    ) -> tuple[Logical | None, Earlier | None]:
        """Which logical request this is a further attempt at (none: a new one), or what stands in its way.

        ``end``: told the hold of an attempt whose grace is over by the clock, before any sweep came by.
        """
        if attempt.derived and not attempt.retry:
            return None, None
        known = [one for one in self._keys.get(layout.tries_path(tenant, attempt), ()) if one.remembered(now_us)]
        if not attempt.derived:
            if not known:
                return None, None
            if known[-1].fingerprint != attempt.fingerprint:
                return None, Earlier(Standing.MISMATCH, known[-1].current)
            stands, answer = self._standing(known[-1], now_us, end)
            if stands is not None:
                return None, Earlier(stands, known[-1].current, answer)
            return (known[-1] if known[-1].attempts < attempt.attempts_max else None), None
        found: dict[Standing, Earlier] = {}
        for one in reversed(known):
            stands, answer = self._standing(one, now_us, end)
            if stands is None:
                if one.attempts < attempt.attempts_max:
                    return one, None
            elif stands is not Standing.GONE:
                found.setdefault(stands, Earlier(stands, one.current, answer))
        return None, found.get(Standing.RUNNING) or found.get(Standing.FINISHED)

    def _standing(self, one: Logical, now_us: int, end: Callable[[str], None]) -> tuple[Standing | None, bytes | None]:
        """None: it may be tried again."""
        if one.stands == "r" and now_us >= one.when_us:
            end(one.current)
        if one.stands == "r":
            return Standing.RUNNING, None
        if one.stands == "l":
            return Standing.GONE, None
        if one.stands == "k":
            until_us, answer = self._answers[one.tenant].kept.get(one.current, (0, b""))
            return (Standing.FINISHED, answer) if now_us < until_us else (None, None)
        return None, None

    def begin(
        self, tenant: str, attempt: Attempt, one: Logical | None, hold_id: str, *, over_us: int, now_us: int
    ) -> Try:
        """The hold is made: the next attempt at ``one``, or the first at a new logical request."""
        if one is None:
            key = self._keys[layout.tries_path(tenant, attempt)]
            first = layout.member(tenant, hold_id)
            number = key[-1].number + 1 if key else 1
            while key and key[0].number <= number - layout.remembered(attempt):
                key.pop(0).dropped = True
            key.append(Logical(number, tenant, hold_id, first, attempt.fingerprint, over_us))
            return Try(key[-1], hold_id, attempt.ttl_us)
        one.current, one.attempts, one.stands, one.when_us = hold_id, one.attempts + 1, "r", over_us
        charged = self.charged(one, now_us)
        if charged is not None:
            charged.forgotten_us = max(over_us + layout.UNSWEPT_US, now_us + attempt.ttl_us)
        return Try(one, hold_id, attempt.ttl_us)

    def charged(self, one: Logical, now_us: int) -> Charged | None:
        charged = self._charged.get(one.first)
        return None if charged is None or self._over(charged, now_us) else charged

    @staticmethod
    def _over(charged: Charged, now_us: int) -> bool:
        return now_us // 1000 > -(-charged.forgotten_us // 1000)  # the store forgets by the millisecond

    def charge(self, tried: Try, charged: Charged, now_us: int) -> None:
        """From now on this attempt is the one that the logical request is charged for."""
        one = tried.logical
        charged.forgotten_us = now_us + tried.ttl_us
        if one.stands == "r" and one.current != tried.hold_id and not one.dropped:  # another attempt will ask for it
            charged.forgotten_us = max(charged.forgotten_us, one.when_us + layout.UNSWEPT_US)
        self._charged[one.first] = charged

    def conclude(self, tried: Try, stands: str, now_us: int, answer: bytes = b"") -> None:
        """The attempt has ended. One that is no longer the current one has no say in what a retry finds."""
        if self._has_a_say(tried, now_us):
            self._stand(tried, self._kept_as(tried, stands, answer, now_us), now_us)

    def add(self, tried: Try, stands: str, now_us: int, answer: bytes) -> None:
        """A second settlement: it may bring the answer that the first did not."""
        one = tried.logical
        if not self._has_a_say(tried, now_us):
            return
        was = _BETTER.get(one.stands, 0)
        if was and _BETTER.get(stands, 0) > was:
            stands = self._kept_as(tried, stands, answer, now_us)
            if _BETTER[stands] > was:
                self._stand(tried, stands, now_us)

    @staticmethod
    def _has_a_say(tried: Try, now_us: int) -> bool:
        one = tried.logical
        return one.current == tried.hold_id and not one.dropped and one.remembered(now_us)

    def _stand(self, tried: Try, stands: str, now_us: int) -> None:
        one = tried.logical
        one.stands, one.when_us = stands, now_us + tried.ttl_us
        charged = self.charged(one, now_us)
        if charged is not None:
            charged.forgotten_us = one.when_us

    def _kept_as(self, tried: Try, stands: str, answer: bytes, now_us: int) -> str:
        if stands != "k":
            return stands
        size = len(answer) + layout.ANSWER_EXTRA
        if size > self._answers_bytes:
            return "l"
        answers, until_us = self._answers[tried.logical.tenant], now_us + tried.ttl_us
        for _ in range(layout.SWEEP):
            if not answers.order:
                break
            forgotten_us, member, hold_id = answers.order[0]
            if answers.bytes_ + size <= self._answers_bytes and forgotten_us > now_us:
                break
            del answers.order[0], answers.kept[hold_id]
            answers.bytes_ -= int(member.partition(b"/")[0])
        if answers.bytes_ + size > self._answers_bytes:
            return "u"
        answers.bytes_ += size
        answers.kept[tried.hold_id] = until_us, answer
        insort(answers.order, (until_us, f"{size}/{tried.hold_id}".encode(errors="surrogateescape"), tried.hold_id))
        return "k"

    def forget(self, now_us: int) -> None:
        """Drop what no answer depends on any more."""
        for path, known in list(self._keys.items()):
            known[:] = [one for one in known if one.remembered(now_us)]
            if not known:
                del self._keys[path]
        for first in [first for first, charged in self._charged.items() if self._over(charged, now_us)]:
            del self._charged[first]

"""Why an engine may have counted more, or less, than an event bills: each reason with the most it can explain.

Everything is of the engine minus the books, in tokens. A reason that cannot be told to the token is a range, and every
range ends: at what the request's hold allowed, at what fits into its time, at what it billed. An event that is billed
with the engine's own final figures explains nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from kong_plugins.application.reconcile_scrapes import Tokens
from kong_plugins.domain.holds import Outcome
from kong_plugins.domain.usage import Evidence

SERVER_ERROR = 500
SECOND_US = 1_000_000

# The model's own tokenizer on text that passed: an end-of-text token has none, a cut or an engine's unusual choice of
# tokens shifts some, a template's tokens are allowed for. As measured, well under one in a hundred.
COUNTED_SHARE = 20  # a twentieth
COUNTED_SLACK = 16

# How long a request may have run that nobody heard of again: longer than gateways wait for an engine.
UNHEARD_US = 3600 * SECOND_US


class Kind(StrEnum):
    """Why the engine and the books differ over an event."""

    REVERSED = "reversed"  # the engine ran it, a retry took its charge back
    ABORTED = "aborted"  # tokens in flight when the client left
    FAILED = "failed"  # it broke off, or was given up on, while the engine ran
    EXPIRED = "expired"  # nobody told how it ended; nothing was charged
    COUNTED = "counted"  # billed by our count of its text
    HELD = "held"  # billed by what was held, or not at all: nobody saw its usage
    CHOICES = "choices"  # the engine counts a prompt once for each choice
    EDGE = "edge"  # it ran while the counters were scraped
    UNDELIVERED = "undelivered"  # its event is not in the books yet
    OPEN = "open"  # it still runs, or its end was lost: there is no event, only a hold


WORDS = {
    Kind.REVERSED: "reversed by a retry: the engine ran both, the tenant pays one",
    Kind.ABORTED: "the client left with tokens in flight",
    Kind.FAILED: "failed while the engine ran: nothing was charged for what nobody got",
    Kind.EXPIRED: "nobody told how it ended: its hold expired, uncharged",
    Kind.COUNTED: "billed by our count of its text, the engine sent no usage",
    Kind.HELD: "billed without anybody having seen its usage",
    Kind.CHOICES: "n > 1: the engine counts the prompt once for each choice, a bill once",
    Kind.EDGE: "ran while the counters were scraped, or while nobody scraped them",
    Kind.UNDELIVERED: "its event is not in the books yet",
    Kind.OPEN: "still held: it runs, or its end was lost",
}


@dataclass(frozen=True, slots=True)
class Range:
    """Both ends are in it."""

    low: int = 0
    high: int = 0

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.high + other.high)

    def beyond(self, value: int) -> int:
        """How far ``value`` is outside; 0 where it is in it."""
        return min(0, value - self.low) + max(0, value - self.high)


NOTHING = Range()


def exactly(value: int) -> Range:
    return Range(value, value)


@dataclass(frozen=True, slots=True)
class Explanation:
    """``event_id``: of the event, the reversal, or the hold where there is no event."""

    kind: Kind
    event_id: str
    prompt: Range = NOTHING
    completion: Range = NOTHING


@dataclass(frozen=True, slots=True)
class Pace:
    """``tokens_s``: tokens a second, the fastest that one choice is generated. ``notice_us``: how long an engine may go
    on after a client has left."""

    tokens_s: float = 250.0
    notice_us: int = 250_000

    def in_time(self, time_us: int, choices: int) -> int:
        """The most that ``choices`` choices generate in that time, and before the engine notices its end."""
        return -int(-(max(0, time_us) + self.notice_us) * self.tokens_s * choices // SECOND_US)


@dataclass(frozen=True, slots=True)
class BookedEvent:
    """What matters of an event here. ``prompt`` and ``completion`` as in its own data (a reversal's: what it takes
    back). ``where``: ``books``, ``outbox`` (or what else keeps it from them), ``hold`` (no event yet). Times of a
    reversal: those of the attempt; an expired hold's request may have run for ``UNHEARD_US``. Bounds: 0 where nothing
    is known of them."""

    event_id: str
    kind: str
    model: str
    started_us: int
    ended_us: int
    prompt: int = 0
    completion: int = 0
    evidence: str | None = None
    outcome: str | None = None
    status: int = 0
    choices: int = 1
    prompt_bound: int = 0
    completion_bound: int = 0
    tenant: str = ""
    where: str = "books"

    @property
    def billed(self) -> Tokens:
        """As the books have it."""
        if self.where != "books":
            return Tokens()
        sign = -1 if self.kind == "reversal" else 1
        return Tokens(sign * self.prompt, sign * self.completion)


def explain(event: BookedEvent, pace: Pace, *, crossing: bool) -> tuple[Explanation, ...]:
    """Why the engine's counters differ from what the books have of this event. ``crossing``: it ran while nobody knows
    what was counted, so that the engine may have any part of it."""
    if event.kind == "reversal":
        if event.where != "books":
            return ()
        taken = exactly(event.prompt), exactly(event.completion)
        return (Explanation(Kind.REVERSED, event.event_id, *taken),)
    found = [_reason(event, pace)] if event.where != "hold" else [_open(event, pace)]
    if event.choices > 1 and event.evidence != Evidence.HELD and event.where != "hold":
        again = (event.choices - 1) * event.prompt
        complete = event.outcome == Outcome.COMPLETED
        found.append(Explanation(Kind.CHOICES, event.event_id, exactly(again) if complete else Range(0, again)))
    if crossing:
        found = [each and _at_most(each) for each in found]
        if event.where != "hold":
            edges = Range(-event.prompt, 0), Range(-event.completion, 0)
            found.append(Explanation(Kind.EDGE, event.event_id, *edges))
    if event.where not in {"books", "hold"}:
        found.append(Explanation(Kind.UNDELIVERED, event.event_id, exactly(event.prompt), exactly(event.completion)))
    return tuple(each for each in found if each is not None and (each.prompt, each.completion) != (NOTHING, NOTHING))


def _at_most(each: Explanation) -> Explanation:
    """It may be that none of it was counted."""
    prompt, completion = each.prompt, each.completion
    return Explanation(
        each.kind,
        each.event_id,
        Range(min(0, prompt.low), max(0, prompt.high)),
        Range(min(0, completion.low), max(0, completion.high)),
    )


def _reason(event: BookedEvent, pace: Pace) -> Explanation | None:
    match event.outcome, event.evidence:
        case (Outcome.DENIED, _):
            return None
        case (Outcome.EXPIRED, _):
            return Explanation(Kind.EXPIRED, event.event_id, _prompt(event), Range(0, event.completion_bound))
        case (_, Evidence.EXACT):
            return _failed(event, pace)
        case (_, Evidence.CONTINUOUS):
            kind = Kind.ABORTED if event.outcome == Outcome.ABORTED else Kind.FAILED
            return Explanation(kind, event.event_id, completion=Range(0, _left(event, pace.in_time(0, event.choices))))
        case (_, Evidence.TOKENIZED):
            return _counted(event, pace)
    most = min(event.completion_bound, _lifetime(event, pace)) - event.completion
    return Explanation(
        Kind.HELD, event.event_id, _prompt(event), Range(-event.completion, max(-event.completion, most))
    )


def _failed(event: BookedEvent, pace: Pace) -> Explanation | None:
    """An answer with the engine's final figures is whole, whatever became of it then. One that ended in a gateway's
    error was charged nothing, and ran until the gateway gave up."""
    if event.status < SERVER_ERROR or event.prompt or event.completion:
        return None
    completion = Range(0, _left(event, _lifetime(event, pace)))
    return Explanation(Kind.FAILED, event.event_id, _prompt(event), completion)


def _counted(event: BookedEvent, pace: Pace) -> Explanation:
    """Near what was counted, to the end of what was seen. Of an answer that nobody saw: what fits into its time."""
    slack = event.completion // COUNTED_SHARE + COUNTED_SLACK * event.choices
    whole = event.outcome == Outcome.COMPLETED
    if whole:
        more = slack
    elif event.completion:
        more = _left(event, slack + pace.in_time(0, event.choices))
    else:
        more = _left(event, _lifetime(event, pace))
    near = event.choices * (event.prompt // COUNTED_SHARE + COUNTED_SLACK)
    prompt = Range(-min(event.prompt, near) if whole or event.completion else -event.prompt, near)
    return Explanation(Kind.COUNTED, event.event_id, prompt, Range(-min(slack, event.completion), more))


def _open(event: BookedEvent, pace: Pace) -> Explanation:
    completion = Range(0, _left(event, _lifetime(event, pace)))
    return Explanation(Kind.OPEN, event.event_id, Range(0, event.choices * event.prompt_bound), completion)


def _prompt(event: BookedEvent) -> Range:
    """From never begun to counted for every choice."""
    return Range(-event.prompt, max(0, event.choices * event.prompt_bound - event.prompt))


def _lifetime(event: BookedEvent, pace: Pace) -> int:
    return pace.in_time(event.ended_us - event.started_us, event.choices)


def _left(event: BookedEvent, tokens: int) -> int:
    """No more than its hold allowed."""
    return min(tokens, max(0, event.completion_bound - event.completion))

"""Admission: hold a request's bound against every budget, and if that is short look closer before refusing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from time import monotonic

from kong_plugins.application.outage import Closed, Outage, Unasked
from kong_plugins.application.ports import Background, Ledger, LedgerFault, LedgerUnavailable
from kong_plugins.domain.attempts import Attempt, Earlier, Standing
from kong_plugins.domain.concurrency import Slots, SlotState
from kong_plugins.domain.errors import CountUnavailable
from kong_plugins.domain.holds import DecidedBy, HoldOutcome, HoldRequest, Registration
from kong_plugins.domain.planning import PlannedLine, at, completion_that_fits
from kong_plugins.domain.refusals import Refusal, refusal_of
from kong_plugins.domain.usage import Usage

_log = logging.getLogger(__name__)

RELEASE_FIRST_S = 0.25
RELEASE_MAX_S = 15.0
RELEASE_AGAIN_S = 1.0  # after the store has answered: by then it has read whatever came before
# A client that gives up and tries again is often back before its first attempt has settled: a few looks within 300 ms.
RUNNING_PAUSES_S = (0.02, 0.04, 0.08, 0.15)
# One that asks again as soon as it has its answer is there before that answer has settled: not worth a 429. No more
# than that, for whoever floods is to be refused early.
CROWDED_PAUSES_S = (0.03,)


@dataclass(frozen=True, slots=True)
class Ask:
    """A request to admit. ``count_prompt`` counts its prompt exactly and takes its time; None: no tokenizer is known.

    ``bound_at`` is the bound on usage for an exact prompt count. ``choices``: completions the engine will generate.
    ``expiry_event``: the billing event if nobody ever settles. ``attempt``: the logical request that it is a try of.
    ``slots``: what it takes one of while it runs.
    """

    tenant: str
    hold_id: str
    planned: tuple[PlannedLine, ...]
    bound: Usage
    choices: int
    bound_at: Callable[[int], Usage]
    count_prompt: Callable[[], int] | None = None
    expiry_event: bytes = b""
    attempt: Attempt | None = None
    slots: tuple[Slots, ...] = ()


@dataclass(frozen=True, slots=True)
class Held:
    """Admitted. ``max_tokens``: the limit per choice it was clamped to; None: as the client asked. ``registration``:
    for the ledger, which does not know of it yet; ``outcome`` has no states where nobody looked at the budgets."""

    planned: tuple[PlannedLine, ...]
    outcome: HoldOutcome
    bound: Usage
    max_tokens: int | None = None
    by: DecidedBy = DecidedBy.LEDGER
    registration: Registration | None = None

    @property
    def over(self) -> tuple[str, ...]:
        """Soft and shadow budgets that would have refused it."""
        return tuple(state.key for state in self.outcome.states if state.short)


@dataclass(frozen=True, slots=True)
class Denied:
    """Refused. ``planned`` and ``outcome`` are of the last and closest look."""

    planned: tuple[PlannedLine, ...]
    outcome: HoldOutcome
    bound: Usage
    refusal: Refusal


@dataclass(frozen=True, slots=True)
class Crowded:
    """Refused, before any budget was looked at: so many of the tenant's requests run already. ``state``: of the first
    slots that are all taken."""

    outcome: HoldOutcome
    state: SlotState


Decided = Held | Denied | Crowded | Earlier


@dataclass(frozen=True, slots=True)
class AdmissionPolicy:
    """``patience_us``: how long a client waits before trying again. ``clamp_min``: the smallest ``max_tokens`` worth
    an answer, None where requests are never clamped."""

    ttl_us: int
    patience_us: int
    clamp_min: int | None = None


@dataclass(slots=True)
class AdmissionCounts:
    """Requests since the process began: by what admitted them, refused for a budget or for too many at a time, and
    refused because the ledger was away. For metrics."""

    ledger: int = 0
    lease: int = 0
    open: int = 0
    denied: int = 0
    closed: int = 0

    def items(self) -> tuple[tuple[str, int], ...]:
        return tuple((each.name, getattr(self, each.name)) for each in fields(self))


class Admission:
    """Decides one request at a time; any number may run at once.

    ``tightens`` may drop work, which only helps while budgets are scarce. What is dropped from ``releases`` blocks its
    tenant's budgets until the hold's time is over. ``pause`` (seconds) lets a request wait for an earlier attempt that
    is about to end; without it none waits. ``lowered`` is told of a hold and of the prompt tokens that it is about
    to be tightened to, and says whether it still may be. ``outage``: what becomes of requests that the ledger is not
    asked about or does not answer.
    """

    def __init__(
        self,
        ledger: Ledger,
        tightens: Background,
        releases: Background,
        policy: AdmissionPolicy,
        pause: Callable[[float], None] | None = None,
        *,
        lowered: Callable[[str, int], bool] = lambda _hold_id, _prompt: True,
        outage: Outage | None = None,
        counts: AdmissionCounts | None = None,
    ) -> None:
        self._ledger = ledger
        self._tightens = tightens
        self._releases = releases
        self._policy = policy
        self._pause = pause
        self._lowered = lowered
        self._outage = outage or Closed()
        self._counts = counts or AdmissionCounts()

    def admit(self, ask: Ask) -> Decided:
        """``Earlier``: not decided, as an earlier attempt at the same logical request answers for it.

        Raises:
            LedgerUnavailable: no decision was made; a hold that took effect all the same is emptied in the background.
        """
        request = self._request(ask, ask.planned)
        attempt = ask.attempt
        # Only the ledger knows whether an earlier attempt stands in its way: without it, it might be charged twice.
        alone = attempt is None or (attempt.derived and not attempt.retry)
        if alone and ask.slots:
            self._outage.want(request)  # how many run at a time only the ledger knows
        elif alone and (unasked := self._outage.before(request)) is not None:
            return self._let_in(ask, unasked)
        try:
            if not alone:
                self._outage.flush(ask.tenant)
            outcome = self._hold(ask, ask.planned)
        except LedgerUnavailable as error:
            away = not isinstance(error, LedgerFault)
            unasked = self._outage.after(request) if alone and away else None
            if unasked is not None:
                return self._let_in(ask, unasked)  # the hold that may have taken effect is its own
            self._give_up(ask)
            raise
        try:
            decided = self._decide_when_free(ask, outcome)
        except LedgerUnavailable:  # it has looked, and may hold less by now than would be let in without it
            self._give_up(ask)
            raise
        if isinstance(decided, Held):
            self._counts.ledger += 1
        elif not isinstance(decided, Earlier):
            self._counts.denied += 1
        return decided

    def _give_up(self, ask: Ask) -> None:
        self._counts.closed += 1
        self.forsake(ask.tenant, ask.hold_id, ask.planned)

    def _let_in(self, ask: Ask, unasked: Unasked) -> Held:
        if unasked.by is DecidedBy.OPEN:
            self._counts.open += 1
        else:
            self._counts.lease += 1
        return Held(ask.planned, unasked.outcome, ask.bound, by=unasked.by, registration=unasked.registration)

    def forsake(self, tenant: str, hold_id: str, planned: Sequence[PlannedLine]) -> None:
        """Empty, in the background, a hold that no log phase may ever settle: it stands if the ledger's reply was lost,
        or if Kong did not wait for ours. Emptied it blocks nothing; should its request run after all, it is settled."""
        amounts = [(each.line.key, 0) for each in planned]  # and nothing else: the request may be large
        self._releases.submit(lambda: self._empty(tenant, hold_id, amounts))

    def _decide_when_free(self, ask: Ask, outcome: HoldOutcome) -> Decided:
        decided = self._decide(ask, outcome)
        if self._pause is None:
            return decided
        for seconds in RUNNING_PAUSES_S:
            if not isinstance(decided, Earlier) or decided.standing is not Standing.RUNNING:
                break
            self._pause(seconds)
            decided = self._decide(ask, self._hold(ask, ask.planned))
        for seconds in CROWDED_PAUSES_S:
            if not isinstance(decided, Crowded):
                break
            self._pause(seconds)
            decided = self._decide(ask, self._hold(ask, ask.planned))
        return decided

    def _decide(self, ask: Ask, outcome: HoldOutcome) -> Decided:
        """By the ledger's answer, and by closer looks where that is no."""
        bound, planned = ask.bound, ask.planned
        if (instead := _without_looking(outcome)) is not None:
            return instead
        if not outcome.admitted and self._outage.give_back(ask.tenant):
            outcome = self._hold(ask, planned)
            if (instead := _without_looking(outcome)) is not None:
                return instead
        if outcome.admitted:
            self._tighten_if_scarce(ask, outcome)
            return Held(planned, outcome, bound)

        exact = self._exact_bound(ask)
        if exact is not None:
            bound = exact
            planned = at(planned, bound)
            outcome = self._hold(ask, planned)
            if (instead := _without_looking(outcome)) is not None:
                return instead
            if outcome.admitted:
                return Held(planned, outcome, bound)

        max_tokens = self._clamped(ask, planned, outcome, bound)
        if max_tokens is not None:
            bound = Usage(bound.prompt, max_tokens * ask.choices)
            planned = at(planned, bound)
            outcome = self._hold(ask, planned)
            if (instead := _without_looking(outcome)) is not None:
                return instead
            if outcome.admitted:
                return Held(planned, outcome, bound, max_tokens)

        refusal = refusal_of(planned, outcome.states, outcome.now_us, self._policy.patience_us)
        if refusal is None:
            raise LedgerUnavailable(f"the ledger refused {ask.hold_id} without a short hard budget: {outcome}")
        return Denied(planned, outcome, bound, refusal)

    def _exact_bound(self, ask: Ask) -> Usage | None:
        if ask.count_prompt is None:
            return None
        try:
            return ask.bound_at(ask.count_prompt())
        except CountUnavailable as error:
            _log.info("%s is decided by its bound: %s", ask.hold_id, error)
            return None

    def _hold(self, ask: Ask, planned: tuple[PlannedLine, ...]) -> HoldOutcome:
        return self._ledger.hold(self._request(ask, planned))

    def _request(self, ask: Ask, planned: tuple[PlannedLine, ...]) -> HoldRequest:
        lines = tuple(each.line for each in planned)
        ttl_us, event = self._policy.ttl_us, ask.expiry_event
        return HoldRequest(ask.tenant, ask.hold_id, lines, ttl_us, event, ask.attempt, ask.slots)

    def _clamped(self, ask: Ask, planned: tuple[PlannedLine, ...], outcome: HoldOutcome, bound: Usage) -> int | None:
        if self._policy.clamp_min is None or ask.choices < 1:
            return None
        most = bound.completion // ask.choices
        max_tokens = completion_that_fits(planned, outcome.states, bound.prompt, ask.choices, most)
        return max_tokens if max_tokens >= self._policy.clamp_min else None

    def _tighten_if_scarce(self, ask: Ask, outcome: HoldOutcome) -> None:
        """A bound in bytes is some four times the prompt: once a budget is half held, that starves other requests."""
        if ask.count_prompt is None or not any(2 * state.held > state.limit for state in outcome.states):
            return

        def tighten() -> None:
            exact = self._exact_bound(ask)
            # Told first, or not done: what is charged unseen must never exceed what is held.
            if exact is not None and self._lowered(ask.hold_id, exact.prompt):
                amounts = [(each.line.key, each.line.amount) for each in at(ask.planned, exact)]
                if any(amount for _, amount in amounts):  # one that holds nothing would count as given up
                    self._ledger.tighten(ask.tenant, ask.hold_id, amounts)

        self._tightens.submit(tighten)

    def _empty(
        self, tenant: str, hold_id: str, amounts: Sequence[tuple[str, int]], not_before_s: float | None = None
    ) -> None:
        """A hold that is not there may be on its way yet: a store that stalls reads what was given up after what came
        later on another connection. So it is looked for once more (``not_before_s``, monotonic)."""
        if not_before_s is not None and (left_s := not_before_s - monotonic()) > 0:
            self._releases.pause(left_s)
        pause_s = RELEASE_FIRST_S
        while True:
            try:
                emptied = self._ledger.tighten(tenant, hold_id, amounts)
            except LedgerUnavailable:
                if not self._releases.pause(pause_s):
                    return
                pause_s = min(2 * pause_s, RELEASE_MAX_S)
            else:
                break
        if not emptied and not_before_s is None:
            again_s = monotonic() + RELEASE_AGAIN_S
            self._releases.submit(lambda: self._empty(tenant, hold_id, amounts, again_s))


def _without_looking(outcome: HoldOutcome) -> Earlier | Crowded | None:
    """What was decided without a look at any budget."""
    short = next((state for state in outcome.slots if state.short), None)
    return outcome.earlier if short is None else Crowded(outcome, short)

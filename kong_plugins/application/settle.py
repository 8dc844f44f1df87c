"""Settlement: what a request really used goes into the ledger together with its billing event, once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from kong_plugins.application.ports import Background
from kong_plugins.application.posting import Poster
from kong_plugins.application.prompts import PromptsUnderWay
from kong_plugins.domain.attempts import AnswerKept
from kong_plugins.domain.budgets import TOKENS_MAX
from kong_plugins.domain.errors import CountUnavailable
from kong_plugins.domain.events import Admitted, Ending, billing_event, known_usage, reversal_event
from kong_plugins.domain.holds import Settlement, SettleOutcome
from kong_plugins.domain.usage import NO_USAGE, Evidence, Usage

_log = logging.getLogger(__name__)

CountText = Callable[[str, str], int]


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer for retries of its request, as ``Settlement`` takes it."""

    data: bytes = b""
    kept: AnswerKept = AnswerKept.NONE


NO_ANSWER = Answer()


class UnknownUsage(StrEnum):
    """What a request is charged that ran on the engine and of which nobody saw anything (an aborted whole answer)."""

    PROMPT = "prompt"  # its prompt, counted with the model's tokenizer
    HOLD = "hold"  # all that was held for it
    NONE = "none"


class UnknownUsagePolicy:
    """Decides what a request is charged whose usage the engine did not tell, or not to the end.

    Text that was seen is always charged: else a client would leave before each answer's only usage. What cannot be
    counted (no tokenizer, too long, its body forgotten) is charged at its bound, unless nothing is to be charged:
    else a client would choose what cannot be counted.
    """

    def __init__(self, charge: UnknownUsage, prompts: PromptsUnderWay, count_text: CountText) -> None:
        self._charge = charge
        self._prompts = prompts
        self._count_text = count_text

    def forget(self, admitted: Admitted) -> None:
        """There is nothing to decide."""
        self._prompts.take(admitted.hold_id)

    def decide(self, admitted: Admitted, ending: Ending) -> tuple[Usage, Evidence]:
        """Takes its time: a tokenizer may have to be built first."""
        prompt_bound, count_prompt = self._prompts.end(admitted.hold_id, admitted.prompt_bound)
        seen = ending.usage
        if seen is None and not ending.text_bytes:
            if self._charge is UnknownUsage.HOLD:
                return _within(prompt_bound, admitted.completion_bound), Evidence.HELD
            if self._charge is UnknownUsage.NONE:
                return NO_USAGE, Evidence.HELD
        prompt = seen.prompt if seen is not None else self._counted(admitted, count_prompt)
        text = self._counted(admitted, lambda: self._text_tokens(admitted.model, ending))
        evidence = Evidence.TOKENIZED
        if prompt is None:
            prompt, evidence = self._bound(prompt_bound), Evidence.HELD
        if text is None:
            text, evidence = self._bound(min(ending.text_bytes, admitted.completion_bound)), Evidence.HELD
        if seen is None:
            return _within(prompt, text), evidence
        return replace(_within(prompt, seen.completion + text), cached=seen.cached, reasoning=seen.reasoning), evidence

    def _counted(self, admitted: Admitted, count: Callable[[], int] | None) -> int | None:
        try:
            if count is None:
                raise CountUnavailable("its prompt is not known any more, or holds more than text")
            return count()
        except CountUnavailable as error:
            _log.warning("usage of %s was not seen and cannot be counted: %s", admitted.hold_id, error)
            return None

    def _text_tokens(self, model: str, ending: Ending) -> int:
        """Tokens of all generated text; where only its beginning was kept, the rest is taken to be like it."""
        if not ending.text_bytes:
            return 0
        kept = len((ending.text or "").encode("utf-8", "surrogateescape"))
        if not ending.text:
            raise CountUnavailable("its generated text was not kept")
        # The bound may have cut it within a character.
        text = ending.text.encode("utf-8", "replace").decode()
        return -(-self._count_text(model, text) * max(kept, ending.text_bytes) // kept)

    def _bound(self, tokens: int) -> int:
        return 0 if self._charge is UnknownUsage.NONE else tokens


def _within(prompt: int, completion: int) -> Usage:
    """A bound can be larger than what a ledger takes for one request."""
    prompt = min(prompt, TOKENS_MAX)
    return Usage(prompt, min(completion, TOKENS_MAX - prompt))


class Settling:
    """Settles by what the answer showed. Without a policy it leaves requests of unknown usage to a settler with one,
    which decides them in ``counts``: nobody waits for a count there."""

    def __init__(
        self,
        poster: Poster,
        policy: UnknownUsagePolicy | None = None,
        counts: Background | None = None,
    ) -> None:
        self._poster = poster
        self._policy = policy
        self._counts = counts

    def settle(self, admitted: Admitted, ending: Ending, answer: Answer = NO_ANSWER) -> SettleOutcome | None:
        """None when it was left alone, or when settling goes on in the background: usage is to be counted, or the
        ledger is out of reach and the settlement in the spool."""
        known = known_usage(ending)
        policy = self._policy
        if policy is None:
            return self._post(admitted, ending, answer, *known) if known is not None else None
        if known is not None:
            policy.forget(admitted)
            return self._post(admitted, ending, answer, *known)

        def decide() -> None:
            self._post(admitted, ending, answer, *policy.decide(admitted, ending))

        if self._counts is None or not self._counts.submit(decide):
            decide()
        return None

    def _post(
        self, admitted: Admitted, ending: Ending, answer: Answer, usage: Usage, evidence: Evidence
    ) -> SettleOutcome | None:
        event, registration = billing_event(admitted, ending, usage, evidence), admitted.registration
        if registration is not None:  # its hold, if it comes to no settlement after all, ends with what is known here
            registration = replace(registration, request=replace(registration.request, event=event))
        settlement = Settlement(
            admitted.tenant,
            admitted.hold_id,
            usage,
            evidence,
            event,
            outcome=ending.outcome(),
            reversal=reversal_event(admitted, ending, usage, evidence) if admitted.retriable else b"",
            answer=answer.data,
            kept=answer.kept,
            registration=registration,
        )
        return self._poster.settle(settlement)

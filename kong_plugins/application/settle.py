"""Settlement: what a request really used goes into the ledger together with its billing event, once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import StrEnum

from kong_plugins.application.ports import Background, Ledger, LedgerUnavailable
from kong_plugins.domain.errors import CountUnavailable
from kong_plugins.domain.events import Admitted, Ending, billing_event, known_usage
from kong_plugins.domain.holds import Settlement, SettleOutcome, SettleStatus
from kong_plugins.domain.usage import NO_USAGE, Evidence, Usage

_log = logging.getLogger(__name__)

RETRY_FIRST_S = 0.25
RETRY_MAX_S = 15.0  # A store that was down for minutes finds its first settlement within seconds of its return.

CountText = Callable[[str, str], int]


class UnknownUsage(StrEnum):
    """What a request is charged that ran on the engine and of which nobody saw any usage (an aborted whole answer)."""

    PROMPT = "prompt"  # its prompt, counted with the model's tokenizer
    HOLD = "hold"  # all that was held for it
    NONE = "none"


class UnknownUsagePolicy:
    """Decides what a request of unknown usage is charged."""

    def __init__(self, charge: UnknownUsage, count_text: CountText | None = None) -> None:
        self._charge = charge
        self._count_text = count_text

    def decide(
        self, admitted: Admitted, ending: Ending, count_prompt: Callable[[], int] | None
    ) -> tuple[Usage, Evidence]:
        if self._charge is UnknownUsage.HOLD:
            return Usage(admitted.prompt_bound, admitted.completion_bound), Evidence.HELD
        if self._charge is UnknownUsage.NONE or count_prompt is None:
            return NO_USAGE, Evidence.HELD
        completion = 0
        try:
            if ending.text and self._count_text is not None:
                completion = self._count_text(admitted.model, ending.text)
            return Usage(count_prompt(), completion), Evidence.TOKENIZED
        except CountUnavailable as error:
            _log.warning("usage of %s is not known and cannot be counted: %s", admitted.hold_id, error)
            return NO_USAGE, Evidence.HELD


class Settling:
    """Settles by what the answer showed. Without a policy it leaves requests of unknown usage to a settler with one."""

    def __init__(self, ledger: Ledger, background: Background, policy: UnknownUsagePolicy | None = None) -> None:
        self._ledger = ledger
        self._background = background
        self._policy = policy

    def settle(
        self, admitted: Admitted, ending: Ending, count_prompt: Callable[[], int] | None = None
    ) -> SettleOutcome | None:
        """None when it was left alone, or when the ledger is out of reach and settling goes on in the background."""
        known = known_usage(ending)
        if known is None and self._policy is not None:
            known = self._policy.decide(admitted, ending, count_prompt)
        if known is None:
            return None
        usage, evidence = known
        event = billing_event(admitted, ending, usage, evidence)
        settlement = Settlement(admitted.tenant, admitted.hold_id, usage, evidence, event)
        try:
            return self._settle(settlement)
        except LedgerUnavailable as error:
            _log.error("ledger out of reach, settling %s goes on in the background: %s", admitted.hold_id, error)
            if not self._background.submit(lambda: self._settle_until_done(settlement)):
                _log_lost(settlement, "the queue is full")
            return None

    def _settle(self, settlement: Settlement) -> SettleOutcome:
        outcome = self._ledger.settle(settlement)
        if outcome.status is SettleStatus.UNKNOWN:
            _log_lost(settlement, "the ledger does not know its hold")
        return outcome

    def _settle_until_done(self, settlement: Settlement) -> None:
        """Those behind it in the queue wait too: they would meet the same outage."""
        pause_s = RETRY_FIRST_S
        while True:
            try:
                self._settle(settlement)
            except LedgerUnavailable as error:
                if not self._background.pause(pause_s):
                    _log_lost(settlement, f"stopped before the ledger came back ({error})")
                    return
                pause_s = min(2 * pause_s, RETRY_MAX_S)
            else:
                return


def _log_lost(settlement: Settlement, why: str) -> None:
    """The event holds no secret, and the log is then the only place that has it."""
    _log.error("settlement %s not posted: %s; event: %s", settlement.hold_id, why, settlement.event.decode())

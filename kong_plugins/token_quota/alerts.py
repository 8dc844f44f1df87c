"""A log line when a soft or shadow budget is first gone over in its window."""

from __future__ import annotations

import logging
from collections import OrderedDict

from kong_plugins.application.admit import Held
from kong_plugins.domain.budgets import Mode
from kong_plugins.domain.refusals import timestamp

_log = logging.getLogger(__name__)

REMEMBERED = 10_000  # tenants x budgets; one forgotten too early costs a second line
REPEAT_US = 60_000_000  # Rolling windows and buckets have no end that marks the next line: once a minute then.


class Alerts:
    """Says each thing once: a tenant over its budget makes many requests."""

    def __init__(self) -> None:
        self._quiet_until_us: OrderedDict[tuple[str, str], int] = OrderedDict()

    def note(self, tenant: str, held: Held) -> int:
        """Log what is new. Returns how many lines that were."""
        lines = 0
        for planned, state in zip(held.planned, held.outcome.states, strict=True):
            mode = planned.line.mode
            if not state.short or mode is Mode.HARD:
                continue
            seen = (tenant, state.key)
            if held.outcome.now_us < self._quiet_until_us.get(seen, 0):
                continue
            self._quiet_until_us[seen] = max(state.reset_us, held.outcome.now_us + REPEAT_US)
            self._quiet_until_us.move_to_end(seen)
            if len(self._quiet_until_us) > REMEMBERED:
                self._quiet_until_us.popitem(last=False)
            lines += 1
            _log.warning(
                "tenant %r is over its %s budget %r: %d of %d %s used or held, asked for %d more; resets at %s",
                tenant,
                mode.value,
                state.key,
                state.committed + state.held,
                state.limit,
                planned.rule.counts.unit,
                planned.line.amount,
                timestamp(state.reset_us),
            )
        return lines

"""The plugin as Kong calls it: log only, one PDK call.

What token-quota let through it settles as token-quota does, and writes the same event, so that a request has its one
event if either process lives; the ledger keeps the first and drops the second. What needs a policy (usage that nobody
saw) is token-quota's, and nothing of this row's configuration changes such an event: both must write the same.

Requests that token-quota knows nothing of (routes without it, denials) have their events from here alone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from kong_plugins.adapters.kong_request import TAP, About, answer_kept, read_about, read_tap
from kong_plugins.adapters.process_parts import ProcessParts, process_parts
from kong_plugins.application.ports import LedgerUnavailable, Recording
from kong_plugins.application.settle import Settling
from kong_plugins.billing_events.schema import SCHEMA, BillingConfig, Denial, parse_config
from kong_plugins.domain.attempts import AnswerKept
from kong_plugins.domain.events import CLIENT_CLOSED, FIRST_ERROR, Admitted, Ending, billing_event, usage_without_budget
from kong_plugins.domain.holds import Outcome
from kong_plugins.domain.usage import NO_USAGE, Evidence

__all__ = ["NAME", "ON_ERROR", "PRIORITY", "PROTOCOLS", "SCHEMA", "VERSION", "Plugin"]

NAME = "billing-events"
VERSION = "0.1.0"
PRIORITY = 13
PROTOCOLS = ("grpc", "grpcs", "http", "https")  # Kong's default; not told of it decK finds every row changed
ON_ERROR = "open"  # The request is over when this runs.

ANONYMOUS = "anonymous"  # the tenant of requests that nobody was authenticated for
_UNAUTHENTICATED = frozenset((401, 403))
_TOO_MANY = 429

_log = logging.getLogger(__name__)


class Plugin:
    """One configured row.

    Raises:
        ValueError: there is no ledger, or a field is wrong.
    """

    def __init__(self, config: Mapping[str, Any], parts: ProcessParts | None = None) -> None:
        self._config: BillingConfig = parse_config(config)
        self._parts = parts or process_parts()
        self._parts.join()
        try:
            where = self._config.ledger_url, self._config.ledger_timeout_s
            self._ledger, self._poster = self._parts.ledger(*where), self._parts.poster(*where)
        except BaseException:
            self._parts.leave()
            raise
        self._settling = Settling(self._poster)
        self._dropped = 0

    def log(self, kong: Any) -> None:
        """Settle what the tap saw of an admitted request; record what it saw of any other."""
        table = kong.ctx.shared.get(TAP)
        seen = read_tap(table)
        if seen is None:
            return
        admitted, ending = seen
        if admitted is not None:
            if admitted.retriable and answer_kept(table) is AnswerKept.KEPT:
                # token-quota hands the answer in with its own settlement. A retry between a settlement without it and
                # that one would find nothing to replay, and be generated anew.
                self._parts.later.submit(lambda: self._settle(admitted, ending))
            else:
                self._settle(admitted, ending)
            return
        about = read_about(table)
        if about is not None:
            self._record(about, ending)

    def _settle(self, admitted: Admitted, ending: Ending) -> None:
        self._settling.settle(admitted, ending)

    def close(self) -> None:
        """The row is gone; the last row of a process drains what is still to be settled."""
        self._parts.leave()

    def _record(self, about: About, ending: Ending) -> None:
        """The event of a request that token-quota did not let through: as this row says, and by nobody else."""
        tenant = about.consumer.name if about.consumer else ANONYMOUS
        route = (about.route.name, about.route.id) if about.route else ()
        if self._config.leaves_out(tenant, *route):
            return
        denial = denial_of(ending)
        if denial is None:
            found = usage_without_budget(ending)
            if found is not None:
                event = billing_event(self._about(about, tenant), ending, *found)
                self._poster.record(Recording(tenant, about.request_id, event))
        elif denial in self._config.record_denials:
            event = billing_event(self._about(about, tenant), ending, NO_USAGE, Evidence.EXACT, Outcome.DENIED)
            self._record_denial(Recording(tenant, about.request_id, event))

    def _record_denial(self, recording: Recording) -> None:
        def write() -> None:
            try:
                self._ledger.record(recording.tenant, recording.event_id, recording.event)
            except LedgerUnavailable as error:
                self._drop(f"the ledger is out of reach ({error})")

        if not self._parts.records.submit(write):
            self._drop("too many are waiting")

    def _drop(self, why: str) -> None:
        self._dropped += 1
        if self._dropped & (self._dropped - 1) == 0:  # a flood of refusals must not become one of log lines
            _log.warning("%d events of denied requests were dropped so far: %s", self._dropped, why)

    def _about(self, about: About, tenant: str) -> Admitted:
        config = self._config
        attributes = {name: about.claims[name] for name in config.event_claims if name in about.claims}
        attributes |= {name: about.headers[name] for name in config.event_headers if name in about.headers}
        return Admitted(
            hold_id=about.request_id,
            tenant=tenant,
            model=about.model or "",
            source=config.event_source,
            prompt_bound=0,
            completion_bound=0,
            credential=about.credential,
            consumer=about.consumer.name if about.consumer else None,
            service=about.service.name if about.service else None,
            route=about.route.name if about.route else None,
            attributes=attributes,
        )


def denial_of(ending: Ending) -> Denial | None:
    """What Kong refused by itself. None: it went to an engine, was answered by a plugin in its place, or its client
    left before anything was decided."""
    if ending.source != "exit" or ending.status < FIRST_ERROR or ending.status == CLIENT_CLOSED:
        return None
    if ending.status in _UNAUTHENTICATED:
        return Denial.UNAUTHENTICATED
    return Denial.OVER_BUDGET if ending.status == _TOO_MANY else Denial.REFUSED

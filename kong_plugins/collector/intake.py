"""What is posted to the collector goes into the ledger's outbox: by the same operations as the plugins', so that an
event is one whoever brings it, and how often."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import cast

from kong_plugins.adapters.event_records import NotAnEvent, RequestEvent, read_event
from kong_plugins.adapters.kong_log import Ended, Skipped, read_record
from kong_plugins.application.ports import Ledger
from kong_plugins.application.posting import Poster
from kong_plugins.application.settle import Settling
from kong_plugins.domain.events import Admitted, Ending, billing_event, known_usage, reversal_event
from kong_plugins.domain.holds import Outcome, Settlement, SettleOutcome, SettleStatus
from kong_plugins.domain.usage import NO_USAGE, Evidence, Usage

_log = logging.getLogger(__name__)

EVENT_BYTES_MAX = 64 * 1024
NAME_CHARS_MAX = 256


class Taken(StrEnum):
    """What became of a record or an event. After each of these it needs nobody to send it again."""

    NEW = "new"
    REPEATED = "repeated"  # its request has its event already
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class Verdict:
    """``reason``: why it was rejected."""

    event_id: str
    taken: Taken
    reason: str = ""


class Intake:
    """Threads may share it.

    Raises:
        LedgerUnavailable: from ``records`` and ``events``: send all of them again, which does no harm.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._settling = Settling(cast(Poster, _AtOnce(ledger)))  # it asks a poster for nothing but to settle

    def records(self, records: Iterable[object]) -> Counter[str]:
        """Records of Kong's log serializer. Returns how many there were of each ``Taken`` or ``Skipped``. None is
        refused: Kong would send the whole batch again and again, and then drop it."""
        counts: Counter[str] = Counter()
        for record in records:
            counts[self._record(record)] += 1
        return counts

    def events(self, events: Sequence[bytes]) -> list[Verdict]:
        """CloudEvents, each a JSON object on one line."""
        return [self._event(event) for event in events]

    def _record(self, record: object) -> Taken | Skipped:
        try:
            said = read_record(record)
            if isinstance(said, Skipped):
                return said
            if isinstance(said, Ended):
                usage, evidence = known_usage(said.ending) or (NO_USAGE, Evidence.HELD)
                if not _bookable(said.admitted, billing_event(said.admitted, said.ending, usage, evidence)):
                    return Skipped.MALFORMED
                outcome = self._settling.settle(said.admitted, said.ending)
                if outcome is None:
                    return Skipped.USAGE_UNKNOWN
                return Taken.REPEATED if outcome.status is SettleStatus.REPEATED else Taken.NEW
            admitted = said.admitted
            event = billing_event(admitted, said.ending, said.usage, said.evidence, said.outcome)
            if not _bookable(admitted, event):
                return Skipped.MALFORMED
        except (ValueError, OverflowError) as error:  # counts or times that cannot be
            _log.warning("a log record says what cannot be: %r", str(error))
            return Skipped.MALFORMED
        return self._recorded(admitted.tenant, admitted.hold_id, event)

    def _recorded(self, tenant: str, event_id: str, event: bytes) -> Taken:
        return Taken.NEW if self._ledger.record(tenant, event_id, event) else Taken.REPEATED

    def _event(self, event: bytes) -> Verdict:
        try:
            read = read_event(event)
            if not _fits(read.id, read.data.tenant, event):
                raise NotAnEvent(
                    f"an event has at most {EVENT_BYTES_MAX} bytes, its id and tenant {NAME_CHARS_MAX} characters"
                )
            settlement = _settlement(read, event) if isinstance(read, RequestEvent) else None
        except ValueError as error:
            return Verdict(_id_of(event), Taken.REJECTED, str(error))
        if settlement is not None:
            status = self._ledger.settle(settlement).status
            if status is not SettleStatus.UNKNOWN:
                return Verdict(read.id, Taken.NEW if status is SettleStatus.POSTED else Taken.REPEATED)
        return Verdict(read.id, self._recorded(read.data.tenant, read.id, event))


def _settlement(read: RequestEvent, event: bytes) -> Settlement | None:
    """Whoever measured a request may bring the end of its hold; one that measured nothing leaves the hold alone."""
    data = read.data
    evidence = Evidence(data.evidence)
    if evidence is Evidence.HELD:
        return None
    usage = Usage(data.prompt, data.completion, data.cached, data.reasoning)
    admitted = Admitted(
        hold_id=read.id,
        tenant=data.tenant,
        model=data.model,
        source=read.source,
        prompt_bound=0,
        completion_bound=0,
        credential=data.credential,
        consumer=data.consumer,
        service=data.service,
        route=data.route,
    )
    ended_ms = round(read.time.timestamp() * 1000)
    reversal = reversal_event(admitted, Ending(endpoint=data.endpoint, last_ms=ended_ms), usage, evidence)
    outcome = Outcome(data.outcome)
    return Settlement(data.tenant, read.id, usage, evidence, event, outcome=outcome, reversal=reversal)


def _bookable(admitted: Admitted, event: bytes) -> bool:
    """What is in the outbox is taken by every sink, or it is a dead letter in each.

    Raises:
        NotAnEvent: no reader would take it.
    """
    read_event(event)
    return _fits(admitted.hold_id, admitted.tenant, event)


def _fits(event_id: str, tenant: str, event: bytes) -> bool:
    return len(event) <= EVENT_BYTES_MAX and len(event_id) <= NAME_CHARS_MAX and len(tenant) <= NAME_CHARS_MAX


def _id_of(event: bytes) -> str:
    """For the answer only: whatever stands where the id belongs."""
    import msgspec

    try:
        found = msgspec.json.decode(event)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    value = found.get("id") if isinstance(found, dict) else None
    return value[:NAME_CHARS_MAX] if isinstance(value, str) else ""


class _AtOnce:
    """Posts now or says so: what the ledger cannot take, its sender keeps."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def settle(self, settlement: Settlement) -> SettleOutcome:
        """Where the ledger has lost or forgotten the hold, the books have the event at least, as with the plugins."""
        outcome = self._ledger.settle(settlement)
        if outcome.status is SettleStatus.UNKNOWN:
            self._ledger.record(settlement.tenant, settlement.hold_id, settlement.event)
        return outcome

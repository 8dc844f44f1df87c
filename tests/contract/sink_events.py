"""Outbox entries for the sinks' tests, each a function of its number."""

from __future__ import annotations

import json
from dataclasses import dataclass

from kong_plugins.application.ports import OutboxEntry
from kong_plugins.domain.events import ADJUSTMENT_TYPE, Admitted, Ending, billing_event, reversal_event
from kong_plugins.domain.usage import Evidence, Usage

NOON_MS = 1_795_003_200_000
SOURCE = "node-1"
POSTED = (("daily", 285), ("monthly|model=deepseek-r1", 285))


@dataclass(frozen=True, order=True)
class Booked:
    """What a store has of an event, as far as every store can tell it. Counts are signed."""

    event_id: str
    kind: str
    tenant: str
    prompt: int
    completion: int
    amount: int | None = None


def usage(number: int) -> Usage:
    return Usage(200 + number, 40 + number % 7, number % 200, number % 3)


def admitted(number: int, **other: object) -> Admitted:
    values = {"hold_id": f"request-{number:07}", "tenant": f"tenant_{number % 5}", "model": "deepseek-r1"}
    values |= {"source": SOURCE, "prompt_bound": 4000, "completion_bound": 512, "budgets": ("daily",)}
    return Admitted(**values | {"attributes": {"team": "blue"}} | other)


def ending(number: int) -> Ending:
    started = NOON_MS + number * 10
    return Ending(
        endpoint="chat",
        stream=True,
        usage=usage(number),
        evidence=Evidence.EXACT,
        finish="stop",
        ended=True,
        status=200,
        upstream_status="200",
        source="service",
        started_ms=started,
        first_ms=started + 3,
        last_ms=started + 7,
    )


def request(number: int, **other: object) -> OutboxEntry:
    who = admitted(number, **other)
    event = billing_event(who, ending(number), usage(number), Evidence.EXACT)
    return OutboxEntry(f"{NOON_MS}-{number}", who.hold_id, event, POSTED)


def reversal(number: int) -> OutboxEntry:
    event = reversal_event(admitted(number), ending(number), usage(number), Evidence.EXACT)
    return OutboxEntry(f"{NOON_MS + 1}-{number}", f"reversal:request-{number:07}", event, (("daily", -285),))


def adjustment(number: int, amount: int) -> OutboxEntry:
    data = {"schema": 1, "tenant": "tenant_1", "kind": "credit", "amount": amount, "currency": "EUR"}
    data |= {"account": "goodwill", "reason": "incident of Tuesday"}
    event = {"specversion": "1.0", "id": f"credit-{number}", "source": "operator", "type": ADJUSTMENT_TYPE}
    event |= {"subject": "tenant_1", "time": "2026-11-18T12:00:00.000Z", "data": data}
    return OutboxEntry(f"{NOON_MS + 2}-{number}", f"credit-{number}", json.dumps(event).encode(), ())


def edited(entry: OutboxEntry, **changes: object) -> OutboxEntry:
    """With other values in its event: those of ``data`` by their names, others with an underscore before."""
    event = json.loads(entry.event)
    for name, value in changes.items():
        if name.startswith("_"):
            event[name[1:]] = value
        else:
            event["data"][name] = value
    return OutboxEntry(entry.position, entry.event_id, json.dumps(event).encode(), entry.posted)


def booked_request(number: int) -> Booked:
    used = usage(number)
    return Booked(f"request-{number:07}", "request", f"tenant_{number % 5}", used.prompt, used.completion)

"""What tests of the collector share: a real Valkey, events as the ledger writes them, a sink of plain files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import redis

from kong_plugins.adapters.ledger import connect_ledger
from kong_plugins.application.ports import OutboxEntry, Rejected, SinkUnavailable
from kong_plugins.domain.events import Admitted, Ending, billing_event
from kong_plugins.domain.usage import Evidence, Usage


def event_of(event_id: str, tenant: str, prompt: int = 1200, completion: int = 380) -> bytes:
    """A billing event as token-quota writes it."""
    admitted = Admitted(
        hold_id=event_id,
        tenant=tenant,
        model="deepseek-r1",
        source="kong-token-quota/gateway-1",
        prompt_bound=4 * prompt,
        completion_bound=1024,
        credential="0123456789abcdef",
        consumer=tenant,
        service="deepseek-r1",
        route="v1",
        budgets=("daily", "monthly"),
        attributes={"project": "search", "cost-center": "4711"},
    )
    ending = Ending(
        endpoint="chat",
        stream=True,
        finish="stop",
        ended=True,
        engine_id=f"chatcmpl-{event_id}",
        status=200,
        upstream_status="200",
        source="service",
        started_ms=1763830000000,
        first_ms=1763830000180,
        last_ms=1763830009400,
        proxy_ms=175,
    )
    return billing_event(admitted, ending, Usage(prompt, completion), Evidence.EXACT)


def fill(url: str, count: int, *, tenants: int = 20, prefix: str = "e") -> list[str]:
    """Record ``count`` events through the ledger, tenant by tenant in turn. Returns their ids in that order."""
    ledger = connect_ledger(url, timeout_s=10)
    ids = []
    for number in range(count):
        tenant, event_id = f"tenant-{number % tenants}", f"{prefix}-{number:06}"
        assert ledger.record(tenant, event_id, event_of(event_id, tenant))
        ids.append(event_id)
    ledger.close()
    return ids


class Lines:
    """A sink of one JSON line an event: the reader of the file drops repeated ids. What is in ``away`` while it exists
    makes it unavailable; an event id in ``refuse`` is rejected."""

    def __init__(self, path: Path, *, away: Path | None = None, refuse: frozenset[str] = frozenset()) -> None:
        self._path = path
        self._away = away
        self._refuse = refuse
        self.largest = 0

    def write(self, entries: Sequence[OutboxEntry]) -> tuple[Rejected, ...]:
        if self._away is not None and self._away.exists():
            raise SinkUnavailable(f"{self._away} is in the way")
        self.largest = max(self.largest, len(entries))
        rejected = tuple(Rejected(each, "refused by the test") for each in entries if each.event_id in self._refuse)
        with self._path.open("ab") as lines:
            for each in entries:
                if each.event_id not in self._refuse:
                    lines.write(each.event + b"\n")
            lines.flush()
            os.fsync(lines.fileno())
        return rejected

    def close(self) -> None:
        """Nothing is open."""


def lines_in(path: Path) -> list[str]:
    """Event ids as written, in order, repeats and all."""
    if not path.exists():
        return []
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]


def outbox_lengths(client: redis.Redis) -> Iterator[int]:
    for partition in range(64):
        yield client.xlen(f"{{p{partition}}}:outbox")

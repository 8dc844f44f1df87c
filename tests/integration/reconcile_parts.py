"""A small world for reconciliation: real ledger, engine stand-in, books, and requests that do as they are told."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx2 as httpx

from kong_plugins.adapters.books import open_books
from kong_plugins.adapters.books.engine_counts import store_scrapes
from kong_plugins.adapters.engine_metrics import EngineScraper
from kong_plugins.adapters.ledger import RedisLedger, connect_ledger
from kong_plugins.adapters.sinks.duckdb_sink import DuckDBSink
from kong_plugins.application.books import read_events
from kong_plugins.application.ports import OutboxEntry
from kong_plugins.application.reconcile_events import Pace
from kong_plugins.cli.processes import free_port
from kong_plugins.cli.reconcile_run import Options, Result, reconcile
from kong_plugins.domain.attempts import Attempt
from kong_plugins.domain.budgets import TOTAL
from kong_plugins.domain.events import Admitted, Ending, billing_event, reversal_event
from kong_plugins.domain.holds import HoldRequest, Line, Outcome, Settlement
from kong_plugins.domain.periods import Period
from kong_plugins.domain.usage import NO_USAGE, Evidence, Usage
from kong_plugins.domain.windows import FixedWindow, Unit

MODEL = "deepseek-r1"
HOUR_MS = 3_600_000
MONTH = FixedWindow(Unit.MONTH)
MESSAGES = [{"role": "user", "content": "How many tokens are left?"}]
Entries = Callable[[list[OutboxEntry]], Iterable[OutboxEntry]]


class Engine:
    """The stand-in as a process of its own, so that it can die and come back."""

    def __init__(self, *flags: str) -> None:
        self.port = free_port()
        self.root = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(timeout=30)
        self._flags = flags
        self.start()

    def start(self) -> None:
        argv = [sys.executable, "-m", "kong_plugins.engine_sim", "--port", str(self.port), *self._flags]
        self._process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while True:
            try:
                urllib.request.urlopen(f"{self.root}/health", timeout=1).close()
            except OSError:
                assert time.monotonic() < deadline, "the engine does not answer"
                time.sleep(0.02)
            else:
                return

    def restart(self) -> None:
        self.stop()
        self.start()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait(10)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def let_pass(milliseconds: int = 2) -> None:
    """Events are told apart from scrapes by the millisecond."""
    until = now_ms() + milliseconds
    while now_ms() <= until:
        time.sleep(0.0005)


@dataclass
class World:
    ledger_url: str
    engine: Engine
    books: Path
    started_ms: int = field(default_factory=now_ms)

    def __post_init__(self) -> None:
        self.ledger: RedisLedger = connect_ledger(self.ledger_url, timeout_s=5, grace_us=1000)
        open_books(self.books, read_only=False).close()

    def ask(
        self,
        event_id: str,
        *,
        tenant: str = "tenant",
        choices: int = 1,
        leave_after: int | None = None,
        attempt: Attempt | None = None,
        ttl_us: int = HOUR_MS * 1000,
        settle: bool = True,
    ) -> None:
        """Hold, generate, settle. ``leave_after``: chunks until the client leaves. Without ``settle``: nobody tells how
        it ended."""
        started_ms = now_ms()
        admitted = Admitted(
            event_id, tenant, MODEL, "test", 64, 64 * choices, budgets=("monthly",), choices=choices,
            retriable=attempt is not None,
        )  # fmt: skip
        line = Line("monthly", MONTH, TOTAL, 10**9, 64 + 64 * choices)
        expiry = billing_event(
            admitted, Ending("chat", started_ms=started_ms), NO_USAGE, Evidence.HELD, Outcome.EXPIRED
        )
        held = self.ledger.hold(HoldRequest(tenant, event_id, (line,), ttl_us, expiry, attempt))
        assert held.admitted
        usage, evidence, engine_id = self._generate(choices, leave_after)
        ending = Ending(
            "chat", leave_after is not None, usage, evidence, finish="stop", ended=leave_after is None,
            engine_id=engine_id, status=200, source="service", started_ms=started_ms, first_ms=started_ms + 1,
            last_ms=now_ms(),
        )  # fmt: skip
        let_pass()
        if settle:
            event = billing_event(admitted, ending, usage, evidence)
            taken_back = reversal_event(admitted, ending, usage, evidence) if attempt else b""
            self.ledger.settle(
                Settlement(tenant, event_id, usage, evidence, event, ending.outcome(), reversal=taken_back)
            )

    def _generate(self, choices: int, leave_after: int | None) -> tuple[Usage, Evidence, str]:
        body: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, "max_tokens": 40, "n": choices}
        url = f"{self.engine.root}/v1/chat/completions"
        if leave_after is None:
            answer = self.engine.http.post(url, json=body).raise_for_status().json()
            return _usage(answer["usage"]), Evidence.EXACT, answer["id"]
        body |= {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
        with self.engine.http.stream("POST", url, json=body) as stream:
            for number, line in enumerate(each for each in stream.iter_lines() if each.startswith("data: ")):
                last = json.loads(line[6:])
                if number == leave_after:
                    break
        return _usage(last["usage"]), Evidence.CONTINUOUS, last["id"]

    def past_the_gateway(self) -> Usage:
        usage, _, _ = self._generate(1, None)
        let_pass()
        return usage

    def entries(self) -> list[OutboxEntry]:
        return list(read_events(self.ledger))

    def deliver(self, change: Entries = lambda entries: entries) -> None:
        """Everything in the outbox into the books, as ``change`` would have it."""
        sink = DuckDBSink(self.books)
        try:
            assert not sink.write(list(change(self.entries())))
        finally:
            sink.close()

    def scrape(self) -> None:
        """Into the books, as the collector does; once the engine has come to rest."""
        deadline = time.monotonic() + 10
        scraper = EngineScraper(self.engine.root)
        while True:
            found = scraper.scrape(time.time_ns() // 1000)
            if not any(each.running for each in found):
                break
            assert time.monotonic() < deadline, "the engine still generates"
        assert found, scraper.failures
        let_pass()
        with open_books(self.books, read_only=False) as connection:
            store_scrapes(connection, [replace(each, at_us=time.time_ns() // 1000) for each in found])
        let_pass()

    def reconcile(self, **options: Any) -> Result:
        period = Period("test", "UTC", self.started_ms, self.started_ms + HOUR_MS, ())
        given = {"ledger_url": self.ledger_url, "slack_us": 0, "pace": Pace(1000), "pace_given": True, **options}
        return reconcile(Options(period, self.books, **given), lambda _: None)


def changed(entry: OutboxEntry, event_id: str | None = None, **data: object) -> OutboxEntry:
    """The entry under another id, or with other data."""
    event = json.loads(entry.event)
    event["id"] = event_id or event["id"]
    event["data"].update(data)
    return replace(entry, event_id=event["id"], event=json.dumps(event).encode())


def _usage(told: dict[str, int]) -> Usage:
    return Usage(told["prompt_tokens"], told["completion_tokens"])

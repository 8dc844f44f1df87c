"""Every way that a request can end, on one running stack, followed to the tenant's invoice line and to `reconcile`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import yaml

from kong_plugins.adapters.books import open_books
from kong_plugins.adapters.ledger import EmbeddedValkey, connect_ledger
from kong_plugins.adapters.ledger.audit import connect_audit
from kong_plugins.cli.stack import Gateway, Stack, StackOptions, default_config, start_stack
from kong_plugins.domain.budgets import TOTAL
from kong_plugins.domain.events import Admitted, Ending, billing_event
from kong_plugins.domain.holds import HoldRequest, Line, Outcome
from kong_plugins.domain.usage import NO_USAGE, Evidence
from kong_plugins.domain.windows import FixedWindow, Unit

MODEL = "deepseek-r1"
WAIT_S = 30.0
BUDGET = {"name": "monthly", "limit": 50_000_000, "window": "month"}
TENANTS: dict[str, dict[str, Any]] = {
    "acme": {"budgets": [BUDGET]},
    "tiny": {"budgets": [{"name": "monthly", "limit": 5, "window": "month"}], "record_denials": True},
}
PRICES = """
currency: EUR
models:
  deepseek-r1:
    - {from: 2025-01-01, prompt: "0.55", cached: "0.14", completion: "2.19", reasoning: "3.00", request: "0.001"}
"""
TOKEN = "correct-horse-battery"
BODY = {"model": MODEL, "max_tokens": 40, "messages": [{"role": "user", "content": "How many are left? " * 40}]}
STALLS_AFTER = 10  # tokens


def price(usage: dict[str, Any]) -> int:
    """Micro-units of one request, by the list above: rounded up once, and the price of a request."""
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    reasoning = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens", 0)
    uncached, plain = usage["prompt_tokens"] - cached, usage["completion_tokens"] - reasoning
    return -(-(55 * uncached + 14 * cached + 219 * plain + 300 * reasoning) // 100) + 1000


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + WAIT_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"in {WAIT_S} s not: {what}"
        time.sleep(0.02)
    return found


@dataclass
class Client:
    """``id``: of the request, as the answer's header says it. ``usage``: what its last chunk said."""

    lines: Iterator[str]
    id: str
    usage: dict[str, Any] = field(default_factory=dict)

    def read(self, tokens: int | None = None) -> None:
        """To the end, or until so many tokens of the answer have come."""
        for line in self.lines:
            if line.startswith("data: {"):
                self.usage = json.loads(line[6:]).get("usage") or self.usage
            if tokens is not None and self.usage and self.usage["completion_tokens"] >= tokens:
                return


@dataclass
class World:
    stack: Stack
    valkey: EmbeddedValkey
    directory: Path
    http: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=30))

    def ask(self, tenant: str, **headers: str) -> httpx.Response:
        key = self.stack.keys[f"DECK_{tenant.upper()}_KEY"]
        return self.http.post(self.url, json=BODY, headers={"apikey": key, **headers})

    @contextmanager
    def stream(self, tenant: str, **headers: str) -> Iterator[Client]:
        headers = {"apikey": self.stack.keys[f"DECK_{tenant.upper()}_KEY"], **headers}
        body = BODY | {
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        with self.http.stream("POST", self.url, json=body, headers=headers) as answer:
            assert answer.status_code == 200, answer.read()
            yield Client(answer.iter_lines(), answer.headers["x-request-id"])

    def left_early(self, tenant: str, **headers: str) -> Client:
        """The engine stalls, its client leaves: what it saw is all that was generated."""
        self.faults(hang_after_tokens=STALLS_AFTER, requests=1)
        with self.stream(tenant, **headers) as client:
            client.read(STALLS_AFTER)
        self.settled(client.id)
        return client

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Answers last, token by token, until the end of the block."""
        self.faults(token_delay_ms=1000.0)
        yield
        self.faults(token_delay_ms=None)

    def faults(self, **faults: Any) -> None:
        self.http.post(f"{self.stack.engine_root}/sim/faults", json=faults).raise_for_status()

    def settled(self, request_id: str) -> None:
        wait_for(lambda: request_id not in self.held(), f"{request_id} is settled")

    def held(self) -> set[str]:
        audit = connect_audit(self.stack.ledger_url)
        try:
            return {hold.hold_id for hold in audit.open_holds()}
        finally:
            audit.close()

    def kill(self, name: str) -> None:
        child = next(child for child in self.stack.processes.children if child.name == name)
        child.process.send_signal(signal.SIGKILL)
        child.process.wait()

    def post_log(self, records: list[dict[str, Any]]) -> Any:
        """As Kong's http-log does; what became of them."""
        child = next(child for child in self.stack.processes.children if child.name == "collector")
        argv = list(map(str, child.process.args))  # type: ignore[arg-type]
        address = argv[argv.index("--listen") + 1]
        headers = {"Authorization": f"Bearer {TOKEN}"}
        return self.http.post(f"http://{address}/log", json=records, headers=headers).raise_for_status().json()

    def rows(self) -> dict[str, dict[str, Any]]:
        with open_books(self.directory / "books.duckdb", read_only=True, wait_s=WAIT_S) as books:
            found = books.execute("SELECT * FROM events")
            names = [column[0] for column in found.description]
            return {row[0]: dict(zip(names, row, strict=True)) for row in found.fetchall()}

    def command(self, *arguments: str) -> tuple[int, Any]:
        """A command of the operator's, as a process. Returns its status and the JSON that it printed."""
        argv = [sys.executable, "-m", "kong_plugins.cli", *arguments]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    @property
    def url(self) -> str:
        return f"{self.stack.url}/v1/chat/completions"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("invoice")
    config = yaml.safe_load(default_config().read_text())
    for plugin in config["services"][0]["plugins"]:
        if plugin["name"] == "billing-events":
            plugin["config"] = {"record_denials": ["unauthenticated"]}
    config["consumers"] = [
        {
            "username": tenant,
            "keyauth_credentials": [{"key": f'${{{{ env "DECK_{tenant.upper()}_KEY" }}}}'}],
            "plugins": [{"name": "token-quota", "config": {**settings, "context_tokens": 8192}}],
        }
        for tenant, settings in TENANTS.items()
    ]
    (directory / "kong.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (directory / "prices.yaml").write_text(PRICES)
    with ExitStack() as resources:
        environment = resources.enter_context(pytest.MonkeyPatch.context())
        environment.setenv("TOKEN_QUOTA_SPOOL_DIR", str(directory / "spool"))
        environment.setenv("TOKEN_QUOTA_COLLECTOR_TOKEN", TOKEN)
        for tenant in TENANTS:
            environment.setenv(f"DECK_{tenant.upper()}_KEY", f"sk-{uuid.uuid4().hex}")
        valkey = resources.enter_context(EmbeddedValkey(directory / "ledger"))
        options = StackOptions(
            config=directory / "kong.yaml",
            gateway=Gateway.LOCAL,
            port=0,
            data_dir=directory,
            ledger_url=valkey.url,
            collect=True,
            collector_args=("--linger-ms", "20"),
        )
        yield World(start_stack(options, resources, print), valkey, directory)


def expired(world: World, request_id: str) -> dict[str, Any]:
    """A request of a tenant of its own whose gateway was never heard of again: the engine ran it, its hold lapsed.
    Returns what it used."""
    line = Line("monthly", FixedWindow(Unit.MONTH), TOTAL, 10**6, 200)
    admitted = Admitted(request_id, "ghost", MODEL, "test", 100, 100, budgets=("monthly",))
    at_ms = time.time_ns() // 1_000_000
    event = billing_event(admitted, Ending("chat", started_ms=at_ms), NO_USAGE, Evidence.HELD, Outcome.EXPIRED)
    ledger = connect_ledger(world.stack.ledger_url, grace_us=1000)
    assert ledger.hold(HoldRequest("ghost", request_id, (line,), 1000, event)).admitted
    answer = world.http.post(f"{world.stack.upstream_url}/chat/completions", json=BODY).raise_for_status()
    wait_for(ledger.expire, "the hold expires")  # as plugin servers do, every half minute
    ledger.close()
    usage: dict[str, Any] = answer.json()["usage"]
    return usage


def log_record(client: Client) -> dict[str, Any]:
    """What Kong's http-log posts of a request, with the tap's table."""
    now_ms = time.time_ns() // 1_000_000
    return {
        "request": {"id": client.id},
        "response": {"status": 200},
        "consumer": {"id": "1", "username": "acme"},
        "started_at": now_ms,
        "usage_tap": {
            "v": 1,
            "request_id": client.id,
            "log": {
                "hold": client.id,
                "tenant": "acme",
                "model": MODEL,
                "source": "/kong/test",
                "bound": [400, 40],
                "budgets": ["monthly"],
            },
            "endpoint": "chat",
            "stream": True,
            "text_bytes": 0,
            "usage": {
                "prompt": client.usage["prompt_tokens"],
                "completion": client.usage["completion_tokens"],
                "cached": (client.usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0),
                "reasoning": (client.usage.get("completion_tokens_details") or {}).get("reasoning_tokens", 0),
            },
            "evidence": "exact",
            "finish": "stop",
            "status": 200,
            "source": "service",
            "started_ms": now_ms,
            "last_ms": now_ms,
            "ended": True,
        },
    }


@pytest.mark.slow
def test_every_end_of_a_request_is_one_line_of_the_invoice_or_none_and_is_explained(world: World) -> None:
    """Whole, aborted, retried with a reversal, replayed, refused, unauthenticated, spooled through an outage of the
    ledger, expired, settled by its log record, still held, and a credit twice: what the tenant owes is what its clients
    saw, to the micro-unit, and `reconcile` explains every token between books, counters and engine by event ids."""
    owed: dict[str, dict[str, Any]] = {}  # usage by id of what acme is to pay
    whole = world.ask("acme")
    owed[whole.headers["x-request-id"]] = whole.json()["usage"]

    aborted = world.left_early("acme")
    owed[aborted.id] = aborted.usage

    keyed = {"Idempotency-Key": uuid.uuid4().hex}
    first = world.left_early("acme", **keyed)
    with world.stream("acme", **keyed) as retried:
        retried.read()
    owed[retried.id] = retried.usage
    world.settled(retried.id)
    with world.stream("acme", **keyed) as replayed:
        replayed.read()
    assert (replayed.usage, replayed.id in {first.id, retried.id}) == (retried.usage, False)

    refused = world.ask("tiny")
    assert refused.status_code == 429
    anonymous = world.http.post(world.url, json=BODY)
    assert anonymous.status_code == 401

    with ExitStack() as open_until:
        with world.under_way():
            spooled = open_until.enter_context(world.stream("acme"))
            spooled.read(1)
            world.valkey.stop()
        spooled.read()
    show = ("spool", "show", "--dir", str(world.directory / "spool"), "--json")
    wait_for(lambda: any(each["waiting"] for each in world.command(*show)[1]), "it waits in the spool")
    world.valkey.start()
    owed[spooled.id] = spooled.usage
    world.settled(spooled.id)

    unheard = expired(world, "expired-1")

    for _ in range(2):
        status, said = world.command(
            *("credit", "acme", "0.0005", "--currency", "EUR", "--reason", "incident", "--id", "case-1", "--json"),
            *("--ledger", world.stack.ledger_url),
        )
        assert status == 0, said

    with ExitStack() as open_until:
        with world.under_way():
            logged, lost = (open_until.enter_context(world.stream("acme")) for _ in range(2))
            logged.read(1)
            lost.read(1)
            world.kill("token-quota")
            world.kill("billing-events")
        logged.read()
        lost.read()
    assert {logged.id, lost.id} <= world.held()
    assert world.post_log([log_record(logged)] * 2) == {"new": 1, "repeated": 1}
    owed[logged.id] = logged.usage

    expected = owed.keys() | {first.id, f"reversal:{first.id}", "adjustment:acme/case-1", "expired-1"}
    expected |= {refused.headers["x-request-id"], anonymous.json()["request_id"]}
    wait_for(lambda: world.rows().keys() >= expected, "all events are in the books")
    rows = world.rows()
    assert rows.keys() == expected
    assert rows[spooled.id]["outcome"] == "completed"

    books = ("--books", str(world.directory / "books.duckdb"))
    prices = ("--prices", str(world.directory / "prices.yaml"))
    day = ("--day", "today", "--time-zone", "UTC" if 1 <= time.gmtime().tm_hour < 23 else "Etc/GMT+6")  # no midnight
    status, report = world.command("report", "daily", *day, *books, *prices, "--format", "json")
    tenants = {each["tenant"]: each for each in report["tenants"]}
    assert status == 0
    assert tenants["acme"]["net_micro"] == {"EUR": sum(map(price, owed.values())) - 500}
    assert tenants["acme"]["outcomes"] == {"aborted": 2, "completed": 4}
    assert (tenants["acme"]["reversals"], tenants["acme"]["tokens"]["cached"] > 0) == (1, True)
    assert {name: each["net_micro"] for name, each in tenants.items() if name != "acme"} == {
        "anonymous": {"EUR": 0},
        "ghost": {"EUR": 0},
        "tiny": {"EUR": 0},
    }
    assert report["denied_by_status"] == {"401": 1, "429": 1}

    side = ("--ledger", world.stack.ledger_url, "--engine", world.stack.engine_root, "--format", "json")
    status, found = world.command("reconcile", *day, *books, *side)
    assert (status, found["missing"], found["undelivered"], found["unposted"]) == (0, [], [], [])
    (engine,) = found["engines"]
    ran = [*owed.values(), first.usage, lost.usage, unheard]
    assert engine["engine"]["completion"] == sum(usage["completion_tokens"] for usage in ran)
    assert engine["engine"]["prompt"] == sum(usage["prompt_tokens"] for usage in ran)
    assert {(each["kind"], each["id"]) for each in engine["explanations"]} == {
        ("aborted", aborted.id),
        ("aborted", first.id),
        ("reversed", f"reversal:{first.id}"),
        ("expired", "expired-1"),
        ("open", lost.id),
    }
    assert [hold["id"] for hold in found["holds"]] == [lost.id]
    assert {(each["tenant"], each["posted"], each["difference"]) for each in found["counters"]} == {
        ("acme", sum(usage["total_tokens"] for usage in owed.values()), 0),
        ("ghost", 0, 0),
    }

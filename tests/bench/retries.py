"""``python -m tests.bench.retries``: clients with a second's patience and three retries before an engine that stalls.

Two legs, each with every client at once. ``sdk``: OpenAI's own client with its own retries asks for whole answers, and
the engine stalls before their first token. ``streams``: clients with an Idempotency-Key give up a stream that stalls
after some tokens and ask again. Whatever happens on the way, each logical request is to be charged once, and the events
to add up to the engine's counters.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
import uuid
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai

from kong_plugins.adapters.engine_metrics import EngineCounters, read_counters
from kong_plugins.adapters.ledger import connect_ledger
from kong_plugins.application.ports import Ledger
from kong_plugins.cli.stack import Gateway, Stack, StackOptions, start_stack
from kong_plugins.domain.events import REVERSAL_TYPE
from kong_plugins.domain.partitions import partition_of

PATIENCE_S = 1.0
RETRIES = 3
TOKENS = 24  # of a whole answer, at most
REQUEST_TOKENS_MAX = 64  # with its prompt
STALL_AFTER = 12
STARTS_A_SECOND = 100  # a crowd that overruns two cores measures these, not retries
SETTLE_S_MAX = 60.0
MODEL = "deepseek-r1"


@dataclass
class Books:
    """A tenant's events: tokens of requests, of these taken back, and the charges that stand, by event id."""

    gross: int = 0
    reversed: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    standing: dict[str, int] = field(default_factory=dict)

    @property
    def net(self) -> int:
        return self.gross - self.reversed


@dataclass
class Leg:
    """What one leg came to. ``answers``: tokens that each client's answer tells of; ``attempts``: requests sent."""

    name: str
    clients: int
    answers: list[int]
    attempts: int
    stalls: int
    seconds: float
    books: Books
    engine: int  # tokens, prompt and completion
    committed: int  # tokens on the budget

    @property
    def accidents(self) -> int:
        """Attempts given up that the engine had not stalled: the machine was too busy. What it generated for them, or
        was charged for them before it began, nobody can know to the token."""
        return max(self.attempts - self.clients - self.stalls, self.books.outcomes["aborted"] - self.stalls, 0)

    def failures(self) -> list[str]:
        """What is not as promised."""
        books = self.books
        # Of a request that stalled before its first token the engine counted nothing, of others what the client saw.
        told = books.net if self.name == "sdk" else books.gross
        all_answered = len(self.answers) == self.clients
        stand = charged(books)
        checks = {
            f"{self.clients} logical requests, {len(self.answers)} answered": all_answered or self.accidents > 0,
            f"{self.clients} logical requests, {stand} charges stand": len(self.answers) <= stand <= self.clients,
            f"net {books.net}, answers tell of {sum(self.answers)}": books.net == sum(self.answers)
            or (not all_answered and books.net > sum(self.answers)),
            f"budget {self.committed}, net {books.net}": self.committed == books.net,
            f"engine {self.engine}, events {told}, {self.accidents} accidents": abs(self.engine - told)
            <= (self.accidents and self.attempts * REQUEST_TOKENS_MAX),
        }
        return [text for text, right in checks.items() if not right]

    def line(self) -> str:
        books = self.books
        return (
            f"{self.name:8}{self.clients:5} logical requests, {self.attempts} attempts ({dict(books.outcomes)}) in"
            f" {self.seconds:.1f} s: charged {charged(books)} times; events {books.gross:,} - reversed"
            f" {books.reversed:,} = net {books.net:,}; answers {sum(self.answers):,}, budget {self.committed:,}, engine"
            f" {self.engine:,} tokens; {self.accidents} attempts given up without a stall"
        )


def charged(books: Books) -> int:
    return sum(1 for tokens in books.standing.values() if tokens)


def books_of(ledger: Ledger, tenant: str) -> Books:
    """From the outbox."""
    books, after = Books(), "0"
    while entries := ledger.outbox(partition_of(tenant), after, 1_000):
        after = entries[-1].position
        for entry in entries:
            event = json.loads(entry.event)
            data = event["data"]
            if data["tenant"] != tenant:
                continue
            tokens = data["prompt"] + data["completion"]
            if event["type"] == REVERSAL_TYPE:
                books.reversed += tokens
                books.standing.pop(data["reverses"])
                books.outcomes["reversed"] += 1
            else:
                books.gross += tokens
                books.standing[event["id"]] = tokens
                books.outcomes[data["outcome"]] += 1
    return books


@dataclass
class Storm:
    """A stack to run legs against. Each tenant is to be used for one leg only."""

    url: str
    engine_root: str
    ledger: Ledger

    def run(self, name: str, tenant: str, key: str, clients: int) -> Leg:
        """``name``: ``sdk`` or ``streams``. Three stalls for every two clients: some meet one, some two or more."""
        before = read_counters(self.engine_root)
        stalls = 3 * clients // 2
        stall = {"hang_after_tokens": 0 if name == "sdk" else STALL_AFTER, "requests": stalls}
        httpx.post(f"{self.engine_root}/sim/faults", json=stall).raise_for_status()
        started = time.monotonic()
        answers, attempts = asyncio.run(_leg(name, f"{self.url}/v1", key, clients))
        seconds = time.monotonic() - started
        httpx.post(f"{self.engine_root}/sim/faults", json={"hang_after_tokens": None, "requests": None})
        committed = self._settled(tenant)
        after = read_counters(self.engine_root)
        return Leg(
            name=name,
            clients=clients,
            answers=answers,
            attempts=attempts,
            stalls=stalls,
            seconds=seconds,
            books=books_of(self.ledger, tenant),
            engine=_tokens(after) - _tokens(before),
            committed=committed,
        )

    def _settled(self, tenant: str) -> int:
        deadline = time.monotonic() + SETTLE_S_MAX
        while any(balance.state.held for balance in self.ledger.balances(tenant)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{tenant} has holds left after {SETTLE_S_MAX:.0f} s")
            time.sleep(0.05)
        return sum(balance.state.committed for balance in self.ledger.balances(tenant))


def _tokens(counters: EngineCounters) -> int:
    return counters.prompt + counters.completion


async def _leg(name: str, base_url: str, key: str, clients: int) -> tuple[list[int], int]:
    attempts = 0

    async def count(_request: httpx.Request) -> None:
        nonlocal attempts
        attempts += 1

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with openai.AsyncOpenAI(
        base_url=base_url,
        api_key=key,
        timeout=PATIENCE_S if name == "sdk" else 30.0,
        max_retries=RETRIES if name == "sdk" else 0,
        http_client=httpx.AsyncClient(limits=limits, event_hooks={"request": [count]}),
    ) as client:
        ask = _whole if name == "sdk" else _streamed

        async def in_turn(number: int) -> int:
            await asyncio.sleep(number / STARTS_A_SECOND)
            return await ask(client, number)

        told = await asyncio.gather(*(in_turn(number) for number in range(clients)), return_exceptions=True)
    for problem in {str(each) for each in told if isinstance(each, BaseException)}:
        print(f"{name}: a client's retries were used up: {problem}", file=sys.stderr)
    return [each for each in told if isinstance(each, int)], attempts


def _messages(number: int) -> Any:
    return [{"role": "user", "content": f"Client {number} asks: how many requests remain?"}]


async def _whole(client: openai.AsyncOpenAI, number: int) -> int:
    answer = await client.chat.completions.create(model=MODEL, messages=_messages(number), max_tokens=TOKENS)
    assert answer.usage is not None
    return answer.usage.total_tokens


async def _streamed(client: openai.AsyncOpenAI, number: int) -> int:
    key = uuid.uuid4().hex
    for attempt in range(RETRIES + 1):
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await _stream(client, number, key)
        except (TimeoutError, openai.ConflictError):
            if attempt == RETRIES:
                raise
            await asyncio.sleep(0.5 * 2**attempt * (1 - number % 5 / 20))  # as SDKs do it
    raise AssertionError("not reached")


async def _stream(client: openai.AsyncOpenAI, number: int, key: str) -> int:
    stream = await client.chat.completions.create(
        model=MODEL,
        messages=_messages(number),
        max_tokens=TOKENS,
        stream=True,
        stream_options={"include_usage": True},
        extra_headers={"Idempotency-Key": key},
    )
    tokens = 0
    async with stream:
        async for chunk in stream:
            tokens = chunk.usage.total_tokens if chunk.usage is not None else tokens
    return tokens


def main() -> int:
    from tests.e2e.conftest import TENANTS, suite_config  # it brings pytest along

    parser = argparse.ArgumentParser(prog="python -m tests.bench.retries", description=__doc__)
    parser.add_argument("--clients", type=int, default=200, help="logical requests at once in each leg (default: 200)")
    parser.add_argument("--gateway", choices=["local", "kong"], default="local", help="kong: on PATH, or KONG_BIN")
    options = parser.parse_args()
    with ExitStack() as resources:
        directory = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="retries-")))
        for name in [*TENANTS, "tenant_a", "tenant_b"]:
            os.environ.setdefault(f"DECK_{name.upper()}_KEY", f"sk-{uuid.uuid4().hex}")
        config = suite_config(directory)
        wanted = StackOptions(config=config, gateway=Gateway(options.gateway), port=0, data_dir=directory)
        stack: Stack = start_stack(wanted, resources, print)
        storm = Storm(stack.url, stack.engine_root, connect_ledger(stack.ledger_url))
        failures = []
        for leg, tenant in (("sdk", "storm_sdk"), ("streams", "storm_streams")):
            result = storm.run(leg, tenant, stack.keys[f"DECK_{tenant.upper()}_KEY"], options.clients)
            print(result.line(), flush=True)
            failures += result.failures()
        for failure in failures:
            print(f"NOT AS PROMISED: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

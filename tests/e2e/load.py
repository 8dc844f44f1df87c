"""Clients that ask on and on while something else happens, and what each of them got."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2 as httpx

from kong_plugins.adapters.engine_metrics import EngineCounters
from tests.bench.retries import Books, books_of
from tests.e2e.conftest import Running, chat
from tests.e2e.waiting import balance, wait_for

PATH = "/v1/chat/completions"
TOKENS = 8
PAUSE_S = 0.05  # before the next request, after one that was refused


@dataclass(frozen=True)
class Reply:
    """One request's end. ``error``: the code of an error body, or the exception's name where no answer came."""

    status: int
    request_id: str
    tokens: int = 0
    error: str = ""
    limit: int = 0


@dataclass
class Load:
    """What one tenant's clients got so far."""

    running: Running
    tenant: str
    replies: list[Reply] = field(default_factory=list)

    def statuses(self) -> Counter[tuple[int, str]]:
        return Counter((reply.status, reply.error) for reply in self.replies)

    def served(self) -> list[Reply]:
        return [reply for reply in self.replies if reply.status == 200]

    def serves_with(self, limit: int) -> bool:
        """The last answer told of this limit."""
        return self.served()[-1].limit == limit

    def more(self, count: int, timeout_s: float = 30) -> None:
        """Waits until so many more requests have been served."""
        goal, deadline = len(self.served()) + count, time.monotonic() + timeout_s
        while len(self.served()) < goal:
            assert time.monotonic() < deadline, f"no {count} more served within {timeout_s} s: {self.statuses()}"
            time.sleep(0.01)


@contextmanager
def asking(running: Running, tenant: str, clients: int = 4) -> Iterator[Load]:
    """Clients that each ask one thing after the other, every other one streamed, until the end of the block."""
    load, ended, numbers = Load(running, tenant), threading.Event(), itertools.count()

    def work() -> None:
        while not ended.is_set():
            reply = ask(running, tenant, stream=next(numbers) % 2 == 1)
            load.replies.append(reply)
            if reply.status != 200:
                ended.wait(PAUSE_S)

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def ask(running: Running, tenant: str, stream: bool = False, **more: Any) -> Reply:
    """One request on a connection of its own: a kept one may end while it is taken, and that says nothing."""
    body = chat(max_tokens=TOKENS, **more)
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    try:
        answer = httpx.post(
            f"{running.stack.url}{PATH}", json=body, headers={"apikey": running.key(tenant)}, timeout=30
        )
    except httpx.HTTPError as error:
        return Reply(0, "", error=type(error).__name__)
    request_id = answer.headers.get("x-request-id") or answer.headers["x-kong-request-id"]
    if answer.status_code != 200:
        said = answer.json()
        code = said["error"]["code"] if "error" in said else said["message"]
        return Reply(answer.status_code, request_id, error=code)
    usage = httpx.Response(200, content=_last_json(answer.text) if stream else answer.content).json()["usage"]
    return Reply(200, request_id, usage["total_tokens"], limit=int(answer.headers["x-ratelimit-limit-tokens"]))


def _last_json(stream: str) -> str:
    *_, last = (line.removeprefix("data: ") for line in stream.split("\n") if line.startswith("data: {"))
    return last


@contextmanager
def open_stream(running: Running, tenant: str) -> Iterator[None]:
    """An answer that the engine stalls in until its client leaves."""
    running.faults(hang_after_tokens=10, requests=1)
    body = chat(stream=True, stream_options={"include_usage": True})
    headers = {"apikey": running.key(tenant)}
    with running.http.stream("POST", f"{running.stack.url}{PATH}", json=body, headers=headers) as answer:
        assert answer.status_code == 200
        events = (line for line in answer.iter_lines() if line.startswith("data: "))
        for _ in range(10):
            next(events)
        yield


def books_when(running: Running, tenant: str, requests: int) -> Books:
    """Once there are so many events."""
    wait_for(lambda: len(books_of(running.ledger, tenant).standing) >= requests, f"{requests} events of {tenant}")
    return books_of(running.ledger, tenant)


def agree(running: Running, books: Books, engine: EngineCounters, *loads: Load) -> None:
    """One event for each answer, of its tokens; the tenant's budget and the engine's counters since ``engine`` add up
    to the events."""
    told = {reply.request_id: reply.tokens for load in loads for reply in load.served()}
    assert {event: books.standing.get(event) for event in told} == told
    assert balance(running, loads[0].tenant).state.committed == books.net
    after = running.engine()
    assert after.prompt + after.completion - engine.prompt - engine.completion == books.net

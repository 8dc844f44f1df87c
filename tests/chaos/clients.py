"""Tenants who go on asking while things break: whole answers, streams, and streams they leave early."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx2 as httpx

from tests.chaos.engine import CLIENT_HEADER

MODEL = "deepseek-r1"
WORKERS = 3  # for each tenant
PACE_S = 0.05  # after a failure: a server that is being restarted is not to be hammered
POOR_PACE_S = 0.25  # after a 429
PATIENCE_S = 6.0


@dataclass(slots=True)
class Asked:
    """One request as its client saw it. ``name`` goes along in a header. Times are epoch seconds. ``said``: a status,
    and ``left`` where the client went; or what was raised. ``usage``: (prompt, completion) of an answer that came
    whole."""

    name: str
    tenant: str
    kind: str
    began: float
    ended: float = 0.0
    said: str = ""
    request_id: str | None = None
    usage: tuple[int, int] | None = None


@dataclass
class Seen:
    """What clients know for certain. ``asked``: all requests that ended, in the order of their ends."""

    asked: list[Asked] = field(default_factory=list)


class Clients:
    """Threads that ask until they are stopped; the same seed asks the same questions."""

    def __init__(self, url: str, keys: dict[str, str], seed: int) -> None:
        self.seen = Seen()
        self._url = url
        self._enough = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._ask, args=(tenant, key, f"{seed}-{tenant}-{n}"), name=f"{tenant}-{n}")
            for tenant, key in keys.items()
            for n in range(WORKERS)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._enough.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, tenant: str, key: str, worker: str) -> None:
        choose = random.Random(worker)
        with httpx.Client(timeout=PATIENCE_S, headers={"apikey": key}) as http:
            number = 0
            while not self._enough.is_set():
                number += 1
                kind = choose.choice(("whole", "stream", "left early"))
                question = f"{worker}, question {number}: " + "how many? " * choose.randrange(1, 40)
                body = {"model": MODEL, "max_tokens": 60, "messages": [{"role": "user", "content": question}]}
                asked = Asked(f"{worker}-{number}", tenant, kind, time.time())
                try:
                    self._one(http, asked, body, choose.randrange(2, 20))
                except httpx.HTTPError as error:
                    asked.said = type(error).__name__
                asked.ended = time.time()
                with self._lock:
                    self.seen.asked.append(asked)
                if asked.said == "429":
                    self._enough.wait(POOR_PACE_S)
                elif not asked.said.startswith("200"):
                    self._enough.wait(PACE_S)

    def _one(self, http: httpx.Client, asked: Asked, body: dict[str, object], patience: int) -> None:
        url, headers = f"{self._url}/v1/chat/completions", {CLIENT_HEADER: asked.name}
        if asked.kind == "whole":
            answer = http.post(url, json=body, headers=headers)
            asked.said, asked.request_id = str(answer.status_code), answer.headers.get("x-request-id")
            if answer.status_code == 200:
                asked.usage = _usage(answer.json()["usage"])
            return
        streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
        with http.stream("POST", url, json=streamed, headers=headers) as answer:
            asked.request_id = answer.headers.get("x-request-id")
            if answer.status_code != 200:
                answer.read()
                asked.said = str(answer.status_code)
                return
            for count, line in enumerate(line for line in answer.iter_lines() if line.startswith("data: {")):
                if asked.kind == "left early" and count == patience:
                    asked.said = "200, left"
                    return
                chunk = json.loads(line.removeprefix("data: "))
                if not chunk.get("choices") and chunk.get("usage"):
                    asked.usage = _usage(chunk["usage"])
        # A stream may end before its end without an error: then no usage came.
        asked.said = "200" if asked.usage is not None else "200, cut off"


def _usage(told: dict[str, int]) -> tuple[int, int]:
    return told["prompt_tokens"], told["completion_tokens"]


@dataclass(frozen=True)
class Look:
    """``poor``: committed and held of a poor tenant's budget by its window's end. ``rich``: what counters that never go
    back have committed, by tenant."""

    poor: dict[int, int]
    rich: dict[str, int]


class Watch:
    """Looks at budgets all the time. ``most``: committed and held at most, by its window's end. ``drops``: when a
    counter went back, epoch seconds, whose, and by how much: a ledger forgot what it had said."""

    def __init__(self, look: Callable[[], Look]) -> None:
        """``look`` may raise when the ledger is away."""
        self.most: dict[int, int] = {}
        self.drops: list[tuple[float, str, int]] = []
        self.looks = self.failed = 0
        self._rich: dict[str, int] = {}
        self._look = look
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._enough.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._enough.wait(0.05):
            try:
                found = self._look()
            except Exception:  # noqa: BLE001 - the ledger is away: that is the experiment
                self.failed += 1
                continue
            self.looks += 1
            for ends, used in found.poor.items():
                self.most[ends] = max(self.most.get(ends, 0), used)
            for tenant, before in self._rich.items():
                if (less := before - found.rich.get(tenant, 0)) > 0:
                    self.drops.append((time.time(), tenant, less))
            self._rich = found.rich

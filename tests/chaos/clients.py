"""Tenants who go on asking while processes are killed: whole answers, streams, and streams they leave early."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from dataclasses import dataclass, field

import httpx2 as httpx

MODEL = "deepseek-r1"
WORKERS = 3  # for each tenant
PACE_S = 0.01  # after a refusal: a server that is being restarted is not to be hammered
GENERATING = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")


@dataclass
class Seen:
    """What clients know for certain. ``usage``: (prompt, completion) by request id, of answers that came whole."""

    usage: dict[str, tuple[int, int]] = field(default_factory=dict)
    statuses: Counter[str] = field(default_factory=Counter)


class Clients:
    """Threads that ask until they are stopped; the same seed asks the same questions."""

    def __init__(self, url: str, keys: dict[str, str], seed: int) -> None:
        self.seen = Seen()
        self._url = url
        self._enough = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._ask, args=(key, f"{seed}/{tenant}/{n}"), name=f"{tenant}-{n}")
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

    def _ask(self, key: str, name: str) -> None:
        choose = random.Random(name)
        with httpx.Client(timeout=30, headers={"apikey": key}) as http:
            number = 0
            while not self._enough.is_set():
                number += 1
                kind = choose.choice(("whole", "stream", "left early"))
                question = f"{name}, question {number}: " + "how many? " * choose.randrange(1, 40)
                body = {"model": MODEL, "max_tokens": 60, "messages": [{"role": "user", "content": question}]}
                try:
                    said = self._one(http, kind, body, choose.randrange(2, 20))
                except httpx.HTTPError as error:
                    said = type(error).__name__
                if said.startswith(("5", "Conn", "Remote", "Read")):
                    self._enough.wait(PACE_S)
                with self._lock:
                    self.seen.statuses[f"{kind} {said}"] += 1

    def _one(self, http: httpx.Client, kind: str, body: dict[str, object], patience: int) -> str:
        url = f"{self._url}/v1/chat/completions"
        if kind == "whole":
            answer = http.post(url, json=body)
            if answer.status_code == 200:
                self._note(answer.headers["x-request-id"], answer.json()["usage"])
            return str(answer.status_code)
        asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
        with http.stream("POST", url, json=asked) as answer:
            if answer.status_code != 200:
                answer.read()
                return str(answer.status_code)
            for count, line in enumerate(line for line in answer.iter_lines() if line.startswith("data: {")):
                if kind == "left early" and count == patience:
                    return "200, left"
                chunk = json.loads(line.removeprefix("data: "))
                if not chunk.get("choices") and chunk.get("usage"):
                    self._note(answer.headers["x-request-id"], chunk["usage"])
        return "200"

    def _note(self, request_id: str, usage: dict[str, int]) -> None:
        with self._lock:
            self.seen.usage[request_id] = (usage["prompt_tokens"], usage["completion_tokens"])

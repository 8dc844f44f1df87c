"""The demo's traffic: two tenants with the official openai client, streaming and not, until one is out of tokens."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import openai

MODEL = "deepseek-r1"
QUESTIONS = (
    "How many requests remain for me today?",
    "Summarize in one line what a token budget is.",
    "网关如何计算令牌？",
    "Write a haiku about a queue that never answered.",
    "Which plugin runs first, and why?",
)
SYSTEM = "You are the gateway's assistant. Answer shortly, and never exceed the budget of the tenant who asks. " * 12
WORKERS = 4  # a tenant's concurrent clients
REFUSALS_WANTED = 3  # a tenant that saw this many 429s has run out
PACE_S = 0.02


@dataclass
class Tally:
    """One tenant's view from outside."""

    requests: Counter[str] = field(default_factory=Counter)  # by kind: plain, stream
    refused: int = 0
    last_refusal: str = ""
    failures: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, kind: str) -> None:
        with self.lock:
            self.requests[kind] += 1

    def refuse(self, error: openai.RateLimitError) -> None:
        with self.lock:
            self.refused += 1
            self.last_refusal = str(error.message)

    def fail(self, error: Exception) -> None:
        with self.lock:
            self.failures.append(f"{type(error).__name__}: {error}")

    @property
    def out_of_tokens(self) -> bool:
        return self.refused >= REFUSALS_WANTED


class Traffic:
    """Worker threads for each tenant. ``keys``: tenant → API key."""

    def __init__(self, base_url: str, keys: dict[str, str]) -> None:
        self.tallies = {tenant: Tally() for tenant in keys}
        self.enough = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=(base_url, tenant, key, number), daemon=True)
            for tenant, key in keys.items()
            for number in range(WORKERS)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let requests in flight end."""
        self.enough.set()
        for thread in self._threads:
            thread.join()

    def tenants_out(self) -> Sequence[str]:
        return [tenant for tenant, tally in self.tallies.items() if tally.out_of_tokens]

    def _work(self, base_url: str, tenant: str, key: str, number: int) -> None:
        tally, choice = self.tallies[tenant], random.Random(f"{tenant}/{number}")  # noqa: S311 a demo's dice
        # Its own retries are off: a refusal is to be seen, not waited out.
        with openai.OpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=30) as client:
            while not self.enough.is_set() and not tally.out_of_tokens:
                try:
                    tally.count(self._ask(client, choice))
                except openai.RateLimitError as error:
                    tally.refuse(error)
                except openai.APIError as error:
                    tally.fail(error)
                    return
                self.enough.wait(PACE_S)

    @staticmethod
    def _ask(client: openai.OpenAI, choice: random.Random) -> str:
        """One request; returns its kind."""
        kind = choice.choice(["plain", "stream"])
        messages: list[openai.types.chat.ChatCompletionMessageParam] = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": choice.choice(QUESTIONS)},
        ]
        max_tokens = choice.choice([64, 128, 200])
        if kind == "plain":
            client.chat.completions.create(model=MODEL, messages=messages, max_tokens=max_tokens)
            return kind
        with client.chat.completions.create(
            model=MODEL, messages=messages, max_tokens=max_tokens, stream=True
        ) as stream:
            for _ in stream:
                pass
        return kind

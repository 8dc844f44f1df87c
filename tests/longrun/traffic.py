"""Requests at a steady rate, whatever becomes of those before, and what became of each."""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from collections import Counter
from dataclasses import dataclass, field

from tests.longrun.asking import Answer, Connections, Cut
from tests.longrun.tenants import POOR, Tenants

PATH = "/v1/chat/completions"
MODEL = "deepseek-r1"
TWINS = 0.25  # of plain requests are asked of the bare engine too, at the same moment
KINDS = {  # shares of a hundred
    "whole": 36,
    "stream": 31,
    "left": 8,
    "keyed": 5,
    "keyed, left": 4,
    "poor": 6,
    "no key": 3,
    "old key": 3,
    "malformed": 3,
    "invented model": 1,
}
EXPECTED = {
    "whole": {200},
    "stream": {200},
    "left": {200},
    "keyed": {200},
    "keyed, left": {200},
    "poor": {200, 429},
    "no key": {401},
    "old key": {401},
    "malformed": {400},
    "invented model": {404, 400},
}


@dataclass
class Latencies:
    """Milliseconds of one stretch of time. ``added``: beyond what the bare engine took for the same request then."""

    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    added_first: list[float] = field(default_factory=list)
    added_whole: list[float] = field(default_factory=list)
    bare_first: list[float] = field(default_factory=list)
    bare_trip: list[float] = field(default_factory=list)  # the engine's /health: what the machine takes for anything


@dataclass
class Seen:
    """What clients know for certain. ``usage``: (prompt, completion) by request id, of answers that came whole."""

    usage: dict[str, tuple[int, int]] = field(default_factory=dict)
    replayed: int = 0
    late: int = 0  # starts that the driver itself was late for


class Traffic:
    """``gateway`` and ``bare``: ports. What happened since the last :meth:`take` is in ``counts`` and ``latencies``."""

    def __init__(self, tenants: Tenants, gateway: int, bare: int, rate: float, seed: int) -> None:
        self.seen = Seen()
        self.problems: Counter[str] = Counter()
        self._tenants = tenants
        self._gateway = Connections(gateway)
        self._bare = Connections(bare)
        self._rate = rate
        self._choose = random.Random(seed)
        self._under_way: set[asyncio.Task[None]] = set()
        self.take()

    def take(self) -> tuple[Counter[str], Latencies]:
        """Counts by kind and status, and latencies, since the last time."""
        taken = (self.counts, self.latencies) if hasattr(self, "counts") else (Counter(), Latencies())
        self.counts: Counter[str] = Counter()
        self.latencies = Latencies()
        self.at_once = len(self._under_way)
        return taken

    async def run(self, until: float) -> None:
        """Until the loop's clock says so; then waits for those under way."""
        loop = asyncio.get_running_loop()
        following = loop.time()
        kinds, weights = list(KINDS), list(KINDS.values())
        while following < until:
            following += self._choose.expovariate(self._rate)
            pause = following - loop.time()
            self.seen.late += pause < -0.1
            if pause > 0:
                await asyncio.sleep(pause)
            task = asyncio.create_task(self._one(self._choose.choices(kinds, weights)[0]))
            self._under_way.add(task)
            self.at_once = max(self.at_once, len(self._under_way))
            task.add_done_callback(self._under_way.discard)
        await asyncio.gather(*self._under_way)
        self._gateway.close()
        self._bare.close()

    async def knows(self, key: str) -> bool:
        """Whether the gateway takes a key. Nothing is asked of the engine."""
        answer = await self._gateway.ask("POST", PATH, {"Content-Type": "application/json", "apikey": key}, b"{}")
        return answer.status != 401

    async def _one(self, kind: str) -> None:
        try:
            await self._ask(kind)
        except (Cut, OSError, TimeoutError) as error:
            self._count(kind, type(error).__name__, amiss=True)

    async def _ask(self, kind: str) -> None:
        choose = self._choose
        question = f"{uuid.uuid4().hex} " + "how many? " * choose.randrange(1, 60)
        body: dict[str, object] = {
            "model": MODEL if kind != "invented model" else f"model-{choose.randrange(10**9)}",
            "max_tokens": choose.randrange(4, 25),
            "messages": [{"role": "user", "content": question}],
        }
        if kind in {"stream", "left", "keyed, left"}:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        tenant = POOR if kind == "poor" else choose.choice([name for name in self._tenants.keys if name != POOR])
        headers = {"Content-Type": "application/json", "apikey": self._tenants.keys[tenant]}
        if kind == "no key":
            headers["apikey"] = f"sk-{uuid.uuid4().hex}"
        elif kind == "old key" and self._tenants.gone:
            headers["apikey"] = choose.choice(self._tenants.gone)
        elif kind == "old key":
            del headers["apikey"]
        data = json.dumps(body).encode()
        if kind == "malformed":
            data = data[:-1]
        if kind.startswith("keyed"):
            headers["Idempotency-Key"] = uuid.uuid4().hex
        leave = choose.randrange(2, 8) if kind.endswith("left") else None
        twin = kind in {"whole", "stream"} and choose.random() < TWINS
        bare = asyncio.create_task(self._ask_bare(data)) if twin else None
        answer = await self._gateway.ask("POST", PATH, headers, data, leave)
        self._note(kind, answer)
        if bare is not None:
            self._compare(kind, answer, await bare)
        if kind.startswith("keyed"):
            await self._again(kind, headers, data)

    async def _ask_bare(self, data: bytes) -> Answer:
        trip = await self._bare.ask("GET", "/health", {})
        self.latencies.bare_trip.append(1000 * trip.whole_s)
        return await self._bare.ask("POST", PATH, {"Content-Type": "application/json"}, data)

    async def _again(self, kind: str, headers: dict[str, str], data: bytes) -> None:
        """The client's second try: the kept answer, or a run of its own after it had left. 409: the first one's end is
        not known yet."""
        for _ in range(20):
            answer = await self._gateway.ask("POST", PATH, headers, data)
            if answer.status != 409:
                break
            await asyncio.sleep(0.3)
        replayed = answer.headers.get("idempotent-replayed") == "true"
        self.seen.replayed += replayed
        if answer.status == 401 and headers["apikey"] not in self._tenants.keys.values():
            self._count(f"{kind}, again", "the key is gone", amiss=False)
        elif replayed:
            self._count(f"{kind}, again", "replayed", amiss=answer.status != 200)
        else:
            self._note(f"{kind}, again", answer, expected={200} if kind == "keyed, left" else {0})

    def _note(self, kind: str, answer: Answer, expected: set[int] | None = None) -> None:
        self._count(kind, answer.status, amiss=answer.status not in (expected or EXPECTED[kind]))
        if answer.status != 200 or answer.left:
            return
        if (usage := _usage(answer.body)) is None:
            self.problems[f"{kind}: a whole answer without usage"] += 1
            return
        self.seen.usage[answer.headers["x-request-id"]] = usage
        if kind == "stream":
            self.latencies.first.append(1000 * answer.first_s)
        elif kind == "whole":
            self.latencies.whole.append(1000 * answer.whole_s)

    def _compare(self, kind: str, answer: Answer, bare: Answer) -> None:
        if answer.status != 200 or bare.status != 200:
            return
        if kind == "stream":
            self.latencies.bare_first.append(1000 * bare.first_s)
            self.latencies.added_first.append(1000 * (answer.first_s - bare.first_s))
        else:
            self.latencies.added_whole.append(1000 * (answer.whole_s - bare.whole_s))

    def _count(self, kind: str, what: object, *, amiss: bool) -> None:
        self.counts[f"{kind}: {what}"] += 1
        if amiss:
            self.problems[f"{kind}: {what}"] += 1


def _usage(body: bytes) -> tuple[int, int] | None:
    if body.startswith(b"data: "):
        *_, last = (line for line in body.split(b"\n") if line.startswith(b"data: {"))
        body = last.removeprefix(b"data: ")
    usage = json.loads(body).get("usage")
    return (usage["prompt_tokens"], usage["completion_tokens"]) if usage else None

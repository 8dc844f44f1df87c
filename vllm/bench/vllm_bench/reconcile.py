"""Do the books balance: mixed requests with aborts through the gateway, then bills against answers and engine."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kong_plugins.adapters.engine_metrics import EngineCounters, read_counters
from kong_plugins.application.ports import OutboxEntry
from vllm_bench.gateway import TENANTS, Running
from vllm_bench.prompts import chat_body, texts
from vllm_bench.wire import Connection, Reply

DRIVE_S = 300.0
SETTLE_S = 20.0
KINDS = ("stream", "whole", "left", "choices")
WEIGHTS = (45, 20, 30, 5)
LEAVE_AFTER = (1, 40)  # events


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that was sent, and what its client saw of it."""

    kind: str
    tenant: str
    choices: int
    reply: Reply


async def drive(running: Running, count: int, concurrency: int, seed: str) -> list[Asked]:
    """``count`` requests in all: streamed, whole, streamed and left, two choices; prompts half from a shared prefix."""
    targets = {tenant: running.targets(tenant) for tenant in TENANTS}
    done: list[Asked] = []

    async def slot(number: int) -> None:
        tenant = TENANTS[number % len(TENANTS)]
        dice = random.Random(f"{seed}/{number}")  # noqa: S311 a load's dice
        connection = Connection(targets[tenant][number % len(targets[tenant])])
        source = texts(400, 50, seed, str(number))
        for _ in range(count // concurrency + (number < count % concurrency)):
            kind = dice.choices(KINDS, WEIGHTS)[0]
            shared, own = next(source)
            body = chat_body(shared, own, dice.choice((1, 16, 48, 64)), stream=kind != "whole")
            choices = 2 if kind == "choices" else 1
            if choices > 1:
                body |= {"n": choices, "temperature": 1.0}  # vLLM refuses several greedy choices
            leave = dice.randint(*LEAVE_AFTER) if kind == "left" else None
            done.append(Asked(kind, tenant, choices, await connection.ask("chat/completions", body, leave)))
        connection.close()

    await asyncio.gather(*(slot(number) for number in range(concurrency)))
    return done


def balance(
    asked: Sequence[Asked], entries: Sequence[OutboxEntry], before: EngineCounters, after: EngineCounters
) -> dict[str, Any]:
    """Compare bills with every answer's own usage, and their sums with what the engine counted.

    The engine may be ahead in completion by tokens it generated after a client had left, and counts a prompt once for
    each choice; both are worked out here, and ``unexplained`` is what remains: differences that ought not to be.
    """
    events = {entry.event_id: json.loads(entry.event)["data"] for entry in entries}
    unexplained = [f"{len(entries) - len(events)} events came twice"] if len(events) != len(entries) else []
    failures = Counter(one.reply.error for one in asked if not one.reply.good)
    unexplained += [f"{count} requests failed: {error}" for error, count in failures.most_common(3)]
    if len(events) != len(asked):
        unexplained.append(f"{len(asked)} requests, {len(events)} bills")
    wrong = 0
    behind = 0  # bills of left streams that are below what their client had seen
    for one in asked:
        data = events.get(one.reply.request_id)
        if data is None or not one.reply.good:
            wrong += one.reply.good
            continue
        if one.reply.left:
            behind += data["completion"] < one.reply.completion or data["prompt"] != one.reply.prompt
        else:
            billed = (data["prompt"], data["completion"], data["cached"])
            wrong += billed != (one.reply.prompt, one.reply.completion, one.reply.cached)
    if wrong:
        unexplained.append(f"{wrong} bills differ from their answer's usage")
    if behind:
        unexplained.append(f"{behind} bills of left streams are below what the client had seen")

    billed_prompt = sum(data["prompt"] for data in events.values())
    billed_completion = sum(data["completion"] for data in events.values())
    engine_prompt, engine_completion = after.prompt - before.prompt, after.completion - before.completion
    # Once more for each further choice.
    repeated = sum(one.reply.prompt * (one.choices - 1) for one in asked if one.reply.good)
    if engine_prompt - billed_prompt != repeated:
        unexplained.append(f"prompt: engine {engine_prompt} - billed {billed_prompt} is not {repeated} (choices)")
    left = sum(one.reply.left for one in asked)
    ahead = engine_completion - billed_completion
    if ahead < 0 or (ahead and not left):
        unexplained.append(f"completion: engine {engine_completion}, billed {billed_completion}")
    return {
        "requests": len(asked),
        "kinds": dict(Counter(one.kind for one in asked)),
        "left_before_the_end": left,
        "evidence": dict(Counter(data["evidence"] for data in events.values())),
        "billed_prompt": billed_prompt,
        "billed_completion": billed_completion,
        "engine_prompt": engine_prompt,
        "engine_completion": engine_completion,
        "prompt_counted_again_for_choices": repeated,
        "generated_after_clients_left": ahead,
        "unexplained": unexplained,
    }


def check_books(
    running: Running, engine_root: str, *, count: int, concurrency: int, seed: str, say: Callable[[str], None]
) -> dict[str, Any]:
    """Drive, wait until every hold is settled, compare."""
    old = {entry.event_id for entry in running.events()}
    before = read_counters(engine_root)
    started = time.monotonic()
    asked = asyncio.run(asyncio.wait_for(drive(running, count, concurrency, seed), DRIVE_S))
    seconds = time.monotonic() - started
    say(f"books: {len(asked)} requests in {seconds:.0f} s, waiting until all are settled")
    deadline = time.monotonic() + SETTLE_S
    while running.held() and time.monotonic() < deadline:
        time.sleep(0.1)
    after = read_counters(engine_root)
    while time.monotonic() < deadline:  # an abort reaches the engine's own counters a moment later
        time.sleep(1.0)
        again = read_counters(engine_root)
        if again == after:
            break
        after = again
    entries = [entry for entry in running.events() if entry.event_id not in old]
    return {"concurrency": concurrency, "seconds": round(seconds, 1), **balance(asked, entries, before, after)}

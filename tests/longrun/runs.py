"""One run: traffic, churn and samples beside one another, then the books."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tests.longrun import books
from tests.longrun.measures import Minute, row
from tests.longrun.sampling import Figures, Sampler
from tests.longrun.stage import Stage
from tests.longrun.traffic import Seen, Traffic

SAMPLES_A_MINUTE = 6
SENT_S = 1.0  # what was asked with a key that goes has been let in by then


@dataclass(frozen=True, slots=True)
class Plan:
    """``minutes`` in all, ``warm_up`` of them not judged; ``rate`` a second. ``minute_s`` is less than 60 in tests."""

    minutes: int
    warm_up: int
    rate: float
    reload_s: float
    seed: int
    remember_s: int
    minute_s: float = 60.0


@dataclass
class Outcome:
    rows: list[Figures] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    findings: books.Findings = field(default_factory=books.Findings)
    seen: Seen = field(default_factory=Seen)
    generated: int = 0
    reloads: int = 0
    hours: int = 0  # that began while it ran


async def run_for(
    plan: Plan, directory: Path, minutes: Path, resources: ExitStack, say: Callable[[str], None]
) -> Outcome:
    """``minutes``: a file that gets each row as it comes."""
    stage = Stage.set_up(directory, resources, plan.remember_s)
    sampler = Sampler(stage)
    resources.callback(sampler.close)
    traffic = Traffic(stage.tenants, stage.gateway_port, stage.bare_port, plan.rate, plan.seed)
    outcome = Outcome(seen=traffic.seen)
    loop = asyncio.get_running_loop()
    until = loop.time() + plan.minute_s * plan.minutes
    hours = {datetime.now(UTC).hour}
    days = {datetime.now(UTC).date().isoformat()}
    asking = asyncio.create_task(traffic.run(until))
    turning = asyncio.create_task(_turn(stage, traffic, plan.reload_s))
    try:
        before = await asyncio.to_thread(sampler.sample)
        following = loop.time()
        for number in range(1, plan.minutes + 1):
            minute = Minute()
            for _ in range(SAMPLES_A_MINUTE):
                following += plan.minute_s / SAMPLES_A_MINUTE
                await asyncio.sleep(max(0.0, following - loop.time()))
                minute.samples.append(await asyncio.to_thread(sampler.sample))
                outcome.problems += await asyncio.to_thread(books.overshoot, stage)
            minute.families = await asyncio.to_thread(sampler.families)
            minute.series = await asyncio.to_thread(sampler.series)
            minute.at_once = traffic.at_once
            minute.counts, minute.latencies = traffic.take()
            outcome.counts += minute.counts
            figures = row(minute, before, max(1, sum(outcome.counts.values())))
            before = minute.samples[-1]
            outcome.rows.append(figures)
            hours.add(datetime.now(UTC).hour)
            days.add(datetime.now(UTC).date().isoformat())
            with minutes.open("a") as lines:
                lines.write(json.dumps(figures) + "\n")
            say(_line(number, plan.minutes, figures))
            if (ended := stage.stack.ended()) is not None:
                raise RuntimeError(f"{ended.name} ended by itself:\n{ended.log_tail()}")
        await asking
    finally:
        turning.cancel()
        asking.cancel()
    outcome.counts += traffic.take()[0]
    outcome.problems += [f"{count} × {what}" for what, count in traffic.problems.items()]
    outcome.problems += [f"{hold} is held still" for hold in books.wait_until_settled(stage)[: books.SHOWN]]
    sampler.look()
    stage.drain()
    outcome.generated, outcome.reloads, outcome.hours = len(sampler.generated), stage.tenants.turns, len(hours) - 1
    outcome.findings = books.check(stage, sampler.generated, traffic.seen, days)
    outcome.problems += outcome.findings.problems
    return outcome


async def _turn(stage: Stage, traffic: Traffic, every_s: float) -> None:
    while True:
        await asyncio.sleep(every_s)
        stage.tenants.leave()
        await asyncio.sleep(SENT_S)
        stage.tenants.write()
        stage.reload()
        while not await traffic.knows(stage.tenants.coming):
            await asyncio.sleep(0.1)
        stage.tenants.arrive()


def _line(number: int, of: int, figures: Figures) -> str:
    return (
        f"minute {number} of {of}: {figures['requests']:.0f} requests,"
        f" added first token {figures['added_first_ms p50']:.1f} ms p50, {figures['added_first_ms p99']:.1f} p99,"
        f" keys {figures['keys']:.0f}, store {figures['store_mb']:.1f} MB, outbox {figures['outbox']:.0f}, PSS"
        f" gateway {figures['gateway pss_mb']:.1f}, token-quota {figures['token-quota pss_mb']:.1f},"
        f" billing-events {figures['billing-events pss_mb']:.1f}, collector {figures['collector pss_mb']:.1f} MB"
    )

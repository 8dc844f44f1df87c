"""What a run showed, as a page of markdown and a line of JSON for each minute."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.longrun.flatness import Verdict
from tests.longrun.measures import untold, verdicts
from tests.longrun.runs import Outcome, Plan
from tests.longrun.sampling import Figures

MINUTES = "minutes.jsonl"


def write(plan: Plan, outcome: Outcome, started: float, folder: Path) -> tuple[str, bool]:
    """The page, and whether all is flat and right. It is written into the folder, and the minutes beside it."""
    found = verdicts(outcome.rows, plan.warm_up)
    grown = [each for each in found if not each.flat]
    right = not grown and not outcome.problems
    text = "\n".join([*_head(plan, outcome, started), "", *_table(found), "", *_end(outcome, grown), ""])
    (folder / "report.md").write_text(text)
    lines = [json.dumps({name: _short(value) for name, value in each.items()}) for each in outcome.rows]
    (folder / MINUTES).write_text("\n".join(lines) + "\n")
    return text, right


def _head(plan: Plan, outcome: Outcome, started: float) -> list[str]:
    findings = outcome.findings
    prompt, completion = findings.billed
    engine_prompt, engine_completion = findings.engine
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    return [
        f"`python -m tests.longrun --minutes {plan.minutes} --warm-up {plan.warm_up} --rate {plan.rate:g} --reload-s"
        f" {plan.reload_s:g} --seed {plan.seed} --remember-s {plan.remember_s}`, begun"
        f" {datetime.fromtimestamp(started, UTC):%Y-%m-%d %H:%M} UTC, {os.cpu_count()} cores, load at the end {load}",
        "",
        f"- {sum(outcome.counts.values()):,} requests, {outcome.generated:,} on the engine, {outcome.seen.replayed:,}"
        f" replayed, {outcome.reloads} reloads, {plan.minutes} minutes' and {outcome.hours} hours' windows rolled over",
        f"- {findings.events:,} events ({_counted(findings.outcomes)}); billed {prompt:,} + {completion:,} tokens,"
        f" engine {engine_prompt:,} + {engine_completion:,} ({_counted(findings.explained) or 'as the books'})",
        f"- answers: {_counted(outcome.counts)}",
        *(f"- not compared: {each}" for each in findings.not_compared),
        *([f"- the driver was late for {outcome.seen.late:,} starts"] if outcome.seen.late else []),
    ]


def _table(found: Sequence[Verdict]) -> list[str]:
    lines = [
        "| measure | first third | last third | highest | growth | allowed | slope an hour | course | flat |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for each in found:
        numbers = (each.first, each.last, each.highest, each.growth, each.allowed, each.per_hour)
        columns = " | ".join(f"{_short(number):,}" for number in numbers)
        lines.append(f"| {each.name} | {columns} | {each.bars} | {'yes' if each.flat else '**NO**'} |")
    return lines


def _end(outcome: Outcome, grown: Sequence[Verdict]) -> list[str]:
    return [
        *(f"GREW: {each.name} by {_short(each.growth):,}, allowed {_short(each.allowed):,}" for each in grown),
        *(f"WRONG: {problem}" for problem in outcome.problems),
        f"all flat {'no' if grown else 'yes'}, books right {'no' if outcome.problems else 'yes'}",
        "",
        "Taken too, and not judged (first, middle, last minute):",
        "",
        *(f"- {name}: {_three(outcome.rows, name)}" for name in untold(outcome.rows)),
    ]


def _three(rows: Sequence[Figures], name: str) -> str:
    values = [each.get(name, 0.0) for each in rows]
    return ", ".join(f"{_short(value):,}" for value in (values[0], values[len(values) // 2], values[-1]))


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))


def _short(value: float) -> float | int:
    """Three digits that count, and whole numbers whole."""
    return int(value) if value == int(value) or abs(value) >= 1000 else float(f"{value:.3g}")

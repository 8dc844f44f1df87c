"""A reconciliation as a person reads it, and as a program does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from kong_plugins.application.reconcile import EngineReport
from kong_plugins.application.reconcile_events import NOTHING, WORDS, Explanation, Kind, Range
from kong_plugins.application.reconcile_ledger import CounterCompared, Why
from kong_plugins.application.reconcile_scrapes import Place, Tokens
from kong_plugins.cli.reconcile_run import Result
from kong_plugins.domain.periods import iso_utc

IDS_SHOWN = 8

_UNSEEN = {
    Place.BEFORE: "ran before the first scrape: not compared",
    Place.BETWEEN: "ran between an engine's last scrape and its end: nobody knows what it counted of them",
    Place.AFTER: "ran after the last scrape of this day: compared with what comes next",
}
_WHY = {
    Why.UNDELIVERED: "posted, its event is not in the books yet",
    Why.EDGE: "began at the window's edge: its hold may count in the one beside it",
}
_STATUS = {
    0: "[green]the books balance[/green]",
    1: "[red]there is an unexplained difference[/red]",
    2: "[yellow]not everything could be compared[/yellow]",
}


def show(result: Result, console: Console) -> None:
    """Everything, the unexplained in red; of long lists of events the first few."""
    period = result.period
    so_far = " so far" if result.now_us < period.end_ms * 1000 else ""
    console.print(f"[bold]{period.label}{so_far}[/bold] ({period.time_zone})")
    for each in result.day:
        console.print(
            f"  billed of {each.model or '(no model)'}: {each.requests:,} requests, {each.tokens.prompt:,} prompt"
            f" ({each.cached:,} cached) + {each.tokens.completion:,} completion tokens",
            markup=False,
        )
    for report in result.engines:
        _show_engine(report, result, console)
    _show_counters(result, console)
    _show_waiting(result, console)
    _show_suspects(result, console)
    for line in result.missing:
        console.print(f"not compared: {line}", style="yellow", markup=False, soft_wrap=True)
    console.print(f"\n{_STATUS[result.status]}")


def _show_engine(report: EngineReport, result: Result, console: Console) -> None:
    compared = report.compared
    span = compared.span
    pace = result.paces[compared.model]
    console.print(
        f"\n[bold]engine and books: {compared.model or '(no model)'}[/bold],"
        f" {_time(span.from_us)} to {_time(span.to_us)}, {compared.events:,} requests"
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 2), show_header=True, header_style="dim")
    for name in ("", "prompt", "completion"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    table.add_row("engine counted", f"{span.tokens.prompt:,}", f"{span.tokens.completion:,}")
    table.add_row("in the books", f"{compared.books.prompt:,}", f"{compared.books.completion:,}")
    difference, unexplained = compared.difference, compared.unexplained
    table.add_row("difference", f"{difference.prompt:+,}", f"{difference.completion:+,}")
    prompt, completion = compared.explained
    table.add_row("explained", _range(prompt), _range(completion))
    style = "red" if unexplained else ""
    table.add_row("unexplained", f"{unexplained.prompt:+,}", f"{unexplained.completion:+,}", style=style)
    console.print(table)
    _show_explanations(compared.explanations, console)
    if any(each.kind in {Kind.ABORTED, Kind.FAILED, Kind.HELD} for each in compared.explanations):
        console.print(
            f"  bounds: {pace.tokens_s:,.0f} tokens a second and choice, {pace.notice_us / 1000:,.0f} ms until an"
            " engine notices that a client left, and what was held",
            style="dim",
        )
    for place, sums in compared.unseen.items():
        if sums.events:
            console.print(
                f"  {sums.events:,} requests ({_tokens(sums.tokens)}) {_UNSEEN[place]}", markup=False, soft_wrap=True
            )
    for leak in report.leaks:
        console.print(
            f"  unexplained: {_signed(leak.unexplained)} between the scrapes of {_time(leak.from_us)} and"
            f" {_time(leak.to_us)}{_guess(leak.unexplained)}",
            style="red",
            markup=False,
            soft_wrap=True,
        )


def _guess(unexplained: Tokens) -> str:
    if unexplained.prompt >= 0 and unexplained.completion >= 0:
        return ": the engine counted what no event tells of (traffic past the gateway, or a lost event)"
    if unexplained.prompt <= 0 and unexplained.completion <= 0:
        return (
            ": the books have what no engine counted (an event twice, an altered one, or an engine that nobody scrapes)"
        )
    return ": events were altered, or several things went wrong"


def _show_explanations(explanations: Sequence[Explanation], console: Console) -> None:
    by_kind: defaultdict[Kind, list[Explanation]] = defaultdict(list)
    for each in explanations:
        by_kind[each.kind].append(each)
    for kind, members in by_kind.items():
        prompt, completion = _sum(each.prompt for each in members), _sum(each.completion for each in members)
        console.print(
            f"  {len(members):,} × {WORDS[kind]}: prompt {_range(prompt)}, completion {_range(completion)}",
            markup=False,
        )
        _ids([each.event_id for each in members], console)


def _show_counters(result: Result, console: Console) -> None:
    if result.counters:
        agreeing = sum(1 for each in result.counters if not each.difference)
        console.print(
            f"\n[bold]ledger and books[/bold]: {agreeing:,} of {len(result.counters):,} counters agree with what the"
            " events posted"
        )
    for compared in result.counters:
        if not compared.difference:
            continue
        counter = compared.counter
        console.print(
            f"  {counter.tenant} {counter.line} ({counter.window}, from {_time(counter.start_us)}): posted"
            f" {compared.posted.high:,}, events {compared.booked:,}, difference {compared.difference:+,},"
            f" unexplained {compared.unexplained:+,}",
            style="red" if compared.unexplained else "",
            markup=False,
            soft_wrap=True,
        )
        for why, words in _WHY.items():
            found = [each.event_id for each in compared.explanations if each.why is why]
            if found:
                console.print(f"    {len(found):,} × {words}", markup=False, soft_wrap=True)
                _ids(found, console)
    for why_not, count in result.skipped.items():
        console.print(f"  not compared: {count:,} × {why_not}", style="dim", markup=False, soft_wrap=True)


def _show_waiting(result: Result, console: Console) -> None:
    if result.holds:
        lapsed = sum(1 for each in result.holds if each.lapsed)
        console.print(f"\nheld, not settled: {len(result.holds):,} ({lapsed:,} of them past their time)")
        _ids([each.hold_id for each in result.holds], console)
    if result.undelivered:
        console.print(f"\nnot in the books yet: {len(result.undelivered):,}")
        for event_id, where, why in result.undelivered[:IDS_SHOWN]:
            console.print(f"    {event_id}: {where}{': ' + why if why else ''}", markup=False, soft_wrap=True)
        if len(result.undelivered) > IDS_SHOWN:
            console.print(f"    and {len(result.undelivered) - IDS_SHOWN:,} more (--format json lists all)")
    if result.unposted:
        console.print(f"\nbilled and posted to no budget, their holds were lost: {len(result.unposted):,}")
        _ids([event_id for event_id, _, _ in result.unposted], console)


def _show_suspects(result: Result, console: Console) -> None:
    for ids in result.suspects.twins:
        console.print(
            f"suspect: {', '.join(ids)} claim the same answer of an engine", style="red", markup=False, soft_wrap=True
        )
    for event_id in result.suspects.misposted:
        console.print(
            f"suspect: {event_id}: what it posted does not follow from its counts",
            style="red",
            markup=False,
            soft_wrap=True,
        )


def _ids(ids: Sequence[str], console: Console) -> None:
    more = f" and {len(ids) - IDS_SHOWN:,} more" if len(ids) > IDS_SHOWN else ""
    console.print(f"    {', '.join(ids[:IDS_SHOWN])}{more}", style="dim", markup=False, soft_wrap=True)


def document(result: Result) -> dict[str, Any]:
    """For ``--format json``: every event, times as in ISO 8601."""
    return {
        "period": {"label": result.period.label, "time_zone": result.period.time_zone},
        "status": result.status,
        "billed": [asdict(each) for each in result.day],
        "engines": [_engine_document(each, result) for each in result.engines],
        "counters": [_counter_document(each) for each in result.counters],
        "skipped": result.skipped,
        "holds": [
            {"id": each.hold_id, "tenant": each.tenant, "lapsed": each.lapsed, "amounts": dict(each.amounts)}
            for each in result.holds
        ],
        "undelivered": [{"id": event_id, "where": where, "why": why} for event_id, where, why in result.undelivered],
        "unposted": [{"id": event_id, "tenant": tenant, "tokens": n} for event_id, tenant, n in result.unposted],
        "suspects": asdict(result.suspects),
        "missing": result.missing,
    }


def _engine_document(report: EngineReport, result: Result) -> dict[str, Any]:
    compared, pace = report.compared, result.paces[report.compared.model]
    span = compared.span
    return {
        "model": compared.model,
        "from": _time(span.from_us),
        "to": _time(span.to_us),
        "requests": compared.events,
        "engine": {**asdict(span.tokens), "cached": span.cached, "finished": span.finished},
        "books": asdict(compared.books),
        "difference": asdict(compared.difference),
        "explained": [asdict(each) for each in compared.explained],
        "unexplained": asdict(compared.unexplained),
        "explanations": [
            {
                "kind": each.kind,
                "id": each.event_id,
                "prompt": asdict(each.prompt),
                "completion": asdict(each.completion),
            }
            for each in compared.explanations
        ],
        "not_compared": {
            place: {"requests": sums.events, **asdict(sums.tokens)} for place, sums in compared.unseen.items()
        },
        "leaks": [
            {"from": _time(each.from_us), "to": _time(each.to_us), **asdict(each.unexplained)} for each in report.leaks
        ],
        "bounds": {"tokens_s": pace.tokens_s, "notice_ms": pace.notice_us / 1000},
    }


def _counter_document(compared: CounterCompared) -> dict[str, Any]:
    counter = compared.counter
    return {
        "tenant": counter.tenant,
        "budget": counter.line,
        "window": counter.window,
        "from": _time(counter.start_us),
        "to": _time(counter.end_us),
        "held": counter.held,
        "granted": counter.granted,
        "posted": compared.posted.high,
        "booked": compared.booked,
        "difference": compared.difference,
        "unexplained": compared.unexplained,
        "explanations": [
            {"why": each.why, "id": each.event_id, "amount": asdict(each.amount)} for each in compared.explanations
        ],
    }


def _time(at_us: int) -> str:
    return iso_utc(at_us // 1000)


def _range(value: Range) -> str:
    if value == NOTHING:
        return "0"
    return f"{value.low:+,}" if value.low == value.high else f"{value.low:+,} to {value.high:+,}"


def _sum(ranges: Iterable[Range]) -> Range:
    total = NOTHING
    for each in ranges:
        total += each
    return total


def _tokens(tokens: Tokens) -> str:
    return f"{tokens.prompt:,} prompt + {tokens.completion:,} completion tokens"


def _signed(tokens: Tokens) -> str:
    return f"{tokens.prompt:+,} prompt, {tokens.completion:+,} completion tokens"

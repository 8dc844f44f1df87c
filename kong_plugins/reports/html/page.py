"""The page: what it shows and in which order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from string import Template

from kong_plugins.application.report import Latency, Percentiles, Report, Summary, TenantReport, Tokens, Top
from kong_plugins.domain.double_entry import Adjustment
from kong_plugins.domain.holds import Outcome
from kong_plugins.domain.money import MICRO_DIGITS, PICO_PER_MICRO, format_pico, minor_digits
from kong_plugins.domain.usage import Evidence
from kong_plugins.reports.html.charts import Column, Series, stacked_columns
from kong_plugins.reports.html.markup import Markup, Part, join, tag
from kong_plugins.reports.wording import mark_label, prices_words, title, unrated_words

SERIES = (
    Series("prompt", "prompt"),
    Series("prompt, cached", "cached"),
    Series("completion", "completion"),
    Series("reasoning", "reasoning"),
)
MARK_EVERY = {False: 6, True: 7}  # hours of a day; days of a month, from the first

EVIDENCE_WORDS = {
    Evidence.EXACT: "exact: the engine's final usage",
    Evidence.CONTINUOUS: "continuous: its last one before a stream ended early",
    Evidence.TOKENIZED: "tokenized: counted from the text",
    Evidence.HELD: "held: nobody knows",
}


def to_html(report: Report) -> str:
    """One self-contained page."""
    template = Template(files(__package__).joinpath("page.html").read_text("utf-8"))
    return template.substitute(title=join(title(report)), body=_body(report))


def _body(report: Report) -> Markup:
    head = tag("header", tag("h1", title(report)), tag("p", prices_words(report), class_="soft"))
    if report.empty:
        return join(head, tag("main", tag("p", "No events in this period.")))
    several = len(report.tenants) > 1
    return join(
        head,
        tag(
            "main",
            _heads(report),
            _alarm(unrated_words(report)),
            _timeline(report),
            _overview(report) if several else None,
            _all_tenants(report) if several else None,
            *(_tenant(report, n, tenant) for n, tenant in enumerate(report.tenants, 1)),
        ),
        tag(
            "footer",
            tag(
                "p",
                "Charges are rounded up once for each request, to a millionth of the currency. Cached tokens are part"
                " of the prompt, reasoning tokens of the completion. A reversal takes back a request that was tried"
                " again.",
                class_="soft",
            ),
        ),
    )


def _heads(report: Report) -> Markup:
    summary, currency = report.summary, report.prices.currency
    tokens = summary.tokens
    denied = summary.outcomes[Outcome.DENIED]
    tenths = 1000 * tokens.cached // tokens.prompt if tokens.prompt else 0
    cached = f"{tenths // 10}.{tenths % 10} % of prompts cached" if tokens.prompt else "no prompts"
    heads = (
        ("Net", _net(report.net), "what is owed, adjustments included"),
        ("Requests", f"{summary.requests:,}", f"{denied:,} refused, {summary.reversals:,} reversed"),
        ("Tokens", f"{tokens.total:,}", cached),
        ("Saved by the cache", _pico(summary.charges.saved, currency), f"{tokens.cached:,} tokens"),
    )
    return tag(
        "dl",
        *(tag("div", tag("dt", name), tag("dd", value, tag("small", words))) for name, value, words in heads),
        class_="heads",
    )


def _alarm(warnings: Sequence[str]) -> Markup | None:
    if not warnings:
        return None
    return tag("div", *(tag("p", warning) for warning in warnings), class_="alarm", role="alert")


def _timeline(report: Report) -> Markup:
    monthly = report.scope.period.monthly
    step = "day" if monthly else "hour"
    columns = []
    for n, bucket in enumerate(report.timeline):
        label = mark_label(report, bucket.start_ms)
        values = _stack(bucket.tokens)
        words = ", ".join(f"{one.name} {value:,}" for one, value in zip(SERIES, values, strict=True))
        marked = n % MARK_EVERY[monthly] == 0
        columns.append(Column(values, f"{label}: {bucket.requests:,} requests; {words}", label if marked else None))
    busiest = max(report.timeline, key=lambda bucket: bucket.tokens.total)
    what = (
        f"Column chart of tokens by {step}. Most in {mark_label(report, busiest.start_ms)}:"
        f" {busiest.tokens.total:,} tokens. The figures are in the table below."
    )
    rows = [
        (
            mark_label(report, bucket.start_ms),
            f"{bucket.requests:,}",
            *(f"{value:,}" for value in _stack(bucket.tokens)),
        )
        for bucket in report.timeline
        if bucket.requests or bucket.tokens.total
    ]
    figures = _table((step, "requests", *(one.name for one in SERIES)), rows, f"Tokens by {step}")
    return tag(
        "section",
        tag("h2", f"Tokens by {step}"),
        stacked_columns(columns, SERIES, what),
        tag("details", tag("summary", "Figures"), figures),
    )


def _stack(tokens: Tokens) -> tuple[int, ...]:
    """Nothing in it twice. A reversal whose request is not in the books leaves less than nothing: not drawn."""
    parts = (tokens.prompt - tokens.cached, tokens.cached, tokens.completion - tokens.reasoning, tokens.reasoning)
    return tuple(max(0, part) for part in parts)


def _overview(report: Report) -> Markup:
    currency = report.prices.currency
    largest = max(1, *(tenant.net.get(currency, 0) for tenant in report.tenants))
    rows = []
    for n, tenant in enumerate(report.tenants, 1):
        share = max(0, 100 * tenant.net.get(currency, 0) // largest)
        bar = tag("span", class_="share", style=f"width:{share}%", aria_hidden="true")
        name = tag("a", tenant.tenant, href=f"#tenant-{n}")
        rows.append(
            (
                join(name, bar),
                f"{tenant.summary.requests:,}",
                f"{tenant.summary.tokens.total:,}",
                _net(tenant.net, currency),
            )
        )
    total = ("all", f"{report.summary.requests:,}", f"{report.summary.tokens.total:,}", _net(report.net, currency))
    table = _table(
        ("tenant", "requests", "tokens", f"net, {currency}"), [*rows, total], None, sums=1, wide=(1,), long=True
    )
    return tag("section", tag("h2", "Tenants"), table)


def _all_tenants(report: Report) -> Markup:
    return tag(
        "section",
        tag("h2", "All tenants together"),
        _account(report.summary, report.adjustments, report.net, report.prices.currency),
        tag("div", _requests(report.summary), _latency(report.latency), class_="pair"),
    )


def _tenant(report: Report, n: int, tenant: TenantReport) -> Markup:
    currency = report.prices.currency
    return tag(
        "section",
        tag("h2", tenant.tenant),
        _account(tenant.summary, tenant.adjustments, tenant.net, currency),
        _models(tenant, currency) if len(tenant.models) > 1 else _only_model(tenant),
        tag("div", _requests(tenant.summary), _latency(tenant.latency), class_="pair"),
        tag(
            "div",
            _tops("Busiest routes", "route", tenant.routes, currency),
            _tops("Busiest credentials", "credential", tenant.credentials, currency),
            class_="pair",
        ),
        _adjustments(tenant.adjustments),
        class_="tenant",
        id=f"tenant-{n}",
    )


def _account(summary: Summary, adjustments: Sequence[Adjustment], net: Mapping[str, int], currency: str) -> Markup:
    """From tokens to what is owed, line by line."""
    used, charged = summary.used, summary.charged
    rows: list[tuple[str, str, int | None, str]] = [
        ("prompt, not cached", f"{used.prompt - used.cached:,}", charged.uncached, currency),
        ("prompt, cached", f"{used.cached:,}", charged.cached, currency),
        ("completion", f"{used.completion - used.reasoning:,}", charged.completion, currency),
        ("reasoning", f"{used.reasoning:,}", charged.reasoning, currency),
    ]
    if charged.request:
        rows.append(("price per request", "", charged.request, currency))
    rows.append(("rounding up", "", charged.rounding, currency))
    rows.append(("charged", f"{used.total:,}", charged.amount * PICO_PER_MICRO, currency))
    if summary.unrated:
        rows.append(("not rated, in no amount", f"{summary.unrated_tokens:,}", None, currency))
    if summary.reversals:
        taken = summary.reversed_charges.amount * PICO_PER_MICRO
        rows.append((f"{summary.reversals:,} reversed", f"{summary.reversed_tokens.total:,}", taken, currency))
    for (kind, of), amount in sorted(_by_kind(adjustments).items()):
        rows.append((kind, "", amount * PICO_PER_MICRO, of))
    for of, owed in net.items():
        rows.append(("net", f"{summary.tokens.total:,}" if of == currency else "", owed * PICO_PER_MICRO, of))
    digits = max(len(format_pico(amount or 0, of).partition(".")[2]) for _, _, amount, of in rows)
    shown = [
        (name, tokens, "–" if amount is None else _pico(amount, of, currency, digits))
        for name, tokens, amount, of in rows
    ]
    return _table(("", "tokens", f"{currency}"), shown, None, sums=len(net))


def _by_kind(adjustments: Iterable[Adjustment]) -> dict[tuple[str, str], int]:
    sums: dict[tuple[str, str], int] = {}
    for one in adjustments:
        key = (f"{one.kind}s", one.currency)
        sums[key] = sums.get(key, 0) - one.amount
    return sums


def _only_model(tenant: TenantReport) -> Markup | None:
    return tag("p", f"All of it {tenant.models[0].model or 'of no model'}.", class_="soft") if tenant.models else None


def _models(tenant: TenantReport, currency: str) -> Markup:
    rows = [
        (
            model.model or "–",
            f"{model.summary.requests:,}",
            f"{model.summary.tokens.prompt:,}",
            f"{model.summary.tokens.completion:,}",
            f"{model.summary.tokens.total:,}",
            _micro(model.summary.charges.amount, currency, currency) if _rated(model.summary) else "not rated",
        )
        for model in tenant.models
    ]
    return join(
        tag("h3", "Models"),
        _table(("model", "requests", "prompt", "completion", "tokens", currency), rows, None, wide=(1, 2, 3)),
    )


def _rated(summary: Summary) -> bool:
    """Any of it has a price, or nothing needs one."""
    return bool(summary.charges.amount) or not summary.unrated


def _requests(summary: Summary) -> Markup:
    rows: list[tuple[Part, ...]] = [
        (outcome.value, f"{summary.outcomes[outcome]:,}") for outcome in Outcome if summary.outcomes[outcome]
    ]
    rows += [(f"denied with {status}", f"{count:,}") for status, count in sorted(summary.denied.items()) if status]
    grades = [
        (words, f"{summary.evidence[grade]:,}") for grade, words in EVIDENCE_WORDS.items() if summary.evidence[grade]
    ]
    return tag(
        "div",
        tag("h3", "How requests ended"),
        _table(("outcome", "requests"), rows, None),
        join(tag("h3", "How usage is known"), _table(("evidence", "requests"), grades, None)) if grades else None,
    )


def _latency(latency: Latency) -> Markup | None:
    kinds = (("first byte", latency.first), ("whole answer", latency.whole), ("upstream", latency.upstream))
    rows = [(name, *_seconds(found)) for name, found in kinds if found is not None]
    if not rows:
        return None
    return tag("div", tag("h3", "Latency in seconds"), _table(("", "median", "95 %", "99 %"), rows, None))


def _seconds(found: Percentiles) -> tuple[str, ...]:
    return tuple(f"{ms // 1000}.{ms % 1000:03}" for ms in (found.p50, found.p95, found.p99))


def _tops(heading: str, what: str, tops: Sequence[Top], currency: str) -> Markup | None:
    if not tops:
        return None
    rows = [(top.name, f"{top.requests:,}", f"{top.tokens:,}", _micro(top.amount, currency, currency)) for top in tops]
    return tag("div", tag("h3", heading), _table((what, "requests", "tokens", currency), rows, None, wide=(1,)))


def _adjustments(adjustments: Sequence[Adjustment]) -> Markup | None:
    if not adjustments:
        return None
    rows = [
        (f"{one.kind}: {one.reason}", one.reference or "–", _micro(one.amount, one.currency)) for one in adjustments
    ]
    head = ("credits, refunds and corrections", "about", "in the tenant's favour")
    return join(tag("h3", "Adjustments"), _table(head, rows, None, wide=(1,), words=(1,)))


def _table(
    head: Sequence[str],
    rows: Iterable[Sequence[Part]],
    caption: str | None,
    *,
    sums: int = 0,
    wide: Sequence[int] = (),
    words: Sequence[int] = (),
    long: bool = False,
) -> Markup:
    """The first cell of a row names it. ``sums``: so many last rows are sums. ``wide``: columns that a phone does
    without; ``words``: columns of text. ``long``: paper may break it."""
    rows = list(rows)

    def cell(name: str, n: int, part: Part, **attributes: Part) -> Markup:
        classes = [*(["wide"] if n in wide else ()), *(["words"] if n in words else ())]
        return tag(name, part, class_=" ".join(classes) or None, **attributes)

    body = [
        tag(
            "tr",
            cell("th", 0, row[0], scope="row"),
            *(cell("td", n, part) for n, part in enumerate(row[1:], 1)),
            class_="sum" if n >= len(rows) - sums else None,
        )
        for n, row in enumerate(rows)
    ]
    table = tag(
        "table",
        tag("caption", caption) if caption else None,
        tag("thead", tag("tr", *(cell("th", n, name, scope="col") for n, name in enumerate(head)))),
        tag("tbody", *body),
        class_="long" if long else None,
    )
    return tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=caption or head[0] or "amounts")


def _micro(amount: int, currency: str, named: str = "") -> Markup:
    return _pico(amount * PICO_PER_MICRO, currency, named, MICRO_DIGITS if named else 0)


def _pico(amount: int, currency: str, named: str = "", digits_min: int = 0) -> Markup:
    """Exact; digits beyond the currency's own in small, and as many as ``digits_min`` so that a column is even. A
    currency that the column's head has ``named`` is not said again."""
    whole, _, decimals = format_pico(amount, currency).partition(".")
    decimals = decimals.ljust(digits_min, "0")
    own, fine = decimals[: minor_digits(currency)], decimals[minor_digits(currency) :]
    point = "." if own else ""
    small = tag("span", f"{'' if own else '.'}{fine}", class_="fine") if fine else None
    return join(f"{whole}{point}{own}", small, f" {currency}" if currency != named else None)


def _net(net: Mapping[str, int], named: str = "") -> Markup:
    parts: list[Part] = []
    for currency, amount in net.items():
        parts += [", " if parts else None, _micro(amount, currency, named)]
    return join(*parts)

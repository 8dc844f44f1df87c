"""The collector in the foreground, for `token-quota collector run` and `drain`."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from rich.console import Console
from rich.live import Live
from rich.logging import RichHandler

from kong_plugins.adapters.ledger import connect_ledger
from kong_plugins.adapters.outbox import Outbox, SinkStatus, connect_outbox
from kong_plugins.adapters.sinks import open_sink
from kong_plugins.application.deliver import Pace
from kong_plugins.application.ports import LedgerUnavailable, Sink
from kong_plugins.collector.access import read_tokens
from kong_plugins.collector.periodic import PeriodicJob
from kong_plugins.collector.process import Collector, NamedSink
from kong_plugins.collector.sink_names import name_and_url
from kong_plugins.collector.terminal import Rates, line, table

LINE_EVERY_S = 10.0
CHECK_S = 0.5
DRAIN_CHECK_S = 0.1
LEDGER_TIMEOUT_S = 2.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunOptions:
    """``listen``: None serves nothing. ``drain_within_s``: not None ends the process when every sink has everything, or
    after that time."""

    ledger_url: str
    sinks: tuple[str, ...]
    listen: str | None = None
    token_file: Path | None = None
    engines: tuple[str, ...] = ()
    batch: int = 5000
    linger_s: float = 0.2
    keep_s: float = 0.0
    drain_within_s: float | None = None


def run_collector(options: RunOptions) -> int:
    """Until a signal comes or all is drained. Returns the exit status."""
    console = Console(stderr=True, highlight=False)
    _log_to(console)
    stop = threading.Event()
    with ExitStack() as resources:
        resources.callback(os.umask, _keep_from_others())
        for number in (signal.SIGINT, signal.SIGTERM):
            resources.callback(signal.signal, number, signal.signal(number, lambda *_: stop.set()))
        try:
            sinks = _named_sinks(options.sinks)
            outbox = connect_outbox(options.ledger_url)
            resources.callback(outbox.close)
            collector = _start(options, sinks, outbox, resources, console)
        except (ValueError, ImportError) as error:
            console.print(f"token-quota collector: {error}", style="red", markup=False, soft_wrap=True)
            return 1
        except LedgerUnavailable as error:
            console.print(f"token-quota collector: no ledger: {error}", style="red", markup=False, soft_wrap=True)
            return 1
        return _wait(collector, options, stop, console)


def _keep_from_others() -> int:
    """What sinks write is no other user's to read: who used how much, by name. The group's part is the operator's,
    whose umask is returned."""
    umask = os.umask(0o077)
    os.umask(umask | 0o007)
    return umask


def _log_to(console: Console) -> None:
    """Lines for a log, or above the live table."""
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False, log_time_format="%X")
        logging.basicConfig(level=logging.WARNING, handlers=[handler], format="%(message)s")
    else:
        logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")


def _named_sinks(urls: tuple[str, ...]) -> list[NamedSink]:
    """Each is opened here once, so that what is wrong with its URL ends the process and not its thread.

    Raises:
        ValueError: not a sink's URL, or two of one name.
    """
    sinks: dict[str, NamedSink] = {}
    for url in urls:
        name, rest = name_and_url(url)
        if name in sinks:
            raise ValueError(f"two sinks are named {name}: give one of them another name with ?name=…")
        sinks[name] = NamedSink(name, _opener(rest, open_sink(rest)))
    return list(sinks.values())


def _opener(url: str, first: Sink) -> Callable[[], Sink]:
    opened = [first]
    return lambda: opened.pop() if opened else open_sink(url)


def _start(
    options: RunOptions, sinks: list[NamedSink], outbox: Outbox, resources: ExitStack, console: Console
) -> Collector:
    ledger = connect_ledger(options.ledger_url, timeout_s=LEDGER_TIMEOUT_S)
    resources.callback(ledger.close)
    pace = Pace(options.batch, options.linger_s)
    collector = Collector(outbox, ledger, sinks, pace=pace, keep_s=options.keep_s, jobs=_jobs(options))
    if options.listen is not None:
        from kong_plugins.collector.http_app import make_app
        from kong_plugins.collector.http_server import HttpServer, bind
        from kong_plugins.collector.intake import Intake

        tokens = read_tokens(options.token_file, os.environ)
        sock = bind(options.listen, tokens)
        app = make_app(
            Intake(ledger),
            tokens,
            metrics=collector.metrics.page,
            not_ready=collector.not_ready,
            count=collector.metrics.count_posted,
        )
        server = HttpServer(app, sock)
        server.start()
        resources.callback(server.stop)
        host, port = sock.getsockname()[:2]
        posts = "POST /log and /events, " if tokens else ""
        console.print(
            f"listening   http://{host}:{port} ({posts}/metrics, /healthz, /readyz)", markup=False, soft_wrap=True
        )
    for sink in sinks:
        console.print(f"sink        {sink.name}", markup=False, soft_wrap=True)
    collector.start()
    return collector


def _jobs(options: RunOptions) -> list[PeriodicJob]:
    """The engines' counters go into the first of the given books.

    Raises:
        ValueError: an engine's address is none, or there are no books.
    """
    if not options.engines:
        return []
    from kong_plugins.collector.engine_job import EngineJob

    books = next((urlsplit(url).path for url in options.sinks if urlsplit(url).scheme == "duckdb"), None)
    if books is None:
        raise ValueError("--engine keeps its counters in the books: add --sink duckdb:///path/books.duckdb")
    return [EngineJob(options.engines, Path(unquote(books))).every()]


def _wait(collector: Collector, options: RunOptions, stop: threading.Event, console: Console) -> int:
    rates = Rates()
    began = line_at = time.monotonic()
    code: int | None = None
    live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
    if live is not None:
        live.start()
    draining = options.drain_within_s is not None
    try:
        while code is None and not stop.wait(DRAIN_CHECK_S if draining else CHECK_S):
            code = _finished(collector, options, began)
            now = time.monotonic()
            if live is not None:
                live.update(table(collector.status(), collector.progress, rates.of(collector.progress)))
            elif now - line_at >= LINE_EVERY_S:
                line_at = now
                _say(collector, rates, console)
    finally:
        if live is not None:
            live.stop()
        in_time = collector.stop()
    _say(collector, Rates(), console)
    if not in_time:
        console.print("token-quota collector: a write did not end in time: its events are delivered again", style="red")
    if code is None:
        code = 1 if draining else 0
    return code if in_time else 1


def _finished(collector: Collector, options: RunOptions, began: float) -> int | None:
    if ended := collector.ended():
        _log.error("%s ended by itself: see above", ended)
        return 1
    if options.drain_within_s is None:
        return None
    try:
        if collector.drained():
            return 0
    except LedgerUnavailable as error:
        _log.warning("the ledger is out of reach: %s", error)
    if time.monotonic() - began > options.drain_within_s:
        _log.error("not drained in %.0f s", options.drain_within_s)
        return 1
    return None


def _say(collector: Collector, rates: Rates, console: Console) -> None:
    found = {each.sink: each for each in collector.status()}
    by_sink = rates.of(collector.progress)
    for sink, progress in collector.progress.items():
        text = line(sink, progress, found.get(sink, SinkStatus(sink)), by_sink[sink])
        console.print(text, markup=False, soft_wrap=True)

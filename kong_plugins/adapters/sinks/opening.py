"""A sink by its URL."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from kong_plugins.application.ports import Sink

Options = dict[str, str]

FORMS = (
    "duckdb:///path/books.duckdb, jsonl:///directory?rotate_mb=256&rotate=daily, clickhouse://user@host:8123/database,"
    " kafka://host:9092/topic or cloudevents+http://host/path"
)


def open_sink(url: str) -> Sink:
    """The sink at ``url``. Connects when first written to.

    Raises:
        ValueError: not a URL of a known form, or an option that the sink does not have.
    """
    parts = urlsplit(url)
    opener = _OPENERS.get(parts.scheme)
    if opener is None:
        raise ValueError(f"a sink's URL is {FORMS}; not one that starts with {parts.scheme!r}")
    pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    options = dict(pairs)
    if len(options) < len(pairs):
        raise ValueError(f"an option is given twice: {', '.join(name for name, _ in pairs)}")
    sink = opener(parts, options)
    if options:
        raise ValueError(f"{parts.scheme}:// has no option {', '.join(sorted(options))}")
    return sink


def _path(parts: SplitResult) -> Path:
    if parts.netloc or not parts.path.startswith("/") or parts.path == "/":
        raise ValueError(
            f"{parts.scheme}:// takes an absolute path with three slashes: {parts.scheme}:///var/lib/books"
        )
    return Path(unquote(parts.path))


def _duckdb(parts: SplitResult, _options: Options) -> Sink:
    from kong_plugins.adapters.sinks.duckdb_sink import DuckDBSink

    return DuckDBSink(_path(parts))


_OPENERS: dict[str, Callable[[SplitResult, Options], Sink]] = {
    "duckdb": _duckdb,
}

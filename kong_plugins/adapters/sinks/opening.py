"""A sink by its URL."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from kong_plugins.adapters.sinks.secrets import Secret
from kong_plugins.application.ports import Sink, SinkUnavailable

Options = dict[str, str]
MB = 1_000_000
_DATABASE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

FORMS = (
    "duckdb:///path/books.duckdb, jsonl:///directory?rotate_mb=256&rotate=daily, clickhouse://user@host:8123/database,"
    " kafka://host:9092/topic or cloudevents+http://host/path"
)


def open_sink(url: str) -> Sink:
    """The sink at ``url``. Connects when first written to.

    Raises:
        ValueError: not a URL of a known form, or an option that the sink does not have or take.
        ImportError: what the sink needs is not installed; the message says how to get it.
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


def _require(extra: str, *modules: str) -> None:
    for module in modules:
        if find_spec(module) is None:
            raise ImportError(f"no {module} here: pip install 'kong-token-quota[{extra}]'")


def _duckdb(parts: SplitResult, options: Options) -> Sink:
    _require("books", "duckdb", "pyarrow")
    from kong_plugins.adapters.sinks.duckdb_sink import WAIT_S, DuckDBSink

    return DuckDBSink(_path(parts), wait_s=seconds(options, "wait_s", WAIT_S))


def _jsonl(parts: SplitResult, options: Options) -> Sink:
    from kong_plugins.adapters.sinks.jsonl_sink import JsonLinesSink

    rotate = options.pop("rotate", None)
    if rotate not in {None, "daily"}:
        raise ValueError(f"rotate is 'daily' or left out, not {rotate!r}")
    rotate_mb = options.pop("rotate_mb", None)
    rotate_bytes = None if rotate_mb is None else whole_number("rotate_mb", rotate_mb) * MB
    return JsonLinesSink(_path(parts), rotate_bytes=rotate_bytes, daily=rotate == "daily")


def _http(parts: SplitResult, options: Options) -> Sink:
    from kong_plugins.adapters.sinks.http_sink import BATCH, TIMEOUT_S, HttpSink

    _without_password(parts)
    if not parts.hostname or parts.username:
        raise ValueError(f"{parts.scheme}:// takes a host and a path: {parts.scheme}://host/api/v1/events")
    _needs(options, "ca_file", parts.scheme == "cloudevents+https", "TLS: cloudevents+https://")
    batch = options.pop("batch", None)
    return HttpSink(
        SplitResult(parts.scheme.partition("+")[2], parts.netloc, parts.path or "/", "", ""),
        token=_secret("TOKEN_QUOTA_CLOUDEVENTS_TOKEN", options.pop("token_file", None)),
        batch=BATCH if batch is None else whole_number("batch", batch),
        timeout_s=seconds(options, "timeout_s", TIMEOUT_S),
        ca_file=options.pop("ca_file", None),
    )


def _clickhouse(parts: SplitResult, options: Options) -> Sink:
    _require("clickhouse", "clickhouse_connect")
    _require("books", "pyarrow")
    from kong_plugins.adapters.sinks.clickhouse_sink import TIMEOUT_S, ClickHouseSink, connect_server

    _without_password(parts)
    database = parts.path.strip("/")
    if not parts.hostname or not _DATABASE.fullmatch(database):
        raise ValueError("clickhouse:// takes a host and a database: clickhouse://user@host:8123/token_quota")
    secure = options.pop("secure", "false")
    if secure not in {"true", "false"}:
        raise ValueError(f"secure is 'true' or 'false', not {secure!r}")
    _needs(options, "ca_file", secure == "true", "TLS: secure=true")
    connect = partial(
        connect_server,
        parts.hostname,
        parts.port or (8443 if secure == "true" else 8123),
        database,
        user=unquote(parts.username or "default"),
        password=_secret("TOKEN_QUOTA_CLICKHOUSE_PASSWORD", options.pop("password_file", None)),
        secure=secure == "true",
        ca_file=options.pop("ca_file", None),
        timeout_s=seconds(options, "timeout_s", TIMEOUT_S),
    )
    return ClickHouseSink(connect, f"clickhouse://{parts.netloc}/{database}")


def _chdb(parts: SplitResult, options: Options) -> Sink:
    """ClickHouse as a library in this process, for trying it out."""
    _require("clickhouse", "clickhouse_connect")
    _require("books", "pyarrow")
    if find_spec("chdb") is None:
        raise ImportError("no chdb here: pip install chdb (534 MB)")
    from kong_plugins.adapters.sinks.clickhouse_sink import ClickHouseSink, connect_embedded

    database = options.pop("database", "token_quota")
    if not _DATABASE.fullmatch(database):
        raise ValueError(f"{database!r} is no name of a database: letters, digits and underscores")
    return ClickHouseSink(partial(connect_embedded, _path(parts), database), parts.geturl())


_KAFKA = {
    "security": "security.protocol",
    "mechanism": "sasl.mechanism",
    "ca_file": "ssl.ca.location",
    "certificate_file": "ssl.certificate.location",
    "key_file": "ssl.key.location",
    "compression": "compression.type",
    "message_max_bytes": "message.max.bytes",
}


def _kafka(parts: SplitResult, options: Options) -> Sink:
    _require("kafka", "confluent_kafka")
    from kong_plugins.adapters.sinks.kafka_sink import TIMEOUT_S, KafkaSink

    _without_password(parts)
    user, _, servers = parts.netloc.rpartition("@")
    topic = unquote(parts.path.strip("/"))
    if not servers or not topic or "/" in topic:
        raise ValueError("kafka:// takes servers and a topic: kafka://host1:9092,host2:9092/topic")
    security = options.get("security", "PLAINTEXT").upper()
    for name in ("ca_file", "certificate_file", "key_file"):
        _needs(options, name, security.endswith("SSL"), "TLS: security=SSL, or SASL_SSL with a user")
    _needs(options, "password_file", user, "a user: kafka://USER@host:9092/topic")
    if user and not security.startswith("SASL"):
        raise ValueError("kafka:// with a user works with SASL only: security=SASL_SSL&mechanism=SCRAM-SHA-512")
    return KafkaSink(
        servers,
        topic,
        user=unquote(user) or None,
        password=_secret("TOKEN_QUOTA_KAFKA_PASSWORD", options.pop("password_file", None)),
        settings={setting: options.pop(name) for name, setting in _KAFKA.items() if name in options},
        timeout_s=seconds(options, "timeout_s", TIMEOUT_S),
    )


def _needs(options: Options, name: str, given: object, what: str) -> None:
    """What would silently have no effect is a mistake: somebody believes that it is encrypted, or signed in."""
    if name in options and not given:
        raise ValueError(f"{name} works with {what}; add that, or leave {name} out")


def _without_password(parts: SplitResult) -> None:
    """A sink's URL is its name: in logs, metrics and the outbox's consumer groups."""
    if ":" in parts.netloc.rpartition("@")[0]:
        raise ValueError(
            f"no password in a {parts.scheme}:// URL: give password_file=PATH, or the environment's variable"
        )


def _secret(variable: str, file: str | None) -> Secret:
    """Looked at once now, so that a wrong path is known at once.

    Raises:
        ValueError: the file cannot be read, or is empty.
    """
    secret = Secret(variable, file)
    try:
        secret.read()
    except SinkUnavailable as error:
        raise ValueError(str(error)) from None
    return secret


def whole_number(name: str, text: str) -> int:
    """Of an option.

    Raises:
        ValueError: it is none, or below one.
    """
    if not (text.isascii() and text.isdigit() and int(text)):
        raise ValueError(f"{name} is a whole number from 1, not {text!r}")
    return int(text)


def seconds(options: Options, name: str, default: float) -> float:
    """Take an option's value.

    Raises:
        ValueError: it is no number above zero.
    """
    text = options.pop(name, None)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is a number of seconds above 0, not {text!r}")
    return value


_OPENERS: dict[str, Callable[[SplitResult, Options], Sink]] = {
    "duckdb": _duckdb,
    "jsonl": _jsonl,
    "clickhouse": _clickhouse,
    "clickhouse+chdb": _chdb,
    "kafka": _kafka,
    "cloudevents+http": _http,
    "cloudevents+https": _http,
}

"""A ledger by its URL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import unquote, urlsplit

from redis import Redis, RedisCluster
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.connection import parse_url
from redis.exceptions import RedisClusterException, RedisError
from redis.retry import Retry
from redis.sentinel import Sentinel

from kong_plugins.adapters.ledger import layout
from kong_plugins.adapters.ledger.concurrency import Concurrency, detect
from kong_plugins.adapters.ledger.connections import Command, Connections
from kong_plugins.adapters.ledger.pooled_client import Client, PooledClient
from kong_plugins.adapters.ledger.redis_ledger import RedisLedger
from kong_plugins.adapters.ledger.redis_places import RedisPlaces
from kong_plugins.adapters.ledger.shared_socket import SharedSocket
from kong_plugins.application.ports import LedgerUnavailable
from kong_plugins.domain.shares import LEASE_US

TIMEOUT_S = 0.5  # An answer takes well under a millisecond; half a second is a ledger in trouble.

_FORMS = (
    "redis://[user:password@]host:port/db, rediss://… (TLS), unix:///path?db=0,"
    " redis+sentinel://host1:26379,host2:26379/service/db or redis+cluster://host1:6379,host2:6379"
)


def connect_ledger(
    url: str,
    *,
    timeout_s: float = TIMEOUT_S,
    grace_us: int = layout.GRACE_US,
    terminal_us: int = layout.TERMINAL_US,
    answers_bytes: int = layout.ANSWERS_BYTES,
    concurrency: Concurrency | None = None,
) -> RedisLedger:
    """The ledger at ``url``. Connects when first used (a Cluster: now).

    ``timeout_s`` covers an operation with everything in it: connecting, and a second try when the connection broke.
    ``grace_us`` is how long after its time a hold may still be settled, ``terminal_us`` how long its end is remembered,
    ``answers_bytes`` how much of whole answers is kept for a tenant's retries.
    ``concurrency``: threads or greenlets; detected from whether gevent has patched sockets.

    Raises:
        ValueError: not a URL of a known form.
        LedgerUnavailable: no node of a Cluster answered.
    """
    connections = _connections(url, timeout_s, concurrency or detect())
    return RedisLedger(connections, grace_us=grace_us, terminal_us=terminal_us, answers_bytes=answers_bytes)


def connect_places(
    url: str, *, timeout_s: float = TIMEOUT_S, lease_us: int = LEASE_US, concurrency: Concurrency | None = None
) -> RedisPlaces:
    """Engines' places in the store of the ledger at ``url``, by a connection of their own: a request asks for its place
    and for its hold at the same time. Connects when first used (a Cluster: now). Arguments and errors as above."""
    return RedisPlaces(_connections(url, timeout_s, concurrency or detect()), lease_us=lease_us)


def open_client(url: str, *, timeout_s: float) -> Client:
    """A redis-py client of the ledger at ``url``, for work that is not on a request's way. Retries nothing by itself.

    Raises:
        ValueError: not a URL of a known form.
        LedgerUnavailable: no node of a Cluster answered.
    """
    scheme = urlsplit(url).scheme
    try:
        return _CLIENTS[scheme](url, _options(timeout_s))
    except KeyError:
        raise ValueError(f"a ledger's URL is {_FORMS}; not one that starts with {scheme!r}") from None
    except (RedisError, RedisClusterException) as error:  # a Cluster is asked for its nodes at once
        raise LedgerUnavailable(f"cannot connect: {error}") from error


def _connections(url: str, timeout_s: float, concurrency: Concurrency) -> Connections:
    scheme = urlsplit(url).scheme
    if scheme in {"redis", "unix"}:
        return _shared_socket(url, timeout_s, concurrency)
    return PooledClient(open_client(url, timeout_s=timeout_s), timeout_s=timeout_s)


def _shared_socket(url: str, timeout_s: float, concurrency: Concurrency) -> SharedSocket:
    options = parse_url(url)  # type: ignore[no-untyped-call]
    address = options.get("path") or (options.get("host", "localhost"), int(options.get("port", 6379)))
    greeting: list[Command] = []
    if password := options.get("password"):
        greeting.append(("AUTH", options.get("username") or "default", password))
    if database := int(options.get("db", 0)):
        greeting.append(("SELECT", database))
    return SharedSocket(
        lambda within_s: concurrency.connect(address, within_s), concurrency, timeout_s=timeout_s, greeting=greeting
    )


def _options(timeout_s: float) -> dict[str, Any]:
    """redis-py by itself would try ten times, five seconds each."""
    return {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),
    }


def _plainly(url: str, options: dict[str, Any]) -> Client:
    # A ledger behind TLS too, for OpenSSL does not let one thread read while another writes on one connection.
    return Redis.from_url(url, **options)


def _sentinel(url: str, options: dict[str, Any]) -> Client:
    parts = urlsplit(url)
    service, _, database = parts.path.strip("/").partition("/")
    if not service:
        raise ValueError(f"name the service that the Sentinels watch: {_FORMS}")
    secrets = {"username": _plain(parts.username), "password": _plain(parts.password)}
    sentinel = Sentinel(_hosts(parts.netloc, 26379), sentinel_kwargs=options, **options)  # type: ignore[no-untyped-call]
    client: Client = sentinel.master_for(service, db=int(database or 0), **secrets)  # type: ignore[no-untyped-call]
    return client


def _cluster(url: str, options: dict[str, Any]) -> Client:
    parts = urlsplit(url)
    nodes = [ClusterNode(host, port) for host, port in _hosts(parts.netloc, 6379)]  # type: ignore[no-untyped-call]
    return RedisCluster(
        startup_nodes=nodes,
        username=_plain(parts.username),
        password=_plain(parts.password),
        **options,
    )


_CLIENTS: dict[str, Callable[[str, dict[str, Any]], Client]] = {
    "redis": _plainly,
    "unix": _plainly,
    "rediss": _plainly,
    "redis+sentinel": _sentinel,
    "redis+cluster": _cluster,
}


def _hosts(netloc: str, default_port: int) -> list[tuple[str, int]]:
    hosts = []
    for part in netloc.rpartition("@")[2].split(","):
        where = urlsplit(f"//{part}")
        hosts.append((where.hostname or "localhost", where.port or default_port))
    return hosts


def _plain(quoted: str | None) -> str | None:
    return unquote(quoted) if quoted else None

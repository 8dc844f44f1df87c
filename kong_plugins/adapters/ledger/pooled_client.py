"""Sentinel and Cluster through redis-py, which knows how to find the primary and the slot; a connection per caller."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisClusterException, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from kong_plugins.adapters.ledger.connections import Argument, Command, Script, by_hash, by_source, refused
from kong_plugins.application.ports import LedgerUnavailable


class Client(Protocol):
    """What redis-py's clients have in common."""

    def execute_command(self, *args: Any, **options: Any) -> Any: ...
    def close(self) -> None: ...


class PooledClient:
    """``Connections`` over a redis-py client that itself retries nothing."""

    def __init__(self, client: Client, *, timeout_s: float) -> None:
        self._client = client
        self._timeout_s = timeout_s

    def call(self, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> bytes:
        deadline = time.monotonic() + self._timeout_s
        try:
            try:
                reply = self._request(by_hash(script, keys, args), deadline)
            except NoScriptError:
                reply = self._request(by_source(script, keys, args), deadline)
        except (RedisError, RedisClusterException) as error:  # a Cluster that is gone raises what is no RedisError
            # redis-py takes the code of an error that it has a class for off its text.
            raise refused(script.name, str(error), getattr(error, "status_code", None)) from error
        if not isinstance(reply, bytes):
            raise LedgerUnavailable(f"{script.name}: the server answered {reply!r}")
        return reply

    def close(self) -> None:
        self._client.close()

    def _request(self, command: Command, deadline: float) -> object:
        try:
            return self._client.execute_command(*command)
        except (RedisConnectionError, RedisTimeoutError):
            if time.monotonic() >= deadline:
                raise
            return self._client.execute_command(*command)

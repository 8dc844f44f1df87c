"""Many partitions asked at once: one round trip for all of them, or one for each node of a Cluster.

A script touches one partition, whose keys share a hash tag. Scripts answer in msgpack: redis-py without its C parser
takes three times as long for the same entries as a stream's own reply.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import msgpack
from redis.exceptions import NoScriptError, RedisClusterException, RedisError

from kong_plugins.adapters.ledger.connections import Argument, Command, Script, advice, by_hash, by_source
from kong_plugins.application.ports import LedgerUnavailable
from kong_plugins.domain.partitions import hash_tag

RELEASED = "released"  # a consumer that nobody is: whoever comes next may have its entries at once


@dataclass(frozen=True, slots=True)
class Call:
    """One script on one partition's keys."""

    script: str
    keys: tuple[str, ...]
    args: tuple[Argument, ...]


class Calls:
    """Sends scripts and commands through a redis-py client. Threads may share it."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def scripts(self, calls: Sequence[Call]) -> list[Any]:
        """Each script's answer, unpacked (text as bytes).

        Raises:
            LedgerUnavailable: not all of them answered; those that ran have taken effect.
        """
        replies = self._send([by_hash(_script(call.script), call.keys, call.args) for call in calls])
        missing = [index for index, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if missing:
            again = [by_source(_script(calls[at].script), calls[at].keys, calls[at].args) for at in missing]
            for at, reply in zip(missing, self._send(again), strict=True):
                replies[at] = reply
        return [msgpack.unpackb(_checked(reply), raw=True) for reply in replies]

    def commands(self, commands: Sequence[Command]) -> list[Any]:
        """Each command's reply, as redis-py has it.

        Raises:
            LedgerUnavailable: not all of them answered; those that ran have taken effect.
        """
        return [_checked(reply) for reply in self._send(commands)]

    def close(self) -> None:
        self._client.close()

    def _send(self, commands: Sequence[Command]) -> list[Any]:
        if not commands:
            return []
        try:
            pipeline = self._client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            return list(pipeline.execute(raise_on_error=False))
        except (RedisError, RedisClusterException) as error:
            raise LedgerUnavailable(advice(str(error))) from error


def outbox_key(partition: int) -> str:
    return f"{hash_tag(partition)}:outbox"


def dead_key(partition: int) -> str:
    """Stream: sink, position, reason, then the entry's own fields."""
    return f"{hash_tag(partition)}:dead"


def dead_count_key(partition: int) -> str:
    """Hash: dead letters by sink."""
    return f"{hash_tag(partition)}:dead-count"


@cache
def _script(name: str) -> Script:
    source = (files("kong_plugins.adapters.outbox") / "lua" / f"{name}.lua").read_bytes()
    return Script(name, source, hashlib.sha1(source, usedforsecurity=False).hexdigest())


def _checked(reply: Any) -> Any:
    if isinstance(reply, Exception):
        raise LedgerUnavailable(advice(str(reply))) from reply
    return reply

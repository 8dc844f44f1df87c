"""Limits set on processes that run: open files and memory."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import redis


@contextmanager
def few_descriptors(pid: int, more: int) -> Iterator[None]:
    """``more`` than half the files that it has open now: what it closes above that it does not get again."""
    with _limited(pid, resource.RLIMIT_NOFILE, len(os.listdir(f"/proc/{pid}/fd")) // 2 + more):
        yield


@contextmanager
def little_memory(pid: int) -> Iterator[None]:
    """No more address space than it has."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    with _limited(pid, resource.RLIMIT_AS, pages * resource.getpagesize()):
        yield


@contextmanager
def _limited(pid: int, which: int, most: int) -> Iterator[None]:
    before = resource.prlimit(pid, which)
    resource.prlimit(pid, which, (most, before[1]))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):  # it may have ended of it
            resource.prlimit(pid, which, before)


@contextmanager
def full_ledger(client: redis.Redis) -> Iterator[None]:
    """As if ``maxmemory`` were reached: what would need more is refused (noeviction)."""
    used = int(client.info("memory")["used_memory"])
    before = str(client.config_get("maxmemory")["maxmemory"])
    client.config_set("maxmemory", max(1, used // 2))
    try:
        yield
    finally:
        with suppress(redis.ConnectionError):  # it may have been killed meanwhile, and starts as it was configured
            client.config_set("maxmemory", before)

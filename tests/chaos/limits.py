"""Limits set on processes that run: open files and memory."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import redis

MORE_MEMORY = 4 * 2**20  # beyond what a process has already: soon used up


@contextmanager
def few_descriptors(pid: int, more: int) -> Iterator[None]:
    """``more`` files beside those that it has open."""
    highest = max((int(name) for name in os.listdir(f"/proc/{pid}/fd")), default=0)
    with _limited(pid, resource.RLIMIT_NOFILE, highest + 1 + more):
        yield


@contextmanager
def little_memory(pid: int) -> Iterator[None]:
    """No more address space than it has, or hardly."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    with _limited(pid, resource.RLIMIT_AS, pages * resource.getpagesize() + MORE_MEMORY):
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
    before = client.config_get("maxmemory")["maxmemory"]
    client.config_set("maxmemory", max(1, used // 2))
    try:
        yield
    finally:
        with suppress(redis.ConnectionError):  # it may have been killed meanwhile, and starts as it was configured
            client.config_set("maxmemory", before)

"""Partitions of the ledger: every key of a tenant shares one hash tag, so one script can post and append atomically."""

from __future__ import annotations

from hashlib import blake2b

PARTITIONS = 64  # Enough to spread over any Redis Cluster we expect; few enough for one collector to read them all.


def partition_of(tenant: str) -> int:
    """0..63, the same in every process and version."""
    return blake2b(tenant.encode("utf-8", "surrogateescape"), digest_size=2).digest()[0] % PARTITIONS


def hash_tag(partition: int) -> str:
    """The Redis Cluster hash tag of a partition, ``{p17}``."""
    return f"{{p{partition}}}"

"""Stream entries as ``OutboxEntry``. A position says the partition too: ``17:1763830000000-0``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

from kong_plugins.application.ports import OutboxEntry


def read_entry(partition: int, stream_id: bytes, fields: Sequence[bytes]) -> OutboxEntry:
    """``fields``: id and event by name, then ``posted.LINE`` and amount."""
    event_id, event = fields[1], fields[3]
    posted = tuple((_line(fields[at]), int(fields[at + 1])) for at in range(4, len(fields), 2)) if fields[4:] else ()
    return OutboxEntry(f"{partition}:{stream_id.decode()}", text(event_id), event, posted)


def by_partition(positions: Iterable[str]) -> dict[int, list[str]]:
    """Stream ids by partition.

    Raises:
        ValueError: not a position.
    """
    found: dict[int, list[str]] = {}
    for position in positions:
        partition, _, stream_id = position.partition(":")
        found.setdefault(int(partition), []).append(stream_id)
    return found


def text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


@lru_cache(maxsize=4096)
def _line(field: bytes) -> str:
    return text(field).removeprefix("posted.")

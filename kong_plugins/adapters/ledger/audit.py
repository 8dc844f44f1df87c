"""A look at the ledger from outside, changing nothing: holds that are open, and counters of windows that are over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

import msgpack

from kong_plugins.adapters.ledger import layout
from kong_plugins.adapters.ledger.connect import open_client
from kong_plugins.adapters.outbox.calls import Calls
from kong_plugins.domain.partitions import PARTITIONS, hash_tag, partition_of
from kong_plugins.domain.windows import FixedWindow

TIMEOUT_S = 5.0
_PAGE = 500
_INDEXES = ("open", "lapsed")
_OPEN_STATES = {b"open", b"lapsed"}


@dataclass(frozen=True, slots=True)
class OpenHold:
    """A request that nobody has settled. ``event``: what its expiry would say. ``amounts``: by line key, in the
    budgets' units; a lapsed hold takes nothing off its budgets any more, yet may still be settled."""

    hold_id: str
    tenant: str
    lapsed: bool
    event: bytes
    amounts: tuple[tuple[str, int], ...]


class LedgerAudit:
    """
    Raises:
        LedgerUnavailable: from every method.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def close(self) -> None:
        self._calls.close()

    def open_holds(self) -> Iterator[OpenHold]:
        """Partition by partition. One that ends meanwhile may be missing."""
        for partition in range(PARTITIONS):
            tag = f"{hash_tag(partition)}:"
            indexes = self._calls.commands([("ZRANGE", f"{tag}{name}", 0, -1) for name in _INDEXES])
            members = sorted({member for index in indexes for member in index})
            for start in range(0, len(members), _PAGE):
                page = members[start : start + _PAGE]
                packed = self._calls.commands([("GET", f"{tag}hold:".encode() + member) for member in page])
                for member, hold in zip(page, packed, strict=True):
                    if hold is not None and (found := _open_hold(member, hold)) is not None:
                        yield found

    def committed(self, counters: Sequence[tuple[str, str, FixedWindow, int]]) -> list[int | None]:
        """What counters have committed, by tenant, line key, window and the window's start (microseconds). They outlive
        their windows by the time to live of a hold and its grace; then, or where there never was one: None."""
        keys = [
            f"{hash_tag(partition_of(tenant))}:count:{layout.counter_path(tenant, line, window)}:{start_us}"
            for tenant, line, window, start_us in counters
        ]
        found = self._calls.commands([("HGET", key, "c") for key in keys])
        return [None if value is None else int(value) for value in found]


def connect_audit(url: str, timeout_s: float = TIMEOUT_S) -> LedgerAudit:
    """For the ledger at ``url``.

    Raises:
        ValueError: not a URL of a known form.
        LedgerUnavailable: no node of a Cluster answered.
    """
    return LedgerAudit(Calls(open_client(url, timeout_s=timeout_s)))


def _open_hold(member: bytes, packed: bytes) -> OpenHold | None:
    hold = msgpack.unpackb(packed, raw=True)
    if hold[b"s"] not in _OPEN_STATES:
        return None
    tenant = unquote(_text(member).partition("/")[0], errors="surrogateescape")
    amounts = tuple((_text(line[1]), int(line[5])) for line in hold[b"b"])
    return OpenHold(_text(hold[b"i"]), tenant, hold[b"s"] == b"lapsed", hold[b"v"], amounts)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")

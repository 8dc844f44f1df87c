"""Leases of nodes in the in-memory ledger. The model of lua/leases.lua."""

from __future__ import annotations

from dataclasses import dataclass, field

from kong_plugins.adapters.ledger import layout


@dataclass(slots=True)
class Lease:
    """What a node holds, by counter, until ``ends_us``."""

    partition: int
    ends_us: int = 0
    turn: int = -1
    amounts: dict[str, int] = field(default_factory=dict)

    def move(self, path: str, amount: int) -> int:
        """Take up to ``amount`` out of it for a hold. Returns how much there was."""
        moved = min(self.amounts.get(path, 0), amount)
        if moved:
            self.amounts[path] -= moved
            if not self.amounts[path]:
                del self.amounts[path]
        return moved


class Leases:
    """Not safe to share: the ledger's lock is around every call."""

    def __init__(self) -> None:
        self._leases: dict[str, Lease] = {}

    def find(self, member: str, partition: int) -> Lease:
        """An empty one where there is none."""
        return self._leases.get(member) or Lease(partition)

    def keep(self, member: str, lease: Lease, now_us: int) -> None:
        """Of one that holds nothing only the turn is remembered, for questions that are still on their way."""
        if not lease.amounts:
            lease.ends_us = now_us + layout.LATE_US
        self._leases[member] = lease

    def over(self, partition: int, now_us: int) -> list[Lease]:
        """Those of a partition that are over, taken out."""
        gone = [
            name for name, lease in self._leases.items() if lease.partition == partition and lease.ends_us <= now_us
        ]
        return [self._leases.pop(name) for name in gone]

"""Who has which slot, in the in-memory ledger. The model of what the scripts keep in ``{pN}:slots:TENANT/KEY``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable


class TakenSlots:
    """Not safe to share: the ledger's lock is around every call."""

    def __init__(self) -> None:
        self._holders: defaultdict[str, dict[str, int]] = defaultdict(dict)  # holds by until when they have one

    def count(self, path: str, now_us: int) -> int:
        """How many are taken now."""
        holders = self._holders[path]
        for hold_id in [hold_id for hold_id, until_us in holders.items() if until_us <= now_us]:
            del holders[hold_id]
        return len(holders)

    def take(self, path: str, hold_id: str, until_us: int) -> None:
        self._holders[path][hold_id] = until_us

    def leave(self, paths: Iterable[str], hold_id: str) -> None:
        for path in paths:
            self._holders[path].pop(hold_id, None)

"""How many model names a tenant may make up.

A client chooses the name, and each one is a counter where a budget is kept per model, an event in the books and a line
in a report, though no engine serves it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

INVENTED_MAX = 64
FORGET_S = 24 * 3600.0
TENANTS_MAX = 10_000
SERVED_MAX = 4_096


class ModelNames:
    """Names that are configured, or that an engine has generated under, are free for everybody. Of all others a tenant
    has ``INVENTED_MAX`` in ``FORGET_S``. One plugin server's; what is forgotten first is a tenant seen longest ago."""

    def __init__(self, configured: Iterable[str] = ()) -> None:
        self._configured = frozenset(configured)
        self._served: OrderedDict[str, None] = OrderedDict()
        self._invented: OrderedDict[str, dict[str, float]] = OrderedDict()

    def admit(self, tenant: str, model: str, now_s: float) -> bool:
        """False: one name too many. ``now_s``: monotonic."""
        if model in self._configured or model in self._served:
            return True
        names = self._invented.setdefault(tenant, {})
        self._invented.move_to_end(tenant)
        if len(self._invented) > TENANTS_MAX:
            self._invented.popitem(last=False)
        if model not in names and len(names) >= INVENTED_MAX:
            for old in [name for name, since_s in names.items() if now_s - since_s > FORGET_S or name in self._served]:
                del names[old]
            if len(names) >= INVENTED_MAX:
                return False
        names.setdefault(model, now_s)
        return True

    def served(self, model: str) -> None:
        """An engine has generated under this name."""
        self._served[model] = None
        self._served.move_to_end(model)
        if len(self._served) > SERVED_MAX:
            self._served.popitem(last=False)

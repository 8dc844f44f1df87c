"""The plugin as Kong calls it: log only, one PDK call.

It settles as token-quota does and writes the same event, so that a request has its one event if either process lives;
the ledger keeps the first and drops the second. What needs a policy (usage that nobody saw) is token-quota's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from kong_plugins.adapters.kong_request import TAP, read_tap
from kong_plugins.adapters.kong_schema import complete, field_map
from kong_plugins.adapters.process_parts import ProcessParts, process_parts
from kong_plugins.application.settle import Settling

NAME = "billing-events"
VERSION = "0.1.0"
PRIORITY = 13
ON_ERROR = "open"  # The request is over when this runs.
LEDGER_URL_ENV = "TOKEN_QUOTA_LEDGER_URL"

SCHEMA: list[dict[str, dict[str, object]]] = [
    {
        "ledger_url": {
            "type": "string",
            "referenceable": True,
            "encrypted": True,
            "description": "token-quota's ledger. Unset: the plugin server's TOKEN_QUOTA_LEDGER_URL.",
        }
    },
    {
        "ledger_timeout_ms": {
            "type": "integer",
            "between": [10, 10_000],
            "default": 500,
            "description": "How long one ledger operation may take. Without an answer the event is tried again.",
        }
    },
]


class Plugin:
    """One configured row.

    Raises:
        ValueError: there is no ledger, or a field is wrong.
    """

    def __init__(self, config: Mapping[str, Any], parts: ProcessParts | None = None) -> None:
        known = dict(field_map(SCHEMA))
        given = {name: value for name, value in config.items() if name in known and value is not None}
        values, errors = complete(SCHEMA, given, "config")
        if errors:
            raise ValueError("; ".join(map(str, errors)))
        url = str(values.get("ledger_url") or os.environ.get(LEDGER_URL_ENV) or "")
        if not url:
            raise ValueError(f"config.ledger_url: set it, or {LEDGER_URL_ENV} in the plugin server's environment")
        self._parts = parts or process_parts()
        self._parts.join()
        try:
            poster = self._parts.poster(url, float(str(values["ledger_timeout_ms"])) / 1000)
        except BaseException:
            self._parts.leave()
            raise
        self._settling = Settling(poster)

    def log(self, kong: Any) -> None:
        """Settle what the tap saw of an admitted request."""
        seen = read_tap(kong.ctx.shared.get(TAP))
        admitted, ending = seen or (None, None)
        if admitted is not None and ending is not None:
            self._settling.settle(admitted, ending)

    def close(self) -> None:
        """The row is gone; the last row of a process drains what is still to be settled."""
        self._parts.leave()

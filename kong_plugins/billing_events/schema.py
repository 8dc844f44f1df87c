"""The configuration schema, in Kong's schema language, and a row's configuration as typed values."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any

from kong_plugins.adapters.kong_schema import complete, field_map

LEDGER_URL_ENV = "TOKEN_QUOTA_LEDGER_URL"


class Denial(StrEnum):
    """Why Kong answered in the engine's place."""

    OVER_BUDGET = "over_budget"
    UNAUTHENTICATED = "unauthenticated"
    REFUSED = "refused"


_GLOB = {"type": "string", "len_min": 1, "len_max": 256}
_NAME = {"type": "string", "len_min": 1, "len_max": 128}

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
            "description": "How long one ledger operation may take. Without an answer the event goes to the spool.",
        }
    },
    {
        "event_source": {
            "type": "string",
            "len_max": 256,
            "description": "Source of the events that this plugin writes by itself: of requests without token-quota,"
            " and of denials. Unset: /kong/ and the plugin server's host name.",
        }
    },
    {
        "event_headers": {
            "type": "set",
            "elements": _NAME,
            "description": "Request headers copied into the attributes of these events; name them in usage-gate's"
            " headers too.",
        }
    },
    {
        "event_claims": {
            "type": "set",
            "elements": _NAME,
            "description": "Claims of the JWT that Kong's jwt plugin verified, copied likewise; name them in"
            " usage-gate's claims too. A header of the same name wins.",
        }
    },
    {
        "record_denials": {
            "type": "set",
            "elements": {"type": "string", "one_of": [each.value for each in Denial]},
            "description": "Write an event of no usage, outcome denied, for what Kong refused on a metered path."
            " over_budget: 429 (token-quota's own record_denials tells more of it: set one of the two)."
            " unauthenticated: 401 and 403, tenant anonymous where nobody was authenticated. refused: any other error"
            " that Kong answered by itself. None of them ever waits in the spool or takes a settlement's place; beyond"
            " 1,000 at a time they are dropped, and the log says how many.",
        }
    },
    {
        "skip_tenants": {
            "type": "set",
            "elements": _GLOB,
            "description": "Tenants (globs) that get no event of this plugin's own. What token-quota let through always"
            " has its event: it is posted with it.",
        }
    },
    {
        "skip_routes": {
            "type": "set",
            "elements": _GLOB,
            "description": "Routes by name or id (globs), likewise.",
        }
    },
]


@dataclass(frozen=True, slots=True)
class BillingConfig:
    """One row."""

    ledger_url: str
    ledger_timeout_s: float
    event_source: str
    event_headers: tuple[str, ...]
    event_claims: tuple[str, ...]
    record_denials: frozenset[Denial]
    skip_tenants: tuple[str, ...]
    skip_routes: tuple[str, ...]

    def leaves_out(self, tenant: str, *route: str) -> bool:
        """``route``: each name it goes by."""
        return any(fnmatchcase(tenant, glob) for glob in self.skip_tenants) or any(
            fnmatchcase(name, glob) for glob in self.skip_routes for name in route
        )


def parse_config(config: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> BillingConfig:
    """Kong's ``config`` of a row: keys that Kong adds are left out, unset fields get their defaults.

    Raises:
        ValueError: there is no ledger, or a field is wrong; every one is named.
    """
    known = dict(field_map(SCHEMA))
    given = {name: value for name, value in config.items() if name in known and value is not None}
    values, errors = complete(SCHEMA, given, "config")
    if errors:
        raise ValueError("; ".join(map(str, errors)))
    url = str(values.get("ledger_url") or environ.get(LEDGER_URL_ENV) or "")
    if not url:
        raise ValueError(f"config.ledger_url: set it, or {LEDGER_URL_ENV} in the plugin server's environment")
    return BillingConfig(
        ledger_url=url,
        ledger_timeout_s=float(str(values["ledger_timeout_ms"])) / 1000,
        event_source=str(values.get("event_source") or f"/kong/{socket.gethostname()}"),
        event_headers=tuple(sorted({name.lower() for name in _texts(values, "event_headers")})),
        event_claims=tuple(sorted(_texts(values, "event_claims"))),
        record_denials=frozenset(map(Denial, _texts(values, "record_denials"))),
        skip_tenants=_texts(values, "skip_tenants"),
        skip_routes=_texts(values, "skip_routes"),
    )


def _texts(values: Mapping[str, object], name: str) -> tuple[str, ...]:
    found = values.get(name)
    return tuple(map(str, found)) if isinstance(found, list) else ()

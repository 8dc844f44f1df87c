"""Who the tenant of a request is."""

from __future__ import annotations

import re

from kong_plugins.adapters.kong_request import GateRequest
from kong_plugins.token_quota.config import Identity, QuotaConfig

# Printable ASCII without a space: it becomes part of ledger keys, events and an operator's command lines.
_HEADER_TENANT = re.compile(r"[!-~]{1,128}")


class NoIdentity(Exception):  # noqa: N818 - a state, not a fault
    """The request does not say who it is from. The message says what is missing."""


def tenant_of(gate: GateRequest, config: QuotaConfig) -> str:
    """The tenant's name. All but a consumer's has its kind in front, so that no client can take a consumer's name.

    Raises:
        NoIdentity: what the configured identity is read from is not there.
    """
    match config.identity:
        case Identity.CONSUMER:
            if gate.consumer is None:
                raise NoIdentity("No consumer was authenticated for this request; send your API key.")
            return gate.consumer.name
        case Identity.CREDENTIAL:
            if gate.credential is None:
                raise NoIdentity("No credential was authenticated for this request; send your API key.")
            return f"credential:{gate.credential}"
        case Identity.HEADER:
            value = gate.headers.get(config.identity_header, "")
            if not _HEADER_TENANT.fullmatch(value):
                raise NoIdentity(f"The header {config.identity_header} must name a tenant in 1 to 128 printable bytes.")
            return f"header:{value}"
        case Identity.IP:
            if not gate.ip:
                raise NoIdentity("The client's address is not known.")
            return f"ip:{gate.ip}"

"""The part of the configuration schema that says what happens while the ledger is away."""

from __future__ import annotations

from kong_plugins.domain.leases import PERCENT_MAX
from kong_plugins.token_quota.schema_kinds import Schema, choice, integer

OUTAGE: Schema = [
    {
        "store_outage": choice(
            "What becomes of requests while the ledger is away. closed: refused (503). open: let through without a look"
            " at any budget; they are billed, and charged to budgets when it is back. lease: each node holds a part of"
            " every budget in use and admits against it, so that an outage lets through what is leased and no more; a"
            " usual request does not wait for the ledger then. A retry is refused in each mode: whether it would be"
            " charged twice only the ledger knows.",
            "closed",
            "open",
            "lease",
            default="closed",
        )
    },
    {
        "lease_percent": integer(
            "lease: how much of what is left of a budget one node leases. It should be more than a usual request holds;"
            " and all nodes' together well below 100: near its end a budget is refused while nodes hold that much.",
            1,
            PERCENT_MAX,
            default=10,
        )
    },
    {
        "lease_ttl_s": integer(
            "lease: how long a node admits against a lease that it could not renew. What a node that died had leased is"
            " free again after twice that time.",
            5,
            3_600,
            default=120,
        )
    },
]

"""Fields of a row that say how its tenants share an engine."""

from __future__ import annotations

from kong_plugins.domain.affinity import RANKS_MAX
from kong_plugins.domain.concurrency import SLOTS_MAX
from kong_plugins.domain.salts import KEY_CHARS_MIN
from kong_plugins.domain.shares import KEPT_PERCENT, PLACES_MAX, WEIGHT_MAX
from kong_plugins.token_quota.schema_kinds import NAME, Schema, choice, distinct, integer, mapping, text

PRIORITY_MAX = 1_000_000

SHARING: Schema = [
    {
        "max_concurrent_requests": integer(
            "How many requests of a tenant run at a time on one service. One more is a 429 `concurrency_limit` that"
            " says when a place is likely to be free. Unset: any number.",
            1,
            SLOTS_MAX,
        )
    },
    {
        "max_concurrent_by_model": mapping(
            "Likewise for requests for one model (as clients name it), beside max_concurrent_requests.",
            {"type": "integer", "between": [1, SLOTS_MAX]},
        )
    },
    {
        "engine_places": integer(
            "How many requests of all tenants together run at a time on one service, whatever rows they have: the same"
            f" in each of them. The last {KEPT_PERCENT} percent are for tenants that hold less than others do, so"
            " whoever holds the most is refused first, with a 429 `engine_full` that says when to come back. Unset: any"
            " number.",
            1,
            PLACES_MAX,
        )
    },
    {
        "engine_weight": integer(
            "For engine_places: a tenant with weight 2 may hold twice as many places as one with 1 when both want more"
            " than there are.",
            1,
            WEIGHT_MAX,
            default=1,
        )
    },
    {
        "concurrency_ttl_s": integer(
            "When a place is free again that nobody gave back, because the gateway was killed. Longer than the longest"
            " answer, or more run than you allow; never longer than hold_ttl_s.",
            10,
            86_400,
            default=900,
        )
    },
    {
        "priority": integer(
            "The engine's priority of this row's requests; a smaller number is served sooner, without one it is 0."
            " Needs vLLM with --scheduling-policy priority. A client's own never reaches the engine.",
            -PRIORITY_MAX,
            PRIORITY_MAX,
        )
    },
    {
        "cache_salt": choice(
            "Who shares cached prefixes in the engine, and so can learn by timing what others of them sent. tenant:"
            " nobody but the tenant itself. group: the rows with the same cache_group. shared: all.",
            "tenant",
            "group",
            "shared",
            default="tenant",
        )
    },
    {"cache_group": text("For cache_salt group: the group's name.", match=NAME, len_max=64)},
    {
        "cache_salt_key": text(
            f"A secret of at least {KEY_CHARS_MIN} characters that salts are made with, so that nobody who reaches the"
            " engine another way can make a tenant's. The same on all gateways. ID:SECRET shows the id in each salt; of"
            " several, with spaces between, the first makes salts and `token-quota salt` knows them all. Another first"
            " one leaves caches cold once. Unset: the plugin server's TOKEN_QUOTA_CACHE_SALT_KEY, or no key.",
            referenceable=True,
            encrypted=True,
        )
    },
    {
        "cache_shared_prompts": distinct(
            "Public system prompts, each as SHA-256 of its text: requests that begin with one, of all rows that name"
            " it, share cached prefixes, also of what comes after it.",
            {"type": "string", "match": "^[0-9a-f]+$", "len_eq": 64},
        )
    },
    {
        "affinity": choice(
            "Sends requests that begin alike where that is cached. rank: to one of affinity_ranks ranks of a vLLM with"
            " --data-parallel-size. header: names the beginning in affinity_header, for a Kong upstream with hash_on"
            " header.",
            "off",
            "rank",
            "header",
            default="off",
        )
    },
    {"affinity_ranks": integer("For affinity rank: the engine's --data-parallel-size.", 2, RANKS_MAX)},
    {
        "affinity_header": text(
            "For affinity header: as in the upstream's hash_on_header. Letters and digits only: Kong 3.9 finds no"
            " header with a dash there, and then sends everything to one target.",
            match="^[A-Za-z][A-Za-z0-9]*$",
            len_max=64,
            default="xprefixaffinity",
        )
    },
    {
        "affinity_prefix_bytes": integer(
            "How much counts as the beginning, of tools, system prompt and all up to the first user's message. Large:"
            " each conversation goes its way. Smaller than the system prompt: all that share it go together.",
            64,
            1 << 20,
            default=16_384,
        )
    },
    {
        "affinity_overload_percent": integer(
            "For affinity rank: how much of an even share of the requests under way a rank takes before those that"
            " prefer it go on to their next one. 100 is round robin nearly.",
            100,
            10_000,
            default=125,
        )
    },
]

"""The configuration schema, in Kong's schema language: what decK users write, with what they read when it is wrong.

It is plain data, and the only place that says what an option means: Kong validates by it, the configuration reference
is printed from it (:mod:`kong_plugins.token_quota.reference`), defaults are read from it.
"""

from __future__ import annotations

from kong_plugins.domain.attempts import ATTEMPTS_MAX
from kong_plugins.domain.budgets import UNITS_MAX
from kong_plugins.domain.pricing import PRICE_MAX
from kong_plugins.token_quota.outage_schema import OUTAGE
from kong_plugins.token_quota.schema_kinds import NAME, Schema, array, choice, distinct, integer, mapping, text
from kong_plugins.token_quota.sharing_schema import SHARING

COUNT_MAX = 100_000_000  # tokens in one request: far above any context
UNKNOWN_CONTEXT_MAX_TOKENS = 4_096  # half of the smallest context of a current model: engines refuse more than fits
DERIVED_TTL_S = 120  # twice the longest pause of an SDK between two attempts


_PRICES: Schema = [
    {"model": text("Model name as clients send it, or * for every other model.", required=True)},
    {"prompt": integer("Micro-units per million uncached prompt tokens.", 0, PRICE_MAX, required=True)},
    {"cached": integer("Micro-units per million cached prompt tokens. Unset: as prompt.", 0, PRICE_MAX)},
    {"completion": integer("Micro-units per million completion tokens.", 0, PRICE_MAX, required=True)},
    {"request": integer("Micro-units for each request.", 0, PRICE_MAX, default=0)},
]

_BUDGET: Schema = [
    {
        "name": text(
            "The budget's identity: limit, mode and prices may change and what was used stays. Unique in a row; rows"
            " of one tenant that use the same name share the counter.",
            required=True,
            match=NAME,
            len_max=64,
        )
    },
    {"limit": integer("Tokens (or micro-units, for cost) allowed per window.", 0, UNITS_MAX, required=True)},
    {"window": choice("The window's unit.", "second", "minute", "hour", "day", "week", "month", default="day")},
    {
        "window_kind": choice(
            "fixed: on the calendar, all free again at its end. rolling: the last window_count units at any moment."
            " bucket: refills evenly, the whole limit in window_count units.",
            "fixed",
            "rolling",
            "bucket",
            default="fixed",
        )
    },
    {"window_count": integer("Length of a rolling window or a bucket's refill, in units.", 1, 1_000, default=1)},
    {"time_zone": text("IANA time zone of a fixed window's calendar.", default="UTC", len_max=64)},
    {
        "anchor_day": integer(
            "Day a fixed month starts on (1-31; a shorter month: its last day), or ISO weekday a week starts on (1-7).",
            1,
            31,
            default=1,
        )
    },
    {
        "counts": choice(
            "What is counted. cached_weighted: total, with cached prompt tokens at cached_percent. cost: micro-units"
            " by prices.",
            "total",
            "prompt",
            "completion",
            "cached_weighted",
            "cost",
            default="total",
        )
    },
    {"cached_percent": integer("For cached_weighted: a cached prompt token's share of a token.", 0, 100, default=10)},
    {
        "prices": array(
            "For cost: a price for each model the budget is for; * covers the rest.",
            {"type": "record", "fields": _PRICES},
            len_max=256,
        )
    },
    {
        "mode": choice(
            "hard: refuse what does not fit. soft: let it through and say so in log and event. shadow: the same, for"
            " trying out a hard budget.",
            "hard",
            "soft",
            "shadow",
            default="hard",
        )
    },
    {
        "scope": distinct(
            "Keep a counter for each value of these within the tenant: a budget with scope model has one per model.",
            {"type": "string", "one_of": ["model", "service", "route", "credential"]},
        )
    },
    {"models": array("Only requests for these models count. Unset: all.", {"type": "string", "len_min": 1})},
]

SCHEMA: Schema = [
    {
        "ledger_url": text(
            "Redis or Valkey: redis://, rediss:// and the other forms in the README. Unset: the plugin server's"
            " TOKEN_QUOTA_LEDGER_URL.",
            referenceable=True,
            encrypted=True,
        )
    },
    {
        "ledger_timeout_ms": integer(
            "How long one ledger operation may take. Without an answer in time a request gets a 503, because nothing"
            " passes unmetered.",
            10,
            10_000,
            default=500,
        )
    },
    {
        "identity": choice(
            "Who the tenant is. consumer: the Kong consumer (its username; without one custom_id:CUSTOM_ID)."
            " credential: each API key by itself, as credential:FINGERPRINT. header: identity_header, as header:VALUE."
            " ip: the client's address, as ip:ADDRESS.",
            "consumer",
            "credential",
            "header",
            "ip",
            default="consumer",
        )
    },
    {
        "identity_header": text(
            "For identity header: set by something you trust in front of Kong, and named in usage-gate's headers.",
            len_max=128,
        )
    },
    {
        "budgets": array(
            "Every budget must have room. None: requests are metered and billed without a limit.",
            {"type": "record", "fields": _BUDGET},
            default=[],
            len_max=16,
        )
    },
    {
        "context_tokens": integer(
            "The engine's context length (vLLM: --max-model-len). No choice is held for more, so that a large"
            " max_tokens does not shut out others. Never state less than the engine's.",
            1,
            COUNT_MAX,
        )
    },
    {
        "default_max_tokens": integer(
            f"Sent to the engine as the limit of a request that sets none. Unset: the rest of context_tokens, or"
            f" {UNKNOWN_CONTEXT_MAX_TOKENS} where that is unset too.",
            1,
            COUNT_MAX,
        )
    },
    {"max_choices": integer("Largest n and best_of a client may ask for.", 1, 128, default=8)},
    {
        "part_tokens": mapping(
            "The most tokens a content part of a type takes (image_url: 1500, input_audio: 3000). Parts that are not"
            " text and not named here are refused.",
            {"type": "integer", "between": [1, COUNT_MAX]},
        )
    },
    {
        "allow_fields": distinct(
            "Request fields admitted although they are refused by default because the prompt cannot be counted with"
            " them (chat_template, prompt_embeds, previous_response_id ...). Held at context_tokens.",
            {"type": "string", "len_min": 1},
        )
    },
    {
        "chat_template": choice(
            "What the model's chat template adds to a prompt. generic is generous and fits Llama, Qwen and others.",
            "generic",
            "deepseek_r1",
            default="generic",
        )
    },
    {
        "tokenizers": mapping(
            "Tokenizer by model name or glob: deepseek-r1, an OpenAI encoding (o200k_base), or the path of a"
            " tokenizer.json on the plugin server. Well-known model names need no entry. Those of models named here, in"
            " budgets or by chat_template are loaded when the row starts (deepseek-r1: 70 MB), others when needed.",
            {"type": "string", "len_min": 1},
        )
    },
    {
        "on_short": choice(
            "When a request does not fit even at its exact prompt count. deny: 429. clamp: lower its max_tokens to"
            " what is left, if that is at least clamp_min_tokens.",
            "deny",
            "clamp",
            default="deny",
        )
    },
    {"clamp_min_tokens": integer("The smallest max_tokens worth an answer.", 1, COUNT_MAX, default=64)},
    {
        "patience_s": integer(
            "How long a client is worth telling to wait. A longer wait is reported as insufficient_quota, which"
            " clients do not retry.",
            1,
            120,
            default=60,
        )
    },
    {
        "unmetered_paths": choice(
            "Any path that is no metered endpoint. deny: 404. allow: pass without metering.",
            "deny",
            "allow",
            default="deny",
        )
    },
    {
        "unknown_usage": choice(
            "What is charged when the engine worked and nobody saw anything of its answer (a whole answer the client"
            " left before it came). prompt: the counted prompt, or its bound in bytes where it cannot be counted. hold:"
            " all that was held. none: nothing. Generated text that was seen without its usage is always counted.",
            "prompt",
            "hold",
            "none",
            default="prompt",
        )
    },
    {
        "hold_ttl_s": integer(
            "When a hold that nobody settled ends by itself. Must be longer than the longest answer.",
            60,
            86_400,
            default=3_600,
        )
    },
    {
        "idempotency_keys": choice(
            "Which requests are known again when their client tries again, and charged once. header: those with an"
            " Idempotency-Key. derived: those too whose SDK tells that it tries again (OpenAI's and Anthropic's do), by"
            " what they ask. off: none; the header is ignored.",
            "off",
            "header",
            "derived",
            default="derived",
        )
    },
    {
        "idempotency_ttl_s": integer(
            "How long a request with an Idempotency-Key, and its answer, is remembered after it ended. Those that are"
            f" known by what they ask: {DERIVED_TTL_S} s.",
            60,
            86_400,
            default=3_600,
        )
    },
    {
        "idempotency_answer_bytes_max": integer(
            "The longest answer that is kept for a retry, in the gateway's memory while it passes and then, packed, in"
            " the ledger. A retry of a longer one is refused with 409, for it was charged. 0: none is kept.",
            0,
            4 << 20,
            default=256 << 10,
        )
    },
    {
        "idempotency_attempts_max": integer(
            "How many attempts at one request are charged as one. The next is charged on its own.",
            1,
            ATTEMPTS_MAX,
            default=4,
        )
    },
    *OUTAGE,
    *SHARING,
    {
        "record_denials": {
            "type": "boolean",
            "default": False,
            "description": "Write a billing event for each refused request too. A client that ignores its 429s then"
            " fills the outbox as fast as it can ask.",
        }
    },
    {"event_source": text("The billing event's source. Unset: /kong/ and the plugin server's host name.", len_max=256)},
    {
        "event_headers": distinct(
            "Request headers copied into the billing event's attributes (cost centre, team); name them in usage-gate's"
            " headers too.",
            {"type": "string", "len_min": 1, "len_max": 128},
        )
    },
    {
        "event_claims": distinct(
            "Claims of the JWT that Kong's jwt plugin verified, copied likewise; name them in usage-gate's claims too."
            " A header of the same name wins.",
            {"type": "string", "len_min": 1, "len_max": 128},
        )
    },
]

"""How a row's tenants share an engine: places, priority, salt and the way to a cached prefix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from kong_plugins.adapters.openai_wire import Request, opening, system_prompt
from kong_plugins.domain.affinity import prefix_key
from kong_plugins.domain.concurrency import Slots
from kong_plugins.domain.demand import Endpoint
from kong_plugins.domain.salts import NO_KEY, SaltKey, Sharing, prompt_digest, salt_keys, salt_of
from kong_plugins.domain.shares import EngineShare

SALT_KEY_ENV = "TOKEN_QUOTA_CACHE_SALT_KEY"
RANK_HEADER = "X-data-parallel-rank"  # vLLM's; usage-gate keeps a client's own away
PRIORITY_HEADER = "X-Vllm-Priority"  # likewise


@dataclass(frozen=True, slots=True)
class Affinity:
    """Where requests that begin alike go. One of ``ranks`` (a number of them) and ``header`` is set."""

    ranks: int | None
    header: str | None
    prefix_bytes: int
    overload_percent: int


@dataclass(frozen=True, slots=True)
class SharingRules:
    """``salted_by``: None where all share cached prefixes."""

    limit: int | None
    by_model: Mapping[str, int]
    slot_ttl_us: int
    engine_places: int | None
    engine_weight: int
    priority: int | None
    salted_by: Sharing | None
    group: str
    shared_prompts: frozenset[str]
    affinity: Affinity | None
    salt_key: SaltKey

    def __repr__(self) -> str:
        """Without the key: a configuration may be logged."""
        return f"SharingRules(limit={self.limit}, priority={self.priority}, salted_by={self.salted_by})"

    def slots(self, service: str, model: str) -> tuple[Slots, ...]:
        """What a request takes one of: a place on the service, and one there for its model."""
        key = f"requests|service={quote(service, safe='')}"
        slots = () if self.limit is None else (Slots(key, self.limit, self.slot_ttl_us),)
        if (limit := self.by_model.get(model)) is not None:
            return (*slots, Slots(f"{key}|model={quote(model, safe='')}", limit, self.slot_ttl_us))
        return slots

    def share(self, service: str) -> EngineShare | None:
        """The places of all tenants that it takes one of."""
        if self.engine_places is None:
            return None
        return EngineShare(f"service={quote(service, safe='')}", self.engine_places, self.engine_weight)

    def salt(self, tenant: str, request: Request) -> str | None:
        """None: the engine is to share cached prefixes among all that have none."""
        if self.shared_prompts:
            prompt = system_prompt(request)
            if prompt is not None and (digest := prompt_digest(prompt)) in self.shared_prompts:
                return salt_of(Sharing.PROMPT, digest, self.salt_key)
        if self.salted_by is None:
            return None
        return salt_of(self.salted_by, self.group if self.salted_by is Sharing.GROUP else tenant, self.salt_key)

    def prefix_key(self, salt: str | None, request: Request) -> bytes | None:
        """None: it goes wherever there is room."""
        parts = opening(request) if self.affinity is not None else ()
        if self.affinity is None or not parts:
            return None
        return prefix_key(salt or "", request.demand.model, parts, self.affinity.prefix_bytes)

    def priority_header(self, request: Request) -> dict[str, str]:
        """Anthropic's shape has no field for it."""
        if self.priority is None or request.demand.endpoint is not Endpoint.MESSAGES:
            return {}
        return {PRIORITY_HEADER: str(self.priority)}


def read_sharing(values: Mapping[str, Any], environ: Mapping[str, str], problems: list[str]) -> SharingRules:
    """Of a row's values as the schema completes them. Notes in ``problems`` what cannot work."""
    salted_by = {"tenant": Sharing.TENANT, "group": Sharing.GROUP}.get(values["cache_salt"])
    group = str(values.get("cache_group") or "")
    if salted_by is Sharing.GROUP and not group:
        problems.append("config.cache_group: required when cache_salt is group")
    if salted_by is not Sharing.GROUP and group:
        problems.append("config.cache_group: has no effect unless cache_salt is group")
    salt_key = _salt_key(str(values.get("cache_salt_key") or environ.get(SALT_KEY_ENV) or ""), problems)
    places, weight = values.get("engine_places"), int(values["engine_weight"])
    if places is None and weight != 1:
        problems.append("config.engine_weight: has no effect without engine_places")
    limit, by_model = values.get("max_concurrent_requests"), dict(values.get("max_concurrent_by_model") or {})
    return SharingRules(
        limit=None if limit is None else int(limit),
        by_model=MappingProxyType({str(model): int(most) for model, most in by_model.items()}),
        slot_ttl_us=min(int(values["concurrency_ttl_s"]), int(values["hold_ttl_s"])) * 1_000_000,
        engine_places=None if places is None else int(places),
        engine_weight=weight,
        priority=None if values.get("priority") is None else int(values["priority"]),
        salted_by=salted_by,
        group=group,
        shared_prompts=frozenset(map(str, values.get("cache_shared_prompts") or ())),
        affinity=_affinity(values, problems),
        salt_key=salt_key,
    )


def _salt_key(text: str, problems: list[str]) -> SaltKey:
    """The first, which new requests' salts are made with."""
    try:
        return next(iter(salt_keys(text)), NO_KEY)
    except ValueError as error:
        problems.append(f"config.cache_salt_key (or {SALT_KEY_ENV} in the plugin server's environment): {error}")
        return NO_KEY


def _affinity(values: Mapping[str, Any], problems: list[str]) -> Affinity | None:
    kind, ranks = values["affinity"], values.get("affinity_ranks")
    if kind == "rank" and ranks is None:
        problems.append("config.affinity_ranks: required when affinity is rank: the engine's --data-parallel-size")
    if kind != "rank" and ranks is not None:
        problems.append("config.affinity_ranks: has no effect unless affinity is rank")
    if kind == "off":
        return None
    return Affinity(
        ranks=int(ranks) if kind == "rank" and ranks is not None else None,
        header=str(values["affinity_header"]) if kind == "header" else None,
        prefix_bytes=int(values["affinity_prefix_bytes"]),
        overload_percent=int(values["affinity_overload_percent"]),
    )

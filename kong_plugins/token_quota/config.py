"""A row's configuration as typed values, with the checks across fields that Kong's schema cannot make."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from kong_plugins.adapters.kong_schema import complete, field_map
from kong_plugins.adapters.openai_wire import DEEPSEEK_R1, GENERIC, WireRules
from kong_plugins.application.leasing import LeasePolicy
from kong_plugins.application.outage import StoreOutage
from kong_plugins.application.settle import UnknownUsage
from kong_plugins.domain.budgets import Budget, Dimension, Mode, Weights
from kong_plugins.domain.planning import ANY_MODEL, BudgetRule, Counts, weights_of
from kong_plugins.domain.pricing import Price
from kong_plugins.domain.windows import FixedWindow, RollingWindow, TokenBucket, Unit, WindowSpec
from kong_plugins.token_quota.schema import SCHEMA, UNKNOWN_CONTEXT_MAX_TOKENS
from kong_plugins.token_quota.sharing import SharingRules, read_sharing

LEDGER_URL_ENV = "TOKEN_QUOTA_LEDGER_URL"

_SECONDS = {Unit.SECOND: 1, Unit.MINUTE: 60, Unit.HOUR: 3_600, Unit.DAY: 86_400, Unit.WEEK: 604_800}
_ALLOWANCES = {"generic": GENERIC, "deepseek_r1": DEEPSEEK_R1}


class ConfigError(ValueError):
    """A configuration that cannot work. One line for each problem, each naming its field."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


class KeysOf(StrEnum):
    """Which requests have an idempotency key."""

    OFF = "off"
    HEADER = "header"
    DERIVED = "derived"


@dataclass(frozen=True, slots=True)
class Idempotency:
    """``answer_bytes_max``: of an answer kept for retries, as the client gets it."""

    keys: KeysOf
    ttl_us: int
    answer_bytes_max: int
    attempts_max: int


class Identity(StrEnum):
    CONSUMER = "consumer"
    CREDENTIAL = "credential"
    HEADER = "header"
    IP = "ip"


@dataclass(frozen=True, slots=True)
class QuotaConfig:
    """One row. ``clamp_min`` is None where requests are denied rather than clamped."""

    ledger_url: str
    ledger_timeout_s: float
    identity: Identity
    identity_header: str
    budgets: tuple[BudgetRule, ...]
    rules: WireRules
    tokenizers: Mapping[str, str]
    clamp_min: int | None
    patience_us: int
    allow_unmetered: bool
    unknown_usage: UnknownUsage
    hold_ttl_us: int
    idempotency: Idempotency
    store_outage: StoreOutage
    lease: LeasePolicy
    sharing: SharingRules
    record_denials: bool
    event_source: str
    event_headers: tuple[str, ...]
    event_claims: tuple[str, ...]

    @property
    def models(self) -> tuple[str, ...]:
        """Those it speaks of; the route may serve others."""
        named = {model for rule in self.budgets for model in (*rule.budget.models, *rule.prices) if model != ANY_MODEL}
        if self.rules.allowance is DEEPSEEK_R1:
            named.add("deepseek-r1")
        return tuple(sorted(named))


def parse_config(config: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> QuotaConfig:
    """Kong's ``config`` of a row, or a decK file's: keys that Kong adds are left out, unset fields get their defaults.

    Raises:
        ConfigError: with every problem found.
    """
    known = dict(field_map(SCHEMA))
    given = {name: value for name, value in config.items() if name in known and value is not None}
    values, errors = complete(SCHEMA, given, "config")
    if errors:
        raise ConfigError([str(error) for error in errors])
    problems: list[str] = []
    budgets = _budgets(_sequence(values, "budgets"), problems)
    rules = _rules(values, problems)
    ledger_url = values.get("ledger_url") or environ.get(LEDGER_URL_ENV)
    if not ledger_url:
        problems.append(f"config.ledger_url: set it, or {LEDGER_URL_ENV} in the plugin server's environment")
    identity = Identity(str(values["identity"]))
    header = str(values.get("identity_header") or "").lower()
    if identity is Identity.HEADER and not header:
        problems.append("config.identity_header: required when identity is header")
    if identity is not Identity.HEADER and header:
        problems.append("config.identity_header: has no effect unless identity is header")
    sharing = read_sharing(values, environ, problems)
    if problems or rules is None:
        raise ConfigError(problems)
    return QuotaConfig(
        ledger_url=str(ledger_url),
        ledger_timeout_s=_int(values, "ledger_timeout_ms") / 1000,
        identity=identity,
        identity_header=header,
        budgets=budgets,
        rules=rules,
        tokenizers=MappingProxyType(_mapping(values, "tokenizers")),
        clamp_min=_int(values, "clamp_min_tokens") if values["on_short"] == "clamp" else None,
        patience_us=_int(values, "patience_s") * 1_000_000,
        allow_unmetered=values["unmetered_paths"] == "allow",
        unknown_usage=UnknownUsage(str(values["unknown_usage"])),
        hold_ttl_us=_int(values, "hold_ttl_s") * 1_000_000,
        idempotency=Idempotency(
            keys=KeysOf(str(values["idempotency_keys"])),
            ttl_us=_int(values, "idempotency_ttl_s") * 1_000_000,
            answer_bytes_max=_int(values, "idempotency_answer_bytes_max"),
            attempts_max=_int(values, "idempotency_attempts_max"),
        ),
        store_outage=StoreOutage(str(values["store_outage"])),
        lease=LeasePolicy(_int(values, "lease_percent"), _int(values, "lease_ttl_s")),
        sharing=sharing,
        record_denials=values["record_denials"] is True,
        event_source=str(values.get("event_source") or f"/kong/{socket.gethostname()}"),
        event_headers=tuple(sorted({str(name).lower() for name in _sequence(values, "event_headers")})),
        event_claims=tuple(sorted(map(str, _sequence(values, "event_claims")))),
    )


def _rules(values: Mapping[str, Any], problems: list[str]) -> WireRules | None:
    context_tokens, default_max_tokens = values.get("context_tokens"), values.get("default_max_tokens")
    if context_tokens is None and default_max_tokens is None:
        default_max_tokens = UNKNOWN_CONTEXT_MAX_TOKENS
    try:
        return WireRules(
            context_tokens=context_tokens,
            default_max_tokens=default_max_tokens,
            max_choices=_int(values, "max_choices"),
            allowance=_ALLOWANCES[values["chat_template"]],
            part_tokens=_mapping(values, "part_tokens"),
            allow=frozenset(_sequence(values, "allow_fields")),
        )
    except ValueError as error:
        problems.append(f"config.allow_fields: {error}")
        return None


def _budgets(entries: list[Mapping[str, Any]], problems: list[str]) -> tuple[BudgetRule, ...]:
    names = [entry["name"] for entry in entries]
    problems += [
        f"config.budgets[{n}].name: {name!r} is there twice; each budget has a name of its own"
        for n, name in enumerate(names, 1)
        if name in names[: n - 1]
    ]
    return tuple(_budget(entry, f"config.budgets[{n}]", problems) for n, entry in enumerate(entries, 1))


def _budget(entry: Mapping[str, Any], path: str, problems: list[str]) -> BudgetRule:
    counts = Counts(entry["counts"])
    models = tuple(_sequence(entry, "models"))
    budget = Budget(
        name=entry["name"],
        limit=_int(entry, "limit"),
        window=_window(entry, path, problems),
        weights=weights_of(counts, _int(entry, "cached_percent")),
        mode=Mode(entry["mode"]),
        scope=tuple(dimension for dimension in Dimension if dimension.value in _sequence(entry, "scope")),
        models=models,
    )
    return BudgetRule(budget, counts, _prices(entry, counts, models, path, problems))


def _window(entry: Mapping[str, Any], path: str, problems: list[str]) -> WindowSpec:
    unit, kind, count = Unit(entry["window"]), entry["window_kind"], _int(entry, "window_count")
    time_zone, anchor_day = entry["time_zone"], _int(entry, "anchor_day")
    try:
        if kind == "fixed":
            if count != 1:
                problems.append(f"{path}.window_count: a fixed window is one unit; use window_kind rolling or bucket")
            return FixedWindow(unit, time_zone, anchor_day)
        if time_zone != "UTC" or anchor_day != 1:
            problems.append(f"{path}: time_zone and anchor_day are for fixed windows; this one is {kind}")
        if unit is Unit.MONTH:
            raise ValueError("a month has no fixed length; use window day with window_count 30")
        seconds = count * _SECONDS[unit]
        return RollingWindow(seconds) if kind == "rolling" else TokenBucket(seconds)
    except ValueError as error:
        problems.append(f"{path}.window: {error}")
        return FixedWindow(Unit.DAY)


def _prices(
    entry: Mapping[str, Any], counts: Counts, models: tuple[str, ...], path: str, problems: list[str]
) -> Mapping[str, Weights]:
    records = _sequence(entry, "prices")
    if counts is not Counts.COST:
        if records:
            problems.append(f"{path}.prices: only for counts cost")
        return MappingProxyType({})
    prices: dict[str, Weights] = {}
    for n, record in enumerate(records, 1):
        cached = record.get("cached")
        try:
            price = Price(
                prompt=_int(record, "prompt"),
                cached=_int(record, "prompt") if cached is None else int(cached),
                completion=_int(record, "completion"),
                request=_int(record, "request"),
            )
            prices[record["model"]] = price.weights()
        except ValueError as error:
            problems.append(f"{path}.prices[{n}]: {error}")
            return MappingProxyType({})
    if len(prices) < len(records):
        problems.append(f"{path}.prices: a model has one price")
    unpriced = [model for model in models or (ANY_MODEL,) if model not in prices and ANY_MODEL not in prices]
    if unpriced:
        problems.append(
            f"{path}.prices: no price for {', '.join(unpriced)}; add one, or restrict models to those that have one"
        )
    return MappingProxyType(prices)


def _int(values: Mapping[str, Any], name: str) -> int:
    return int(values[name])


def _sequence(values: Mapping[str, Any], name: str) -> list[Any]:
    return list(values.get(name) or [])


def _mapping(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Kong turns an empty map into an empty list."""
    return dict(values.get(name) or {})

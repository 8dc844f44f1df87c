"""Rules over a whole file: names, references, and what a row of token-quota means by itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Protocol
from urllib.parse import urlsplit

from kong_plugins.adapters.deck_check.entities import Deck, Entity, Row, named
from kong_plugins.adapters.deck_check.findings import Problem, Severity, deck_rule
from kong_plugins.adapters.deck_check.kong_facts import BUNDLED
from kong_plugins.adapters.openai_wire import WireRules
from kong_plugins.application.leasing import LeasePolicy
from kong_plugins.application.outage import StoreOutage
from kong_plugins.domain.budgets import Mode
from kong_plugins.domain.planning import ANY_MODEL, BudgetRule
from kong_plugins.domain.usage import Usage
from kong_plugins.domain.windows import describe

SMALLEST = Usage(1, 1)  # no request takes less


class Quota(Protocol):
    """What rules need of a parsed row of token-quota."""

    @property
    def budgets(self) -> tuple[BudgetRule, ...]: ...
    @property
    def rules(self) -> WireRules: ...
    @property
    def clamp_min(self) -> int | None: ...
    @property
    def store_outage(self) -> StoreOutage: ...
    @property
    def lease(self) -> LeasePolicy: ...


@deck_rule("duplicate-name")
def _(deck: Deck) -> Iterator[Problem]:
    """Kong knows services, routes, consumers, keys and rows by their names: two of one name are a file that fails."""
    for kind in (deck.services, deck.routes, deck.consumers):
        yield from _twice(named(kind))
    seen: dict[str, Entity] = {}
    for credential in deck.credentials:
        key = str(credential.data.get("key", ""))
        if key and key in seen:
            yield Problem((*credential.path, "key"), "another credential has this key")
        seen.setdefault(key, credential)
    scopes: set[tuple[object, ...]] = set()
    names: set[str] = set()
    for row in deck.rows:
        scope = (row.name, row.service, row.route, row.consumer)
        if scope in scopes:
            yield Problem(row.path, f"plugin '{row.name}' is there twice for the same scope")
        scopes.add(scope)
        instance = row.data.get("instance_name")
        if isinstance(instance, str) and instance in names:
            yield Problem((*row.path, "instance_name"), f"instance_name '{instance}' is there twice")
        names.update([instance] if isinstance(instance, str) else [])


@deck_rule("unknown-plugin", Severity.WARNING)
def _(deck: Deck) -> Iterator[Problem]:
    """Neither Kong's nor ours: it must be installed on every node."""
    for row in deck.rows:
        if row.name and row.name not in BUNDLED and row.name not in deck.known:
            yield Problem((*row.path, "name"), f"plugin '{row.name}' is not among Kong's own: is it installed?")


@deck_rule("regex-without-tilde", Severity.WARNING)
def _(deck: Deck) -> Iterator[Problem]:
    """Since format 3.0 only a path that begins with ~ is an expression."""
    for route in deck.routes:
        for number, path in enumerate(_list(route.data.get("paths"))):
            odd = (
                deck.version == "3.0"
                and not str(path).startswith("~")
                and any(sign in str(path) for sign in "^$*+?()[]{}|\\")
            )
            if odd:
                yield Problem(
                    (*route.path, "paths", number), f"{route.described}: '{path}' is taken literally; ~{path}?"
                )


@deck_rule("budget-never-admits")
def _(deck: Deck) -> Iterator[Problem]:
    """A hard limit below the smallest request there is."""
    for row, _quota, place, rule in _budgets(deck):
        least = min(rule.weights(model).amount(SMALLEST) for model in _models(rule))
        if rule.budget.mode is Mode.HARD and rule.budget.limit < least:
            yield Problem(
                (*place, "limit"),
                f"budget {rule.budget.name} of {_whose(row)}: {rule.budget.limit:,} {rule.counts.unit} admit no request"
                f" at all (the smallest takes {least:,})",
            )


@deck_rule("budget-below-one-answer", Severity.WARNING)
def _(deck: Deck) -> Iterator[Problem]:
    """A request that sets no max_tokens is held for a whole answer: it never fits."""
    for row, quota, place, rule in _budgets(deck):
        answer = _longest_answer(quota)
        amount = max(rule.weights(model).amount(Usage(0, answer)) for model in _models(rule))
        least = min(rule.weights(model).amount(SMALLEST) for model in _models(rule))
        if rule.budget.mode is Mode.HARD and least <= rule.budget.limit < amount and quota.clamp_min is None:
            yield Problem(
                (*place, "limit"),
                f"budget {rule.budget.name} of {_whose(row)}: a request without max_tokens is held for {amount:,}"
                f" {rule.counts.unit}, more than {rule.budget.limit:,}, and always refused: raise limit, set"
                " default_max_tokens, or on_short: clamp",
            )


@deck_rule("open-hard-budget", Severity.WARNING)
def _(deck: Deck) -> Iterator[Problem]:
    """Whoever sets a hard limit may not know what store_outage: open makes of it."""
    for row in _quota_rows(deck):
        quota: Quota = row.parsed
        hard = [rule.budget.name for rule in quota.budgets if rule.budget.mode is Mode.HARD]
        if quota.store_outage is StoreOutage.OPEN and hard:
            yield Problem(
                (*row.path, "config", "store_outage"),
                f"{_whose(row)}: open lets everyone through while the ledger is away, beyond the hard limit of"
                f" {', '.join(hard)} too; lease keeps it",
            )


@deck_rule("lease-below-one-answer", Severity.WARNING)
def _(deck: Deck) -> Iterator[Problem]:
    """What no request fits into is leased for nothing."""
    for row, quota, place, rule in _budgets(deck):
        amount = max(rule.weights(model).amount(Usage(0, _longest_answer(quota))) for model in _models(rule))
        leased = rule.budget.limit * quota.lease.percent // 100
        if quota.store_outage is StoreOutage.LEASE and rule.budget.mode is Mode.HARD and leased < amount:
            yield Problem(
                (*place, "limit"),
                f"budget {rule.budget.name} of {_whose(row)}: a node leases {leased:,} {rule.counts.unit}; a request"
                f" without max_tokens holds {amount:,}, and is refused while the ledger is away: raise lease_percent or"
                " limit, or set default_max_tokens",
            )


@deck_rule("clamp-never-helps", Severity.WARNING)
def _(deck: Deck) -> Iterator[Problem]:
    """No answer is as long as clamp_min_tokens."""
    for row in _quota_rows(deck):
        quota: Quota = row.parsed
        if quota.clamp_min is not None and quota.clamp_min > _longest_answer(quota):
            yield Problem((*row.path, "config", "clamp_min_tokens"), f"{_whose(row)}: no answer is that long")


@deck_rule("budget-names-collide")
def _(deck: Deck) -> Iterator[Problem]:
    """Rows of one tenant with the same budget name and window share a counter: it must count the same thing."""
    counters: defaultdict[tuple[str, str], list[tuple[Row, tuple[object, ...], BudgetRule]]] = defaultdict(list)
    for row, _quota, place, rule in _budgets(deck):
        known = counters[rule.budget.name, describe(rule.budget.window)]
        for other, _, first in known:
            one_tenant = other.consumer is row.consumer or None in (other.consumer, row.consumer)
            if one_tenant and (first.counts, first.budget.scope) != (rule.counts, rule.budget.scope):
                yield Problem(
                    (*place, "name"),
                    f"budget {rule.budget.name} counts {rule.counts} here and {first.counts} at {_whose(other)}, on"
                    " one counter: give it another name",
                )
                break
        known.append((row, place, rule))


@deck_rule("scope-of-one-model", Severity.WARNING)
def _(deck: Deck) -> Iterator[Problem]:
    """A counter for each model, where the budget is for one model."""
    for _row, _quota, place, rule in _budgets(deck):
        if len(rule.budget.models) == 1 and "model" in {each.value for each in rule.budget.scope}:
            yield Problem((*place, "scope"), f"budget {rule.budget.name}: scope model adds nothing to models of one")


@deck_rule("secret-in-file", Severity.WARNING)
def _(deck: Deck) -> Iterator[Problem]:
    """A password in a file that lies in a repository."""
    for row in deck.rows:
        url = row.data.get("config", {}).get("ledger_url") if isinstance(row.data.get("config"), dict) else None
        if isinstance(url, str) and urlsplit(url).password:
            yield Problem(
                (*row.path, "config", "ledger_url"),
                "ledger_url has a password in clear: use {vault://…} or the plugin server's TOKEN_QUOTA_LEDGER_URL",
            )


@deck_rule("no-context", Severity.WARNING)
def _(deck: Deck) -> Iterator[Problem]:
    """Without the engine's context length every request is held for its whole max_tokens."""
    for row in _quota_rows(deck):
        quota: Quota = row.parsed
        if quota.rules.context_tokens is None and quota.budgets:
            yield Problem(row.path, f"{_whose(row)}: set context_tokens to the engine's --max-model-len")


def _quota_rows(deck: Deck) -> Iterator[Row]:
    return (row for row in deck.rows if row.name == "token-quota" and row.enabled and row.parsed is not None)


def _budgets(deck: Deck) -> Iterator[tuple[Row, Quota, tuple[str | int, ...], BudgetRule]]:
    for row in _quota_rows(deck):
        for number, rule in enumerate(row.parsed.budgets):
            yield row, row.parsed, (*row.path, "config", "budgets", number), rule


def _models(rule: BudgetRule) -> list[str]:
    """Those whose weights are known: for cost, the priced ones."""
    return list(rule.prices) or [next(iter(rule.budget.models), ANY_MODEL)]


def _longest_answer(quota: Quota) -> int:
    limits = [each for each in (quota.rules.default_max_tokens, quota.rules.context_tokens) if each is not None]
    return min(limits)


def _whose(row: Row) -> str:
    owner = row.consumer or row.route or row.service
    return owner.described if owner is not None else "all"


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _twice(entities: Iterable[tuple[str, Entity]]) -> Iterator[Problem]:
    seen: set[str] = set()
    for name, entity in entities:
        if name in seen:
            yield Problem(entity.path, f"{entity.described}: there is another one of this name")
        seen.add(name)

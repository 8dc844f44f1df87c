"""Rules over an engine that several rows' tenants share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kong_plugins.adapters.deck_check.entities import Deck, Entity, Row
from kong_plugins.adapters.deck_check.findings import Problem, Severity, deck_rule, way_rule
from kong_plugins.adapters.deck_check.ways import Way, ways


@deck_rule("engine-places-differ")
def _(deck: Deck) -> Iterator[Problem]:
    """Every row on a service has the same engine_places: a tenant without it is not counted, and takes what is kept."""
    first: dict[Entity | None, tuple[Row, Any]] = {}
    told: set[Row] = set()
    for way in ways(deck):
        if not way.metered:
            continue
        row, places = way.rows["token-quota"], way.config("token-quota").get("engine_places")
        other, expected = first.setdefault(way.service, (row, places))
        if places != expected and row not in told:
            told.add(row)
            name = way.service.described if way.service else "routes without a service"
            yield Problem(
                (*row.path, *(("config", "engine_places") if places is not None else ())),
                f"{name}: engine_places is {_shown(places)} here and {_shown(expected)} for {_whose(other)}: give every"
                " row of the service the same",
            )


@way_rule("limit-above-engine", Severity.WARNING)
def _(way: Way) -> Iterator[Problem]:
    """A tenant's own limit that is above what the engine has for all never refuses anybody."""
    config = way.config("token-quota")
    places, limit = config.get("engine_places"), config.get("max_concurrent_requests")
    if places is not None and limit is not None and limit > places:
        yield Problem(
            (*way.rows["token-quota"].path, "config", "max_concurrent_requests"),
            f"{way.described}: {limit} of a tenant at a time, of {places} places that all share: lower it or leave it"
            " out",
        )


def _shown(places: Any) -> str:
    return "not set" if places is None else str(places)


def _whose(row: Row) -> str:
    owner = row.consumer or row.route or row.service
    return owner.described if owner is not None else "all"

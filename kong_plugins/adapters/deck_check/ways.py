"""What a request meets: the plugin rows that apply to it, by its route and its consumer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kong_plugins.adapters.deck_check.entities import Deck, Entity, Row
from kong_plugins.adapters.deck_check.source import Path

OURS = ("usage-gate", "token-quota", "usage-tap", "billing-events")


@dataclass(frozen=True, slots=True)
class Way:
    """``consumer``: None for any that has no rows of its own. ``rows``: of each plugin the one that applies."""

    route: Entity
    service: Entity | None
    consumer: Entity | None
    rows: Mapping[str, Row]

    @property
    def metered(self) -> bool:
        """It holds and settles."""
        return "token-quota" in self.rows

    @property
    def ours(self) -> bool:
        return any(name in self.rows for name in OURS)

    @property
    def described(self) -> str:
        who = f" for {self.consumer.described}" if self.consumer else ""
        return f"{self.route.described or 'a route'}{who}"

    @property
    def anchor(self) -> Path:
        """Where to point for what is missing: the most telling row of ours."""
        return next((self.rows[name].path for name in ("token-quota", *OURS) if name in self.rows), self.route.path)

    def config(self, plugin: str) -> Mapping[str, Any]:
        return self.rows[plugin].config if plugin in self.rows else {}


def ways(deck: Deck) -> Iterator[Way]:
    """Every route, for each consumer with rows of its own and for all others together."""
    own = list(dict.fromkeys(row.consumer for row in deck.rows if row.consumer is not None))
    names = list(dict.fromkeys(row.name for row in deck.rows))
    for route in deck.routes:
        for consumer in (None, *own):
            rows = {name: row for name in names if (row := _applies(deck, name, route, consumer)) is not None}
            yield Way(route, route.service, consumer, rows)


def _applies(deck: Deck, name: str, route: Entity, consumer: Entity | None) -> Row | None:
    """Kong runs one row of a plugin, the most specific one."""
    service = route.service
    by_scope = {(row.route, row.service, row.consumer): row for row in deck.rows if row.name == name and row.enabled}
    for scope in (
        (route, service, consumer),
        (route, None, consumer),
        (None, service, consumer),
        (route, service, None),
        (None, None, consumer),
        (route, None, None),
        (None, service, None),
        (None, None, None),
    ):
        if scope in by_scope:
            return by_scope[scope]
    return None

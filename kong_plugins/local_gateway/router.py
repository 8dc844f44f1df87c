"""Which route a request takes: Kong's traditional_compatible order for paths, methods, hosts and headers.

More kinds of conditions go first, then plain hosts before wildcards, then regex paths (by ``regex_priority``) before
prefixes, then longer prefixes; ties keep the file's order. Routes with several paths count as one route per path.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kong_plugins.adapters.deck_entities import DeckConfig, Route, Service


@dataclass(frozen=True, slots=True)
class Match:
    """A request's route. ``prefix`` is what ``strip_path`` takes off (None: the route does not strip);
    ``captures`` are a regex path's groups by name and by position."""

    route: Route
    service: Service | None
    prefix: bytes | None
    postfix: bytes
    named: Mapping[str, str]
    unnamed: tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class _Candidate:
    route: Route
    service: Service | None
    prefix: bytes | None
    regex: re.Pattern[bytes] | None
    hosts: tuple[re.Pattern[str], ...]
    methods: frozenset[str]
    headers: Mapping[str, frozenset[str]]
    priority: tuple[int, int, int, int, int]


class Router:
    """Routes of one configuration, in the order they are tried."""

    def __init__(self, config: DeckConfig) -> None:
        services = {service.id: service for service in config.services}
        candidates = [
            _candidate(route, services.get(route.service_id or ""), path)
            for route in config.routes
            for path in (route.paths or (None,))
        ]
        self._candidates = sorted(candidates, key=lambda candidate: candidate.priority, reverse=True)

    def match(self, method: str, host: str, path: bytes, headers: Mapping[str, Sequence[str]]) -> Match | None:
        """The first route that takes a request with this normalised path; header names in lower case."""
        for candidate in self._candidates:
            if candidate.methods and method not in candidate.methods:
                continue
            if candidate.hosts and not any(pattern.fullmatch(host) for pattern in candidate.hosts):
                continue
            if any(
                not wanted & {value.lower() for value in headers.get(name, ())}
                for name, wanted in candidate.headers.items()
            ):
                continue
            found = _match_path(candidate, path)
            if found is not None:
                return found
        return None


def _candidate(route: Route, service: Service | None, path: str | None) -> _Candidate:
    regex = re.compile(path[1:].encode()) if path is not None and path.startswith("~") else None
    prefix = path.encode("utf-8", "surrogateescape") if path is not None and regex is None else None
    kinds = sum(map(bool, (route.methods, route.hosts, route.headers, route.paths)))
    plain_hosts = bool(route.hosts) and not any("*" in host for host in route.hosts)
    length = len(prefix or b"")
    priority = (kinds, plain_hosts, len(route.headers), *((1, route.regex_priority) if regex else (0, length)))
    return _Candidate(
        route,
        service,
        prefix,
        regex,
        tuple(re.compile(re.escape(host.lower()).replace(r"\*", r"[^.:]+(?:\.[^.:]+)*")) for host in route.hosts),
        frozenset(route.methods),
        {name: frozenset(value.lower() for value in values) for name, values in route.headers.items()},
        priority,
    )


def _match_path(candidate: _Candidate, path: bytes) -> Match | None:
    route, service = candidate.route, candidate.service
    if candidate.regex is not None:
        found = candidate.regex.match(path)
        if found is None:
            return None
        named = {name: _text(value) for name, value in found.groupdict().items() if value is not None}
        unnamed = tuple(None if value is None else _text(value) for value in found.groups())
        prefix = found[0] if route.strip_path else None
        return Match(route, service, prefix, _postfix(path, found.end()), named, unnamed)
    if candidate.prefix is None:
        return Match(route, service, b"/" if route.strip_path else None, path[1:], {}, ())
    if not path.startswith(candidate.prefix):
        return None
    prefix = candidate.prefix if route.strip_path else None
    return Match(route, service, prefix, _postfix(path, len(candidate.prefix)), {}, ())


def _postfix(path: bytes, start: int) -> bytes:
    rest = path[start:]
    return rest[1:] if rest.startswith(b"/") else rest


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")

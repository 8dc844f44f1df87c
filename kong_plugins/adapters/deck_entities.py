"""The entities of a decK file that a gateway needs, with the ids Kong would give them."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

_ENTITIES = uuid.UUID("fd02801f-0957-4a15-a55a-c8d9606f30b5")
WORKSPACE_ID = "0dc6f45b-8f8d-40d2-a504-473544ee190b"  # any fixed id does: DB-less Kong has one workspace
_PORTS = {"http": 80, "https": 443}


class DeckError(ValueError):
    """The file cannot be used; each line of the message is one error with its place."""


@dataclass(frozen=True, slots=True)
class Service:
    """An upstream. Timeouts are milliseconds; ``path`` has no trailing slash unless it is written so."""

    id: str
    name: str
    host: str
    port: int
    protocol: str = "http"
    path: str | None = None
    connect_timeout: int = 60000
    read_timeout: int = 60000
    write_timeout: int = 60000
    retries: int = 5
    enabled: bool = True
    tags: tuple[str, ...] = ()

    def at(self, url: str) -> Service:
        """This service moved to another base URL, timeouts and id kept.

        Raises:
            DeckError: the URL is not an http or https URL with a host.
        """
        return replace(self, **url_parts(url, f"override of service '{self.name}'"))


@dataclass(frozen=True, slots=True)
class Route:
    """What of the traffic goes to a service. ``paths`` starting with ``~`` are expressions."""

    id: str
    name: str
    service_id: str | None
    paths: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    headers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    strip_path: bool = True
    preserve_host: bool = False
    request_buffering: bool = True
    response_buffering: bool = True
    protocols: tuple[str, ...] = ("http", "https")
    regex_priority: int = 0
    https_redirect_status_code: int = 426
    path_handling: str = "v0"
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Consumer:
    id: str
    username: str | None
    custom_id: str | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Credential:
    """A key-auth key of a consumer. ``id`` is new on every load."""

    id: str
    key: str = field(repr=False)
    consumer_id: str
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PluginRow:
    """One plugin configured for a scope; a field that is None does not narrow it."""

    id: str
    name: str
    config: Mapping[str, Any]
    service_id: str | None = None
    route_id: str | None = None
    consumer_id: str | None = None
    enabled: bool = True
    instance_name: str | None = None
    protocols: tuple[str, ...] = ("grpc", "grpcs", "http", "https")
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DeckConfig:
    """Everything of a file that a gateway needs, in the file's order."""

    format_version: str
    services: tuple[Service, ...]
    routes: tuple[Route, ...]
    consumers: tuple[Consumer, ...]
    credentials: tuple[Credential, ...]
    plugins: tuple[PluginRow, ...]

    def with_upstreams(self, overrides: Mapping[str, str]) -> DeckConfig:
        """The same configuration with some services moved: service name to base URL.

        Raises:
            DeckError: no service has that name, or the URL is no base URL.
        """
        names = {service.name for service in self.services}
        for name in overrides:
            if name not in names:
                raise DeckError(f"no service named '{name}' to move: the file has {', '.join(sorted(names)) or 'none'}")
        moved = (
            service.at(overrides[service.name]) if service.name in overrides else service for service in self.services
        )
        return replace(self, services=tuple(moved))


def kong_id(entity: str, key: str) -> str:
    """The uuid5 Kong gives an entity (kind ``services``, ``routes``, ``consumers``, ``plugins``) without an id."""
    return str(uuid.uuid5(uuid.uuid5(_ENTITIES, entity), key))


def url_parts(url: str, place: str) -> dict[str, Any]:
    """A base URL as a service's fields.

    Raises:
        DeckError: it is no http(s) URL of a host, or has a query; ``place`` says where it was written.
    """
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in _PORTS or not parts.hostname or port == -1 or parts.query or parts.fragment:
        raise DeckError(f"{place}: '{url}' is no http(s)://host[:port][/path]")
    port = port if port is not None else _PORTS[parts.scheme]
    return {"protocol": parts.scheme, "host": parts.hostname, "port": port, "path": parts.path or None}

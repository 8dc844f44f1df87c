"""Kong's key-auth: names the consumer by a key in a header or the query, and hides the key from the upstream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from kong_plugins.adapters.deck_entities import Consumer, Credential, DeckConfig
from kong_plugins.local_gateway.errors import Exit, error_exit
from kong_plugins.local_gateway.query import parse_query, without_argument

if TYPE_CHECKING:
    from kong_plugins.local_gateway.exchange import Exchange

_KEY_NAME = "^[a-zA-Z0-9_%-]+$"
KEY_AUTH_FIELDS: list[dict[str, dict[str, Any]]] = [
    {
        "key_names": {
            "type": "array",
            "required": True,
            "elements": {"type": "string", "match": _KEY_NAME},
            "default": ["apikey"],
        }
    },
    {"hide_credentials": {"type": "boolean", "required": True, "default": False}},
    {"key_in_header": {"type": "boolean", "required": True, "default": True}},
    {"key_in_query": {"type": "boolean", "required": True, "default": True}},
    {"key_in_body": {"type": "boolean", "required": True, "default": False, "eq": False}},
    {"run_on_preflight": {"type": "boolean", "required": True, "default": True}},
    {"realm": {"type": "string"}},
]


class KeyAuth:
    """One row of key-auth. ``anonymous`` and ``key_in_body`` do not exist here: their fields are refused."""

    priority: ClassVar[int] = 1250

    def __init__(self, config: Mapping[str, Any], keys: Mapping[str, tuple[Consumer, Credential]]) -> None:
        self._config = config
        self._keys = keys
        self._challenge = f'Key realm="{config["realm"]}"'.encode() if config.get("realm") else b"Key"

    @staticmethod
    def index(config: DeckConfig) -> Mapping[str, tuple[Consumer, Credential]]:
        """Consumers and credentials by key."""
        consumers = {consumer.id: consumer for consumer in config.consumers}
        return {credential.key: (consumers[credential.consumer_id], credential) for credential in config.credentials}

    def access(self, exchange: Exchange) -> Exit | None:
        """Names the consumer, or ends the request with a 401."""
        if exchange.method == "OPTIONS" and not self._config["run_on_preflight"]:
            return None
        key, name = self._find(exchange)
        if isinstance(key, list):
            return self._refuse(exchange, "Duplicate API key found")
        if not key:
            return self._refuse(exchange, "No API key found in request")
        known = self._keys.get(key)
        if self._config["hide_credentials"]:
            _hide(exchange, name)
        if known is None:
            return self._refuse(exchange, "Unauthorized")
        consumer, credential = known
        entity = exchange.entity(consumer.id)
        created = (entity or {}).get("created_at")
        shown: dict[str, Any] = {
            "id": credential.id,
            "key": key,
            "created_at": created,
            "consumer": {"id": consumer.id},
        }
        if credential.tags:
            shown["tags"] = list(credential.tags)
        exchange.authenticate(entity or {}, shown)
        identity = (
            (b"X-Consumer-ID", consumer.id),
            (b"X-Consumer-Custom-ID", consumer.custom_id),
            (b"X-Consumer-Username", consumer.username),
            (b"X-Credential-Identifier", credential.id),
            (b"X-Anonymous-Consumer", None),
        )
        for header, value in identity:
            if value is None:
                exchange.clear_header(header)
            else:
                exchange.set_header(header, value.encode("utf-8", "surrogateescape"))
        return None

    def _find(self, exchange: Exchange) -> tuple[str | list[str] | None, str]:
        headers = exchange.headers.as_map(limit=100)
        query = parse_query(exchange.original_query)
        for name in self._config["key_names"]:
            found: object = headers.get(name.lower()) if self._config["key_in_header"] else None
            if found is None and self._config["key_in_query"]:
                found = query.get(name)
            if isinstance(found, str | list):
                return found, name
        return None, ""

    def _refuse(self, exchange: Exchange, message: str) -> Exit:
        challenge = (b"WWW-Authenticate", self._challenge)
        return error_exit(401, exchange.id, exchange.client_wants(), message, (challenge,))


def _hide(exchange: Exchange, name: str) -> None:
    exchange.clear_header(name.encode())
    if exchange.query:
        exchange.set_query(without_argument(exchange.query, name))

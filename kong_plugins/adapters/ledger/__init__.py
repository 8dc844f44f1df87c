"""Ledgers: one in memory, one in Redis or Valkey, and a Valkey server to embed."""

from kong_plugins.adapters.ledger.connect import connect_ledger, connect_places
from kong_plugins.adapters.ledger.embedded_valkey import EmbeddedValkey, EmbeddedValkeyError
from kong_plugins.adapters.ledger.memory_ledger import MemoryLedger
from kong_plugins.adapters.ledger.memory_places import MemoryPlaces
from kong_plugins.adapters.ledger.redis_ledger import RedisLedger
from kong_plugins.adapters.ledger.redis_places import RedisPlaces

__all__ = [
    "EmbeddedValkey",
    "EmbeddedValkeyError",
    "MemoryLedger",
    "MemoryPlaces",
    "RedisLedger",
    "RedisPlaces",
    "connect_ledger",
    "connect_places",
]

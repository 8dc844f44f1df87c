"""Ledgers: one in memory, one in Redis or Valkey, and a Valkey server to embed."""

from kong_plugins.adapters.ledger.connect import connect_ledger
from kong_plugins.adapters.ledger.embedded_valkey import EmbeddedValkey, EmbeddedValkeyError
from kong_plugins.adapters.ledger.memory_ledger import MemoryLedger
from kong_plugins.adapters.ledger.redis_ledger import RedisLedger

__all__ = ["EmbeddedValkey", "EmbeddedValkeyError", "MemoryLedger", "RedisLedger", "connect_ledger"]

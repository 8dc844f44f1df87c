"""Who asks, with which keys and budgets, and how that changes from one configuration to the next."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from kong_plugins.cli.stack import default_config

ROOMY = 900_000_000
POOR_LIMIT = 400  # tokens a minute: some requests, then 429 until the minute is over
STEADY = ("amber", "birch", "cedar")
POOR = "poor"
GUESTS = 4  # at a time; each configuration brings one and takes one
GONE_KEPT = 50
SHORTEST_S = 60  # the shortest time that holds and attempts may be remembered for


@dataclass
class Tenants:
    """The configuration in turn: one guest goes, one comes, a steady tenant gets another key, and limits are edited.

    ``keys``: what may be asked with, by tenant. A key that goes is out of it before the new configuration is loaded,
    one that comes is in it after that: :meth:`leave`, :meth:`write`, reload, :meth:`arrive`. No key is used again.
    """

    path: Path
    keys: dict[str, str] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)  # keys that no configuration has any more
    turns: int = 0
    _leaving: list[str] = field(default_factory=list)
    _coming: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._coming = {name: _key() for name in (*STEADY, POOR, *(f"guest-{n}" for n in range(GUESTS)))}
        self.write()
        self.arrive()

    def leave(self) -> None:
        """From now on nobody asks with the keys that go."""
        guest, changed = f"guest-{self.turns}", STEADY[self.turns % len(STEADY)]
        self.turns += 1
        self._leaving = [self.keys.pop(guest), self.keys.pop(changed)]
        self._coming = {f"guest-{self.turns - 1 + GUESTS}": _key(), changed: _key()}

    def arrive(self) -> None:
        """The configuration that was written is in use."""
        self.keys |= self._coming
        self.gone = [*self.gone, *self._leaving][-GONE_KEPT:]

    @property
    def coming(self) -> str:
        """A key that only the next configuration has."""
        return next(iter(self._coming.values()))

    def write(self) -> None:
        data: dict[str, Any] = yaml.safe_load(default_config().read_text())
        data["consumers"] = [
            {
                "username": name,
                "keyauth_credentials": [{"key": key}],
                "plugins": [{"name": "token-quota", "config": self._config(name)}],
            }
            for name, key in (self.keys | self._coming).items()
        ]
        self.path.touch(mode=0o600)
        self.path.write_text(yaml.safe_dump(data, sort_keys=False))

    def _config(self, name: str) -> dict[str, Any]:
        edited = ROOMY + self.turns
        budgets = [{"name": "minute", "limit": edited, "window": "minute"}]
        if name == POOR:
            budgets = [{"name": "minute", "limit": POOR_LIMIT, "window": "minute"}]
        elif name in STEADY:
            budgets += [
                {"name": "hour", "limit": edited, "window": "hour"},
                {"name": "month", "limit": ROOMY, "window": "month", "time_zone": "Europe/Berlin"},
                {"name": "rolling", "limit": edited, "window": "minute", "window_count": 5, "window_kind": "rolling"},
                {"name": "model", "limit": ROOMY, "window": "hour", "scope": ["model"]},
            ]
        else:
            budgets += [{"name": "bucket", "limit": ROOMY, "window": "minute", "window_kind": "bucket"}]
        return {
            "context_tokens": 8192,
            "chat_template": "deepseek_r1",
            "ledger_timeout_ms": 10_000,  # on a machine that others use the shipped half second is theirs, not ours
            "budgets": budgets,
            "hold_ttl_s": SHORTEST_S,
            "concurrency_ttl_s": SHORTEST_S,
            "idempotency_ttl_s": SHORTEST_S,
            "max_concurrent_requests": 1000,
            "record_denials": True,
        }


def _key() -> str:
    return f"sk-{uuid.uuid4().hex}"

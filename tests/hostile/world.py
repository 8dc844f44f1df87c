"""The stack that is attacked, with its tenants, and what anybody inside it can see."""

from __future__ import annotations

import json
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from kong_plugins.adapters.engine_metrics import EngineCounters, read_counters
from kong_plugins.adapters.ledger import connect_ledger
from kong_plugins.adapters.ledger.audit import LedgerAudit, connect_audit
from kong_plugins.application.ports import Ledger
from kong_plugins.cli.stack import Gateway, Stack, StackOptions, default_config, start_stack

ROOMY = 900_000_000
POOR = 3_000
PAINTER, IMAGE_TOKENS = "painter", 1_000  # images are admitted, each held at so many tokens
CROWD, CROWD_HEADER = "crowd", "x-tenant-name"  # whose key stands for any tenant that it names
TENANTS: dict[str, dict[str, Any]] = {
    "mallory": {
        "budgets": [
            {"name": "monthly", "limit": ROOMY, "window": "month"},
            {"name": "each", "limit": ROOMY, "window": "month", "scope": ["model"]},
        ]
    },
    "eve": {"budgets": [{"name": "monthly", "limit": ROOMY, "window": "month"}]},
    "poor": {"budgets": [{"name": "monthly", "limit": POOR, "window": "month"}], "on_short": "clamp"},
    PAINTER: {
        "budgets": [{"name": "monthly", "limit": POOR, "window": "month"}],
        "part_tokens": {"image_url": IMAGE_TOKENS},
    },
    "victim": {"budgets": [{"name": "monthly", "limit": ROOMY, "window": "month"}]},
    CROWD: {
        "budgets": [{"name": "monthly", "limit": ROOMY, "window": "month"}],
        "identity": "header",
        "identity_header": CROWD_HEADER,
    },
}
ATTACKERS = ("mallory", "mallory", "eve", "poor")


@dataclass
class World:
    """A running stack. ``notes``: what its engine was sent, all of it, as :meth:`look` gathers it."""

    stack: Stack
    directory: Path
    ledger: Ledger
    audit: LedgerAudit
    started: EngineCounters
    notes: list[dict[str, Any]] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.stack.url.rpartition(":")[2])

    def key(self, tenant: str) -> str:
        return self.stack.keys[f"DECK_{tenant.upper()}_KEY"]

    def look(self) -> None:
        """Take the engine's notes before it forgets them (it remembers a thousand)."""
        with urllib.request.urlopen(f"{self.stack.engine_root}/sim/requests", timeout=20) as answer:
            seen = json.load(answer)["requests"]
        assert len(seen) < 1000, "the engine has forgotten some of its requests: look more often"
        self.notes += seen
        urllib.request.urlopen(
            urllib.request.Request(f"{self.stack.engine_root}/sim/reset", b"", method="POST"), timeout=20
        ).close()

    def plugin_log(self) -> str:
        """What token-quota's server has written so far; Kong has it among its own errors."""
        paths = (self.directory / "logs" / "token-quota.log", self.stack.run_dir / "kong" / "logs" / "error.log")
        return next(path for path in paths if path.exists()).read_text(errors="replace")

    def engine(self) -> EngineCounters:
        return read_counters(self.stack.engine_root)


def config(directory: Path) -> Path:
    """kong/kong.yaml with the attackers for tenants."""
    data: dict[str, Any] = yaml.safe_load(default_config().read_text())
    gate = next(plugin for plugin in data["services"][0]["plugins"] if plugin["name"] == "usage-gate")
    gate["config"]["headers"] = [CROWD_HEADER]
    data["consumers"] = [
        {
            "username": name,
            "keyauth_credentials": [{"key": f'${{{{ env "DECK_{name.upper()}_KEY" }}}}'}],
            "plugins": [
                {
                    "name": "token-quota",
                    "config": {"context_tokens": 8192, "chat_template": "deepseek_r1", **settings},
                }
            ],
        }
        for name, settings in TENANTS.items()
    ]
    path = directory / "kong.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


@contextmanager
def world(directory: Path, gateway: Gateway = Gateway.LOCAL, *, collect: bool = False) -> Iterator[World]:
    """Until it ends; its data stays in ``directory``. With ``collect`` the outbox goes into books."""
    with ExitStack() as resources:
        monkeypatch = resources.enter_context(pytest.MonkeyPatch.context())
        for name in TENANTS:
            monkeypatch.setenv(f"DECK_{name.upper()}_KEY", f"sk-{name}-{uuid.uuid4().hex}")
        monkeypatch.delenv("TOKEN_QUOTA_SPOOL_DIR", raising=False)
        options = StackOptions(
            config=config(directory),
            gateway=gateway,
            port=0,
            data_dir=directory,
            engine_args=("--answer=varied", "--token-delay-ms=0.1"),
            collect=collect,
        )
        stack = start_stack(options, resources, lambda _: None)
        ledger, audit = connect_ledger(stack.ledger_url), connect_audit(stack.ledger_url)
        resources.callback(ledger.close)
        resources.callback(audit.close)
        yield World(stack, directory, ledger, audit, read_counters(stack.engine_root))

"""The stack under test, once per backend: the local gateway always, a native Kong where there is one."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest
import yaml

from kong_plugins.adapters.engine_metrics import EngineCounters, read_counters
from kong_plugins.adapters.ledger import connect_ledger
from kong_plugins.application.ports import Ledger
from kong_plugins.cli.kong_node import find_kong
from kong_plugins.cli.stack import Gateway, Stack, StackOptions, default_config, start_stack

MODEL = "deepseek-r1"
# Tenants of the suite: name → their token-quota budgets. One tenant a scenario, so that scenarios do not meet.
TENANTS: dict[str, dict[str, Any]] = {
    "roomy": {"budgets": [{"name": "daily", "limit": 50_000_000, "window": "day"}]},
    "books": {"budgets": [{"name": "daily", "limit": 50_000_000, "window": "day"}]},
    "aborter": {"budgets": [{"name": "daily", "limit": 50_000_000, "window": "day"}]},
    "leaver": {
        "budgets": [{"name": "daily", "limit": 50_000_000, "window": "day"}],
        "chat_template": "deepseek_r1",
        "context_tokens": 8192,
    },
    "spender": {"budgets": [{"name": "daily", "limit": 1_000, "window": "day"}]},
    "barrier": {"budgets": [{"name": "monthly", "limit": 20_000, "window": "month"}]},
    "bursty": {"budgets": [{"name": "minute", "limit": 2_000, "window": "minute", "window_kind": "rolling"}]},
    "replayer": {"budgets": [{"name": "daily", "limit": 50_000_000, "window": "day"}]},
    "retrier": {"budgets": [{"name": "daily", "limit": 50_000_000, "window": "day"}]},
    "forgetful": {
        "budgets": [{"name": "daily", "limit": 50_000_000, "window": "day"}],
        "idempotency_answer_bytes_max": 100,
        "idempotency_attempts_max": 2,
    },
    "storm_sdk": {"budgets": [{"name": "daily", "limit": 50_000_000, "window": "day"}]},
    "storm_streams": {"budgets": [{"name": "daily", "limit": 50_000_000, "window": "day"}]},
    "shadowed": {"budgets": [{"name": "trial", "limit": 1, "window": "day", "mode": "shadow"}]},
}


def suite_config(directory: Path) -> Path:
    """kong/kong.yaml with the suite's tenants beside its own, and a route without usage-tap."""
    data = yaml.safe_load(default_config().read_text())
    for name, settings in TENANTS.items():
        data["consumers"].append(
            {
                "username": name,
                "keyauth_credentials": [{"key": f'${{{{ env "DECK_{name.upper()}_KEY" }}}}'}],
                "plugins": [{"name": "token-quota", "config": settings}],
            }
        )
    (service,) = data["services"]
    tap = next(plugin for plugin in service["plugins"] if plugin["name"] == "usage-tap")
    service["plugins"].remove(tap)
    for route in service["routes"]:
        route["plugins"] = [tap]
    # What an operator forgets.
    service["routes"].append({"name": "untapped", "paths": ["/untapped"], "strip_path": True})
    path = directory / "kong.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


@dataclass
class Running:
    """A running stack with what scenarios ask of it."""

    stack: Stack
    ledger: Ledger
    backend: str
    http: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=30))

    def key(self, tenant: str) -> str:
        return self.stack.keys[f"DECK_{tenant.upper()}_KEY"]

    def client(self, tenant: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.stack.url}/v1", api_key=self.key(tenant), max_retries=0, timeout=30)

    def post(self, tenant: str, path: str, **request: Any) -> httpx.Response:
        headers = {"apikey": self.key(tenant), **request.pop("headers", {})}
        return self.http.post(f"{self.stack.url}{path}", headers=headers, **request)

    def engine(self) -> EngineCounters:
        return read_counters(self.stack.engine_root)

    def seen_by_engine(self) -> list[dict[str, Any]]:
        seen: list[dict[str, Any]] = self.http.get(f"{self.stack.engine_root}/sim/requests").json()["requests"]
        return seen

    def faults(self, **faults: Any) -> None:
        self.http.post(f"{self.stack.engine_root}/sim/faults", json=faults).raise_for_status()


def backends() -> list[Any]:
    missing = pytest.mark.skip(reason="native Kong: no `kong` on PATH and KONG_BIN is not set")
    return ["local", pytest.param("kong", marks=[] if find_kong() else [missing])]


@pytest.fixture(scope="session", params=backends())
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("e2e")
    with ExitStack() as resources:
        monkeypatch = resources.enter_context(pytest.MonkeyPatch.context())
        for name in [*TENANTS, "tenant_a", "tenant_b"]:
            monkeypatch.setenv(f"DECK_{name.upper()}_KEY", f"sk-{uuid.uuid4().hex}")
        options = StackOptions(
            config=suite_config(directory), gateway=Gateway(request.param), port=0, data_dir=directory
        )
        stack = start_stack(options, resources, print)
        yield Running(stack, connect_ledger(stack.ledger_url), request.param)


def chat(**more: Any) -> dict[str, Any]:
    """A small chat request."""
    return {"model": MODEL, "messages": [{"role": "user", "content": "How many?"}], "max_tokens": 64, **more}

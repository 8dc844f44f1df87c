"""The stack under test, once per backend (see backends.py), and what scenarios ask of it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
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
from kong_plugins.cli.stack import Gateway, Stack, StackOptions, default_config, start_stack
from tests.e2e import backends, docker_stack

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
    "flooder": {"budgets": [], "max_concurrent_requests": 3, "record_denials": True},
    "bystander": {"budgets": [], "max_concurrent_requests": 3, "priority": -5, "affinity": "rank", "affinity_ranks": 2},
    "most": {"budgets": [], "engine_places": 5},
    "least": {"budgets": [], "engine_places": 5},
    "grouped_a": {"budgets": [], "cache_salt": "group", "cache_group": "research"},
    "grouped_b": {"budgets": [], "cache_salt": "group", "cache_group": "research"},
    "priced": {
        "budgets": [
            {
                "name": "euros",
                "limit": 1_000_000_000,
                "counts": "cost",
                "prices": [{"model": "*", "prompt": 3_000_000, "cached": 300_000, "completion": 9_000_000}],
            }
        ]
    },
}


def suite_config(directory: Path, tenants: Mapping[str, dict[str, Any]] = TENANTS) -> Path:
    """kong/kong.yaml with these tenants beside its own, and a route without usage-tap."""
    data = yaml.safe_load(default_config().read_text())
    for name, settings in tenants.items():
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
    node: docker_stack.Node | None = None  # in Docker
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


def make_keys(monkeypatch: pytest.MonkeyPatch, *tenants: str) -> None:
    """Keys in the environment, where a stack looks for them."""
    for name in [*tenants, "tenant_a", "tenant_b"]:
        monkeypatch.setenv(f"DECK_{name.upper()}_KEY", f"sk-{uuid.uuid4().hex}")


def start(options: StackOptions, resources: ExitStack) -> Running:
    """A stack on this machine, until ``resources`` end."""
    if options.gateway is Gateway.DOCKER:
        (running,) = start_in_docker([options.config], options.config.parent, resources)
        return running
    stack = start_stack(options, resources, print)
    return Running(stack, connect_ledger(stack.ledger_url), options.gateway.value)


def start_in_docker(configs: Sequence[Path], directory: Path, resources: ExitStack) -> list[Running]:
    """As many Kongs as configs, with one ledger and one engine, until ``resources`` end."""
    return [
        Running(stack, connect_ledger(stack.ledger_url), stack.gateway.value, node)
        for stack, node in docker_stack.start(configs, directory, resources)
    ]


@pytest.fixture(scope="session", params=backends.params(*backends.BACKENDS))
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("e2e")
    with ExitStack() as resources:
        monkeypatch = resources.enter_context(pytest.MonkeyPatch.context())
        make_keys(monkeypatch, *TENANTS)
        options = StackOptions(
            config=suite_config(directory), gateway=Gateway(request.param), port=0, data_dir=directory
        )
        yield start(options, resources)


# Which backends ran


_backends: dict[str, str] = {}
_outcomes: dict[str, str] = {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        backend = backends.backend_of(item) if "tests/e2e/" in item.nodeid else None
        if backend is not None:
            _backends[item.nodeid] = backend


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.nodeid in _backends and (report.when == "call" or report.outcome != "passed"):
        failed_around = report.failed and report.when != "call"
        _outcomes[report.nodeid] = "error" if failed_around else report.outcome


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _outcomes:
        outcomes = ((_backends[nodeid], outcome) for nodeid, outcome in _outcomes.items())
        terminalreporter.write_line(backends.summary(outcomes))


def chat(**more: Any) -> dict[str, Any]:
    """A small chat request."""
    return {"model": MODEL, "messages": [{"role": "user", "content": "How many?"}], "max_tokens": 64, **more}

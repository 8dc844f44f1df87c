"""Real vLLM behind the local gateway: one stack for the stage, since the engine takes a minute to start."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx2 as httpx
import openai
import pytest

from kong_plugins.adapters.engine_metrics import EngineCounters, read_counters
from kong_plugins.adapters.ledger import connect_ledger
from kong_plugins.application.books import Books, read_events, sum_events
from kong_plugins.application.ports import Ledger
from kong_plugins.cli.processes import Child
from kong_plugins.cli.stack import Gateway, Stack, StackOptions, default_config, start_stack

ENGINE_ENV = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
BLOCK = 32  # tokens; only full blocks are cached, and the CPU's default is 128
# The shipped configuration takes random weights; these are written.
ENGINE_ARGS = ("--load-format=auto", f"--block-size={BLOCK}", "--max-num-seqs=8", "--dtype=bfloat16")


@dataclass
class RealEngine:
    """A running stack, and both sides of its books."""

    stack: Stack
    ledger: Ledger
    http: httpx.Client

    def key(self, tenant: str) -> str:
        return self.stack.keys[f"DECK_{tenant.upper()}_KEY"]

    def client(self, tenant: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.stack.url}/v1", api_key=self.key(tenant), max_retries=0, timeout=60)

    def engine(self) -> EngineCounters:
        return read_counters(self.stack.engine_root)

    def books(self) -> Books:
        """Once no hold is open."""
        self.wait_for(lambda: not any(b.state.held for t in self.ledger.tenants() for b in self.ledger.balances(t)))
        return sum_events(read_events(self.ledger))

    def process(self) -> Child:
        (engine,) = (child for child in self.stack.processes.children if child.name == "engine")
        return engine

    @staticmethod
    def wait_for(condition: Callable[[], bool], timeout_s: float = 30) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {timeout_s} s"
            time.sleep(0.05)


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealEngine]:
    if not os.environ.get("TOKEN_QUOTA_VLLM_PYTHON"):
        pytest.skip("real vLLM: not installed; `make engine-test` installs and runs it")
    directory: Path = tmp_path_factory.mktemp("engine")
    with ExitStack() as resources:
        monkeypatch = resources.enter_context(pytest.MonkeyPatch.context())
        for name, value in ENGINE_ENV.items():
            monkeypatch.setenv(name, value)
        options = StackOptions(
            config=default_config(),
            gateway=Gateway.LOCAL,
            upstream="vllm-cpu",
            port=0,
            data_dir=directory,
            engine_args=ENGINE_ARGS,
            collect=True,
            collector_args=("--keep", "1h"),  # the tests read the outbox beside the books
        )
        stack = start_stack(options, resources, print)
        yield RealEngine(stack, connect_ledger(stack.ledger_url), resources.enter_context(httpx.Client(timeout=60)))

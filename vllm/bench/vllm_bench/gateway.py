"""The product in front of an engine: ledger, plugin servers and one of the gateways, with budgets that never end."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from kong_plugins.adapters.ledger import connect_ledger
from kong_plugins.application.books import read_events
from kong_plugins.application.ports import OutboxEntry
from kong_plugins.cli.kong_node import PLUGIN_SERVERS
from kong_plugins.cli.paths import source_root
from kong_plugins.cli.processes import free_port, tcp_port_answers
from kong_plugins.cli.stack import SERVICE, Gateway, Stack, StackOptions, start_stack
from vllm_bench.wire import Target

CONFIG = Path(__file__).resolve().parent.parent / "gateway.yaml"
LEDGER_S = 30.0  # the bench reads tens of thousands of events at once, beside a loaded machine
TENANTS = ("bench_a", "bench_b", "bench_c")


@dataclass(frozen=True)
class Running:
    """A gateway that answers. ``urls``: several for a local gateway in several processes."""

    stack: Stack
    urls: tuple[str, ...]

    def targets(self, tenant: str = TENANTS[0]) -> tuple[Target, ...]:
        """The table uses one tenant, so that a shared prefix is shared as it is without tenants."""
        key = self.stack.keys[f"DECK_{tenant.upper()}_KEY"]
        return tuple(Target(f"{url}/v1", (("apikey", key),)) for url in self.urls)

    def events(self) -> list[OutboxEntry]:
        """Every billing event so far."""
        ledger = connect_ledger(self.stack.ledger_url, timeout_s=LEDGER_S)
        try:
            return list(read_events(ledger))
        finally:
            ledger.close()

    def held(self) -> int:
        """Tokens held and not yet settled."""
        ledger = connect_ledger(self.stack.ledger_url, timeout_s=LEDGER_S)
        try:
            return sum(line.state.held for tenant in ledger.tenants() for line in ledger.balances(tenant))
        finally:
            ledger.close()


@contextlib.contextmanager
def gateway(
    kind: Gateway, upstream: str, processes: int, say: Callable[[str], None], config: Path = CONFIG
) -> Iterator[Running]:
    """Start it in front of ``upstream`` (``http://…/v1``): Kong with so many workers, or so many local gateways.

    Raises:
        StackError: a part did not start.
    """
    with ExitStack() as resources:
        resources.enter_context(_environment("KONG_NGINX_WORKER_PROCESSES", str(processes)))
        stack = start_stack(
            StackOptions(config=config, gateway=kind, upstream=upstream, port=0, check_engine=False), resources, say
        )
        urls = [stack.url]
        if kind is Gateway.LOCAL:
            urls += [_another(stack, config, number) for number in range(1, processes)]
        yield Running(stack, tuple(urls))


def _another(stack: Stack, config: Path, number: int) -> str:
    """One more local gateway on the same plugin servers: it runs on one core, Kong on as many as it has workers."""
    port = free_port()
    argv = [sys.executable, "-m", "kong_plugins.local_gateway", "--config", str(config), "--port", str(port)]
    for plugin in PLUGIN_SERVERS:
        argv += ["--plugin-socket", f"{plugin}={stack.run_dir / f'{plugin}.sock'}"]
    argv += ["--plugins-dir", str(source_root() / "kong" / "plugins")]
    argv += ["--upstream-override", f"{SERVICE}={stack.upstream_url}"]
    env = {**stack.keys, "TOKEN_QUOTA_LEDGER_URL": stack.ledger_url}
    stack.processes.start(f"gateway-{number}", argv, env, tcp_port_answers(port))
    return f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Kong reads every setting also from KONG_…, and that one wins over its file."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before

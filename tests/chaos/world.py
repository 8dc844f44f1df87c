"""The whole way from a request to the books as processes, to each of which anything may happen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx2 as httpx
import pytest
import yaml

from kong_plugins.cli.processes import free_port, tcp_port_answers, unix_socket_answers
from kong_plugins.cli.stack import SIM_FLAGS, Gateway, Stack, StackOptions, default_config, start_stack
from tests.chaos.disks import Disk
from tests.chaos.engine import CLIENT_HEADER
from tests.chaos.kong import KongServer, KongWorker
from tests.chaos.ledgers import Ledger
from tests.chaos.parts import Part, Process
from tests.chaos.places import Place

PLUGIN_SERVERS = ("token-quota", "billing-events")
GENEROUS = 900_000_000
POOR_LIMIT = 1_500  # tokens a minute: a few requests, so that its tenant is at its edge all the time
PROBE = "probe-"  # begins the names of requests that no client of ours sent
PLUGIN_TIMEOUT_S = 3.0  # a gateway's patience with a plugin server; Kong's default is a minute
PLACES = {"ledger": 96, "spool": 4, "books": 24}  # megabytes of each small disk


@dataclass(frozen=True)
class WorldOptions:
    """``mutant``: of :mod:`tests.chaos.mutants`, planted into the processes ``mutated``. ``disks``: ledger, spool and
    books each have a small one of their own. ``recovers_s``: how long all may take until it is well again."""

    appendfsync: Literal["everysec", "always"] = "everysec"
    gateway: Gateway = Gateway.LOCAL
    disks: bool = False
    mutant: str = ""
    mutated: tuple[str, ...] = ()
    recovers_s: float = 30.0
    rich: tuple[str, ...] = ("kilo", "lima")  # tenants whose budgets never refuse
    poor: tuple[str, ...] = ("mike",)
    probe: str = "nina"

    @property
    def tenants(self) -> tuple[str, ...]:
        return (*self.rich, *self.poor, self.probe)


def config(options: WorldOptions, ledger_timeout_ms: int) -> dict[str, Any]:
    """kong/kong.yaml with the world's tenants. The client's name of a request goes into its event."""
    data: dict[str, Any] = yaml.safe_load(default_config().read_text())
    for service in data["services"]:
        for row in service["plugins"]:
            if row["name"] == "usage-gate":
                row["config"]["headers"] = [CLIENT_HEADER]
    generous = [
        {"name": "monthly", "limit": GENEROUS, "window": "month"},
        {"name": "hourly", "limit": GENEROUS, "window": "hour", "window_kind": "rolling"},
    ]
    poor = [{"name": "minutely", "limit": POOR_LIMIT, "window": "minute"}]
    rows = {tenant: poor if tenant in options.poor else generous for tenant in options.tenants}
    common = {"context_tokens": 8192, "event_headers": [CLIENT_HEADER], "ledger_timeout_ms": ledger_timeout_ms}
    data["consumers"] = [
        {
            "username": tenant,
            "keyauth_credentials": [{"key": f'${{{{ env "{key_name(tenant)}" }}}}'}],
            "plugins": [{"name": "token-quota", "config": {**common, "budgets": budgets}}],
        }
        for tenant, budgets in rows.items()
    ]
    return data


def key_name(tenant: str) -> str:
    return f"DECK_{tenant.upper()}_KEY"


class World:
    """A running stack. ``parts`` are its processes by name, in the order in which they are started again."""

    def __init__(
        self, directory: Path, resources: ExitStack, ledger: Ledger, engine: Place, options: WorldOptions
    ) -> None:
        self.options = options
        self.directory = directory
        self.ledger = ledger
        self.spool_dir, self.books_dir = directory / "spool", directory / "books"
        self.disks: dict[str, Disk] = {}
        monkeypatch = resources.enter_context(pytest.MonkeyPatch.context())
        for tenant in options.tenants:
            monkeypatch.setenv(key_name(tenant), f"sk-{os.urandom(16).hex()}")
        monkeypatch.setenv("TOKEN_QUOTA_SPOOL_DIR", str(self.spool_dir))
        for name in PLACES if options.disks else ():
            if name == "ledger" and ledger.directory is None:
                continue
            self.disks[name] = Disk(directory / name, PLACES[name], resources)
        for path in (self.spool_dir, self.books_dir):
            path.mkdir(exist_ok=True)
        self.books, self.lines = self.books_dir / "books.duckdb", self.books_dir / "lines"
        self.received, self.journal = directory / "received.jsonl", directory / "engine.jsonl"

        self.parts: dict[str, Part] = {}
        self._ours: list[Process] = []
        resources.callback(self._end)
        for part in ledger.start(resources):
            self.parts[part.name] = part
        self.engine_root = self._start_engine(engine)
        self.stack = self._start_gateway(resources)
        resources.callback(self._end)  # before its directory goes
        self.keys = {tenant: self.stack.keys[key_name(tenant)] for tenant in options.tenants}
        self._start_sinks()

    def restore(self) -> None:
        """Start again whatever is gone, as Kong, systemd or Docker would."""
        for part in self.parts.values():
            part.restore()

    def gone(self) -> list[str]:
        return [part.name for part in self.parts.values() if not part.pid()]

    def socket_of(self, plugin: str) -> Path:
        run_dir = self.stack.run_dir
        return (run_dir / "kong" if self.options.gateway is Gateway.KONG else run_dir) / f"{plugin}.sock"

    def serves(self, words: str = "Are you there?") -> str:
        """What a fresh request gets: empty when it is served, else what came in its place."""
        body = {"model": "deepseek-r1", "max_tokens": 8, "messages": [{"role": "user", "content": words}]}
        headers = {"apikey": self.keys[self.options.probe], CLIENT_HEADER: f"{PROBE}{time.time_ns()}"}
        try:
            answer = httpx.post(f"{self.stack.url}/v1/chat/completions", json=body, headers=headers, timeout=5)
        except httpx.HTTPError as error:
            return type(error).__name__
        return "" if answer.status_code == 200 else f"{answer.status_code} {answer.text[:200]}"

    def collector_ready(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self._collector_port}/readyz", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    def drain(self) -> None:
        """All that is in the outbox is in the books, or this raises."""
        collector = self.parts["collector"]
        assert isinstance(collector, Process)
        collector.stop()
        argv = [sys.executable, "-m", "kong_plugins.cli", "collector", "drain", *self._collector_options()]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr

    def reconcile(self) -> tuple[int, dict[str, Any]]:
        """`token-quota reconcile` of the day so far: its status and what it found."""
        argv = [sys.executable, "-m", "kong_plugins.cli", "reconcile", "--books", str(self.books), "--format", "json"]
        argv += ["--ledger", self.ledger.url, "--engine", self.engine_root]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    def _start_engine(self, place: Place) -> str:
        port = place.free_port()
        argv = [sys.executable, "-m", "tests.chaos.engine", str(self.journal), "--host", place.address]
        argv += ["--port", str(port), *SIM_FLAGS, "--answer=varied", "--token-delay-ms=3"]
        self._start("engine", place.command(argv), tcp_port_answers(port, place.address))
        return f"http://{place.address}:{port}"

    def _start_gateway(self, resources: ExitStack) -> Stack:
        path = self.directory / "kong.yaml"
        path.write_text(yaml.safe_dump(config(self.options, self.ledger.timeout_ms), sort_keys=False))
        options = StackOptions(
            config=path,
            gateway=self.options.gateway,
            upstream=f"{self.engine_root}/v1",
            port=0,
            data_dir=self.directory,
            ledger_url=self.ledger.url,
            check_engine=False,
        )
        stack = start_stack(options, resources, lambda _: None)
        if self.options.gateway is Gateway.KONG:
            prefix = stack.run_dir / "kong"
            for name in PLUGIN_SERVERS:
                self.parts[name] = KongServer(name, prefix)
            self.parts["gateway"] = KongWorker(prefix, tcp_port_answers(int(stack.url.rpartition(":")[2])))
            return stack
        env = {**stack.keys, "TOKEN_QUOTA_LEDGER_URL": self.ledger.url, "TOKEN_QUOTA_SPOOL_DIR": str(self.spool_dir)}
        ready = {name: unix_socket_answers(stack.run_dir / f"{name}.sock") for name in PLUGIN_SERVERS}
        ready["gateway"] = tcp_port_answers(int(stack.url.rpartition(":")[2]))
        for child in list(stack.processes.children):
            # Ours from now on, as start_stack() knows no way to give the gateway its patience, or to plant a mutant.
            child.stop()
            argv = list(map(str, child.process.args))  # type: ignore[arg-type]
            if child.name == "gateway":
                argv += ["--plugin-timeout", str(PLUGIN_TIMEOUT_S)]
            self._start(child.name, argv, ready[child.name], env)
        stack.processes.children.clear()
        return stack

    def _start_sinks(self) -> None:
        self._receiver_port = free_port()
        argv = [sys.executable, "-m", "tests.chaos.receiver", str(self._receiver_port), str(self.received)]
        self._start("sink", argv, tcp_port_answers(self._receiver_port))
        self._collector_port = free_port()
        argv = [sys.executable, "-m", "kong_plugins.cli", "collector", "run", *self._collector_options()]
        # Small batches: more seams to fail at.
        argv += ["--batch", "25", "--linger-ms", "20", "--engine", self.engine_root]
        argv += ["--listen", f"127.0.0.1:{self._collector_port}"]
        self._start("collector", argv, tcp_port_answers(self._collector_port))

    def _collector_options(self) -> list[str]:
        receiver = f"cloudevents+http://127.0.0.1:{self._receiver_port}/api/v1/events"
        sinks = (f"duckdb://{self.books}", f"jsonl://{self.lines}?rotate_mb=1", receiver)
        return ["--ledger", self.ledger.url, *(part for sink in sinks for part in ("--sink", sink))]

    def _start(self, name: str, argv: Sequence[str], ready: Any, env: Mapping[str, str] | None = None) -> None:
        if name in self.options.mutated:
            at = argv.index("-m") + 1
            argv = [*argv[:at], "tests.chaos.mutants", self.options.mutant, *argv[at:]]
        process = Process(name, argv, self.directory / f"{name}.log", ready, env or {})
        self.parts[name] = process
        self._ours.append(process)
        process.restore()

    def _end(self) -> None:
        for process in reversed(self._ours):
            process.stop()

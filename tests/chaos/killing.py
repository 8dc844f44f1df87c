"""The stack and its collector as processes that can be killed with SIGKILL and started again as they were."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import yaml

from kong_plugins.adapters.ledger import EmbeddedValkey
from kong_plugins.cli.processes import Child, free_port, tcp_port_answers, unix_socket_answers
from kong_plugins.cli.stack import Gateway, Stack, StackOptions, default_config, start_stack

PLUGIN_SERVERS = ("token-quota", "billing-events")
BACK_S = 30.0


class Victim(StrEnum):
    TOKEN_QUOTA = "token-quota"
    BILLING_EVENTS = "billing-events"
    PLUGIN_SERVERS = "both plugin servers"
    LEDGER = "ledger"
    COLLECTOR = "collector"
    COLLECTOR_AND_LEDGER = "collector and ledger"
    SINK = "sink"


def config(directory: Path, tenants: tuple[str, ...]) -> Path:
    """kong/kong.yaml with tenants whose budgets never refuse: what is refused tells nothing about kills."""
    data: dict[str, Any] = yaml.safe_load(default_config().read_text())
    budgets = [
        {"name": "monthly", "limit": 900_000_000, "window": "month"},
        {"name": "hourly", "limit": 900_000_000, "window": "hour", "window_kind": "rolling"},
    ]
    data["consumers"] = [
        {
            "username": tenant,
            "keyauth_credentials": [{"key": f'${{{{ env "DECK_{tenant.upper()}_KEY" }}}}'}],
            "plugins": [{"name": "token-quota", "config": {"budgets": budgets, "context_tokens": 8192}}],
        }
        for tenant in tenants
    ]
    path = directory / "kong.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def _environment(pid: int) -> dict[str, str]:
    pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return dict(pair.decode("utf-8", "surrogateescape").split("=", 1) for pair in pairs if b"=" in pair)


class Killable:
    """The whole way from a request to the books, each process of which may be killed at any time."""

    def __init__(
        self,
        directory: Path,
        resources: ExitStack,
        tenants: tuple[str, ...],
        appendfsync: Literal["everysec", "always"] = "everysec",
        collector: str = "kong_plugins.cli",
    ) -> None:
        """``collector``: the module that the collector is run as."""
        self.directory = directory
        self.ledger = resources.enter_context(EmbeddedValkey(directory / "ledger", appendfsync=appendfsync))
        options = StackOptions(
            config=config(directory, tenants),
            gateway=Gateway.LOCAL,
            port=0,
            data_dir=directory,
            ledger_url=self.ledger.url,
            engine_args=("--answer=varied", "--token-delay-ms=3"),
        )
        self.stack: Stack = start_stack(options, resources, lambda _: None)
        self.books = directory / "books.duckdb"
        self.lines = directory / "lines"
        self.received = directory / "received.jsonl"
        self._receiver_port = free_port()
        self._receiver = self._start_receiver()
        resources.callback(lambda: _kill(self._receiver))
        self._collector_module, self._collector_port = collector, free_port()
        self._collector_log = resources.enter_context((directory / "collector.log").open("ab"))
        self._collector = self._start_collector()
        resources.callback(self._end_collector)

    def kill(self, victim: Victim) -> None:
        """SIGKILL; returns when it is gone."""
        match victim:
            case Victim.LEDGER:
                self._kill_ledger()
            case Victim.COLLECTOR:
                self._kill_collector()
            case Victim.COLLECTOR_AND_LEDGER:
                self._kill_collector()
                self._kill_ledger()
            case Victim.PLUGIN_SERVERS:
                for name in PLUGIN_SERVERS:
                    _kill(self._child(name).process)
            case Victim.SINK:
                _kill(self._receiver)
            case _:
                _kill(self._child(victim.value).process)

    def restore(self) -> None:
        """Start again whatever is gone, as Kong, systemd or Docker would."""
        if not self._ledger_runs():
            self.ledger.start()
        for name in PLUGIN_SERVERS:
            child = self._child(name)
            if child.ended():
                self._restart(child)
        if self._receiver.poll() is not None:
            self._receiver = self._start_receiver()
        if self._collector.poll() is not None:
            self._collector = self._start_collector()

    def drain(self) -> None:
        """All that is in the outbox is in the books, or this raises."""
        self._end_collector()
        argv = [sys.executable, "-m", "kong_plugins.cli", "collector", "drain", *self._collector_options()]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr

    def reconcile(self) -> tuple[int, dict[str, Any]]:
        """`token-quota reconcile` of the day so far: its status and what it found."""
        argv = [sys.executable, "-m", "kong_plugins.cli", "reconcile", "--books", str(self.books), "--format", "json"]
        argv += ["--ledger", self.stack.ledger_url, "--engine", self.stack.engine_root]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    def _collector_options(self) -> list[str]:
        receiver = f"cloudevents+http://127.0.0.1:{self._receiver_port}/api/v1/events"
        sinks = (f"duckdb://{self.books}", f"jsonl://{self.lines}?rotate_mb=1", receiver)
        return ["--ledger", self.stack.ledger_url, *(part for sink in sinks for part in ("--sink", sink))]

    def _start_collector(self) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", self._collector_module, "collector", "run", *self._collector_options()]
        # Small batches: more seams to be killed at.
        argv += ["--batch", "25", "--linger-ms", "20", "--engine", self.stack.engine_root]
        argv += ["--listen", f"127.0.0.1:{self._collector_port}"]
        log = self._collector_log
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        # A kill while it starts breaks nothing: it is to be at work before the next.
        _wait_for(tcp_port_answers(self._collector_port), "the collector")
        return process

    def _start_receiver(self) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "tests.chaos.receiver", str(self._receiver_port), str(self.received)]
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True)
        _wait_for(tcp_port_answers(self._receiver_port), "the receiver")
        return process

    def _end_collector(self) -> None:
        if self._collector.poll() is None:
            self._collector.terminate()
            self._collector.wait(BACK_S)

    def _kill_collector(self) -> None:
        _kill(self._collector)

    def _ledger_runs(self) -> bool:
        process = self.ledger._process
        return process is not None and process.poll() is None

    def _kill_ledger(self) -> None:
        process = self.ledger._process
        if process is not None:
            _kill(process)

    def _child(self, name: str) -> Child:
        return next(child for child in self.stack.processes.children if child.name == name)

    def _restart(self, child: Child) -> None:
        """With the very arguments and environment that it had."""
        with child.log.open("ab") as log:
            child.process = subprocess.Popen(
                list(map(str, child.process.args)),  # type: ignore[arg-type]
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environments[child.name],
                start_new_session=True,
            )
        socket = self.stack.run_dir / f"{child.name}.sock"
        _wait_for(unix_socket_answers(socket), child.name)

    @property
    def _environments(self) -> dict[str, dict[str, str]]:
        """Taken while they run, at the first look."""
        if not hasattr(self, "_environments_seen"):
            gateway = next(child for child in self.stack.processes.children if child.name == "gateway")
            self._environments_seen = dict.fromkeys(PLUGIN_SERVERS, _environment(gateway.process.pid))
        return self._environments_seen


def _wait_for(answers: Callable[[], bool], name: str) -> None:
    deadline = time.monotonic() + BACK_S
    while not answers():
        assert time.monotonic() < deadline, f"{name} did not come back"
        time.sleep(0.02)


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()

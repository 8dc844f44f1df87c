"""The stack that runs for an hour: everything real but the engine, and a second engine that nothing stands before."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kong_plugins.adapters.ledger import EmbeddedValkey
from kong_plugins.cli import kong_node
from kong_plugins.cli.processes import Child, free_port, tcp_port_answers
from kong_plugins.cli.stack import SIM_FLAGS, Gateway, Stack, StackOptions, start_stack
from tests.longrun.short_memory import REMEMBER_ENV
from tests.longrun.tenants import Tenants

ENGINE = ("--answer=varied", "--token-delay-ms=20")
JUDGED = ("gateway", "token-quota", "billing-events", "collector", "ledger")  # the engine is a stand-in


@dataclass
class Stage:
    """``metrics_port``: of the first plugin server; the second has the next one that is free."""

    directory: Path
    tenants: Tenants
    stack: Stack
    ledger: EmbeddedValkey
    bare_port: int
    metrics_port: int

    @classmethod
    def set_up(cls, directory: Path, resources: ExitStack, remember_s: int) -> Stage:
        """``remember_s``: how long the ledger remembers what is over; 0: as long as the shipped one."""
        monkeypatch = resources.enter_context(pytest.MonkeyPatch.context())
        metrics_port = free_port()
        monkeypatch.setenv("TOKEN_QUOTA_SPOOL_DIR", str(directory / "spool"))
        monkeypatch.setenv("TOKEN_QUOTA_METRICS_PORT", str(metrics_port))
        plugin_args: tuple[str, ...] = ()
        if remember_s:
            monkeypatch.setenv(REMEMBER_ENV, str(remember_s))
            plugin_args = ("--instance-idle", str(remember_s))
            for name in kong_node.PLUGIN_SERVERS:
                monkeypatch.setitem(kong_node.PLUGIN_SERVERS, name, "tests.longrun.short_memory")
        ledger = resources.enter_context(EmbeddedValkey(directory / "ledger"))
        tenants = Tenants(directory / "kong.yaml")
        options = StackOptions(
            config=tenants.path,
            gateway=Gateway.LOCAL,
            port=0,
            data_dir=directory,
            ledger_url=ledger.url,
            engine_args=ENGINE,
            plugin_args=plugin_args,
            collect=True,
        )
        stack = start_stack(options, resources, print)
        bare_port = free_port()
        argv = [sys.executable, "-m", "kong_plugins.engine_sim", "--port", str(bare_port), *SIM_FLAGS, *ENGINE]
        stack.processes.start("bare engine", argv, {}, tcp_port_answers(bare_port))
        return cls(directory, tenants, stack, ledger, bare_port, metrics_port)

    @property
    def pids(self) -> dict[str, int]:
        children = {child.name: child.process.pid for child in self.stack.processes.children}
        return {**children, "ledger": self.ledger.pid}

    @property
    def gateway_port(self) -> int:
        return int(self.stack.url.rpartition(":")[2])

    @property
    def books(self) -> Path:
        assert self.stack.books is not None
        return self.stack.books

    def reload(self) -> None:
        """The gateway is told of the configuration as written."""
        os.kill(self._child("gateway").process.pid, signal.SIGHUP)

    def drain(self) -> None:
        """All that is in the outbox is in the books, or this raises."""
        self._child("collector").stop()
        done = self._command("collector", "drain", "--ledger", self.ledger.url, "--sink", f"duckdb://{self.books}")
        assert done.returncode == 0, done.stderr

    def reconcile(self, day: str) -> tuple[int, dict[str, Any]]:
        """`token-quota reconcile` of a day: its status and what it found."""
        argv = ("reconcile", "--day", day, "--books", str(self.books), "--format", "json")
        done = self._command(*argv, "--ledger", self.ledger.url, "--engine", self.stack.engine_root)
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    def _child(self, name: str) -> Child:
        return next(child for child in self.stack.processes.children if child.name == name)

    @staticmethod
    def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "kong_plugins.cli", *arguments]
        return subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)

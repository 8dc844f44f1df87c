"""What an operator does to a running node: another configuration, a plugin server that ends."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2 as httpx
import yaml

from kong_plugins.adapters.deck_file import render
from kong_plugins.cli import kong_node
from kong_plugins.cli.processes import unix_socket_answers
from kong_plugins.cli.stack import SERVICE, Gateway
from tests.e2e.conftest import Running
from tests.e2e.waiting import wait_for


def set_budgets(config: Path, tenant: str, budgets: list[dict[str, Any]]) -> None:
    """Edit a consumer's row as an operator would."""
    data = yaml.safe_load(config.read_text())
    (consumer,) = (each for each in data["consumers"] if each["username"] == tenant)
    (row,) = (each for each in consumer["plugins"] if each["name"] == "token-quota")
    row["config"]["budgets"] = budgets
    config.write_text(yaml.safe_dump(data, sort_keys=False))


def reload(running: Running, config: Path) -> None:
    """`kong reload`, a container's `token-quota-reload`, the local gateway's SIGHUP: in effect a moment later."""
    stack = running.stack
    if running.node is not None:
        running.node.run("token-quota-reload")
        return
    if stack.gateway is Gateway.LOCAL:
        gateway = next(child for child in stack.processes.children if child.name == "gateway")
        gateway.process.send_signal(signal.SIGHUP)
        return
    prefix = stack.run_dir / "kong"
    (prefix / "kong.yaml").write_text(_rendered(running, config))
    kong = kong_node.find_kong()
    assert kong is not None
    command = [kong, "reload", "-c", str(prefix / "token-quota.conf")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def post_config(running: Running, config: Path, admin_url: str) -> None:
    """DB-less Kong's Admin API."""
    answer = httpx.post(f"{admin_url}/config", json={"config": _rendered(running, config)}, timeout=30)
    assert answer.status_code == 201, answer.text


def _rendered(running: Running, config: Path) -> str:
    if running.node is not None:  # its engine has the name that the file says
        return render(config.read_text(), running.stack.keys)
    return kong_node.render(config, running.stack.keys, SERVICE, running.stack.upstream_url)


def end_server(running: Running, plugin: str = "token-quota", how: signal.Signals = signal.SIGKILL) -> None:
    """End a plugin server and wait for the next one, which Kong starts; in the stand-in's place we do."""
    stack, node = running.stack, running.node
    if node is not None:
        pid = node.server_pid(plugin)
        node.kill(pid, how)
        wait_for(lambda: node.server_pid(plugin) not in (0, pid), f"a new {plugin}", 30)
        return
    if stack.gateway is Gateway.KONG:
        sock = stack.run_dir / "kong" / f"{plugin}.sock"
        pid = server_pid(sock)
        os.kill(pid, how)
        wait_for(lambda: server_pid(sock) not in (0, pid), f"a new {plugin}", 30)
        return
    child = next(child for child in stack.processes.children if child.name == plugin)
    child.process.send_signal(how)
    child.process.wait(30)
    at = stack.processes.children.index(child)
    env = {**stack.keys, "TOKEN_QUOTA_LEDGER_URL": stack.ledger_url}
    assert isinstance(child.process.args, list)
    answers = unix_socket_answers(stack.run_dir / f"{plugin}.sock")
    replaced = stack.processes.start(plugin, child.process.args, env, answers)
    stack.processes.children.remove(replaced)
    stack.processes.children[at] = replaced


def server_pid(sock: Path) -> int:
    """The process that listens there; 0: none. (After a reload its predecessors may still be ending.)"""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(sock))
        except OSError:
            return 0
        pid, _, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(pid)


def processes_with(argument: str) -> list[int]:
    """Processes that were started with this among their arguments."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            if argument.encode() in entry.read_bytes().split(b"\0"):
                found.append(int(entry.parent.name))
    return found

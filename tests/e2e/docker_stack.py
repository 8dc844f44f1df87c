"""The stack in Docker, through pytest-docker: the operator's own docker-compose.yml, and what tests look through."""

from __future__ import annotations

import shlex
import signal
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from pytest_docker.plugin import DockerComposeExecutor, get_docker_services

from kong_plugins.cli import compose
from kong_plugins.cli.paths import source_root
from kong_plugins.cli.processes import Processes, free_port
from kong_plugins.cli.stack import Gateway, Stack, StackOptions, keys_for

HERE = Path(__file__).parent
KONG = "kong"
SECOND_KONG = "second-kong"  # docker-second-node.yml
PYTHON = "/opt/token-quota/bin/python"
# Prints the process that listens at a socket; 0: none. (After a reload its predecessors may still be ending.)
LISTENER = """
import socket, struct, sys
probe = socket.socket(socket.AF_UNIX)
try:
    probe.connect(sys.argv[1])
    print(struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])
except OSError:
    print(0)
"""
PROXY_PORT, ADMIN_PORT, LEDGER_PORT, ENGINE_PORT = 8000, 8001, 6379, 8000


class Node:
    """One Kong's container."""

    def __init__(self, executor: DockerComposeExecutor, service: str, admin_url: str) -> None:
        self._executor = executor
        self.service = service
        self.admin_url = admin_url

    def run(self, *command: str) -> str:
        """A command in it, as its own user. Returns what it printed.

        Raises:
            Exception: pytest-docker's, with what it printed, where it did not end with 0.
        """
        printed: bytes = self._executor.execute(f"exec -T {self.service} {shlex.join(command)}")
        return printed.decode()

    def stop(self) -> None:
        """`docker compose stop`: returns when the container has ended, or was ended."""
        self._executor.execute(f"stop {self.service}")

    def server_pid(self, plugin: str) -> int:
        """The plugin server's, as its container numbers processes; 0: none listens."""
        return int(self.run(PYTHON, "-c", LISTENER, f"/run/kong/{plugin}.sock"))

    def kill(self, pid: int, how: signal.Signals) -> None:
        self.run(PYTHON, "-c", "import os, sys; os.kill(int(sys.argv[1]), int(sys.argv[2]))", str(pid), str(how.value))


def start(configs: Sequence[Path], data_dir: Path, resources: ExitStack) -> list[tuple[Stack, Node]]:
    """One compose project: a Kong for each config (one or two), one ledger, one engine. ``resources`` ends it all.

    Its images are built first. Keys are the environment's, else made up.
    """
    options = StackOptions(config=configs[0], gateway=Gateway.DOCKER, port=free_port(), data_dir=data_dir)
    keys, _ = keys_for(options.config)
    secrets = data_dir / "secrets"
    compose.make_secrets(secrets, options.config, keys)
    for config in configs:  # a container's user is nobody that this machine knows
        config.parent.chmod(0o755)
        config.chmod(0o644)
    files = [source_root() / "docker-compose.yml", HERE / "docker-ports.yml"]
    settings = compose.settings(options, secrets)
    services = [KONG]
    if len(configs) > 1:
        files.append(HERE / "docker-second-node.yml")
        settings["TOKEN_QUOTA_SECOND_CONFIG_DIR"] = str(configs[1].parent.resolve())
        services.append(SECOND_KONG)
    # Not in our own environment: stacks live side by side, and each is told of again when it is taken down.
    assignments = [f"{name}={value}" for name, value in settings.items()]
    command = shlex.join(["env", *assignments, "docker", "compose", "--profile", compose.ENGINE_PROFILE])
    project = f"e2e-{uuid.uuid4().hex[:8]}"
    names = [str(file) for file in files]
    running = resources.enter_context(
        get_docker_services(command, names, project, ["up --build --wait"], ["down --volumes"])
    )
    executor = DockerComposeExecutor(command, names, project)
    password = (secrets / "ledger_password").read_text().strip()
    ledger_url = f"redis://:{password}@127.0.0.1:{running.port_for('ledger', LEDGER_PORT)}/0"
    engine_url = f"http://127.0.0.1:{running.port_for('vllm-sim', ENGINE_PORT)}/v1"
    nodes = []
    for service in services:
        stack = Stack(
            url=f"http://127.0.0.1:{running.port_for(service, PROXY_PORT)}",
            upstream_url=engine_url,
            ledger_url=ledger_url,
            gateway=Gateway.DOCKER,
            keys=keys,
            run_dir=data_dir,
            processes=Processes(data_dir / "logs"),
            resources=resources,
        )
        admin_url = f"http://127.0.0.1:{running.port_for(service, ADMIN_PORT)}"
        nodes.append((stack, Node(executor, service, admin_url)))
    return nodes

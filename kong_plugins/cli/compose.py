"""`--gateway docker`: the stack as docker-compose.yml describes it."""

from __future__ import annotations

import os
import subprocess
import threading

from rich.console import Console

from kong_plugins.cli.paths import source_root
from kong_plugins.cli.processes import StackError
from kong_plugins.cli.stack import StackOptions, keys_for

UP_TIMEOUT_S = 900  # the first run builds the image


def run_compose(options: StackOptions, stop: threading.Event, console: Console) -> int:
    """Bring the compose project up, wait for a signal, take it down.

    Raises:
        StackError: Docker's engine does not answer, an option has no meaning there, or a container did not start.
    """
    if options.upstream != "sim":
        raise StackError("--gateway docker runs its own engine: start another with docker-compose.yml")
    keys, generated = keys_for(options.config)
    env = {
        **os.environ,
        **keys,
        "TOKEN_QUOTA_PORT": str(options.port or 8000),
        "TOKEN_QUOTA_CONFIG": str(options.config.resolve()),
    }
    compose = ["docker", "compose", "--file", str(source_root() / "docker-compose.yml")]
    engine = subprocess.run(["docker", "info"], capture_output=True, text=True, check=False)  # noqa: S607 docker is found on PATH on purpose
    if engine.returncode != 0:
        raise StackError(f"Docker's engine does not answer; start it, or use --gateway local:\n{engine.stderr.strip()}")
    try:
        started = subprocess.run(
            [*compose, "up", "--build", "--detach", "--wait"], env=env, timeout=UP_TIMEOUT_S, check=False
        )
        if started.returncode != 0:
            raise StackError("docker compose could not start everything; see `docker compose logs`")
        console.print(f"gateway     http://127.0.0.1:{env['TOKEN_QUOTA_PORT']} (Kong in Docker)")
        for name in generated:
            console.print(f"key         {name} {keys[name]}", markup=False)
        stop.wait()
    finally:
        subprocess.run([*compose, "down"], env=env, check=False)
    return 0

"""`--gateway docker`: the stack as docker-compose.yml describes it."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
from pathlib import Path

from rich.console import Console

from kong_plugins.cli.paths import source_root
from kong_plugins.cli.processes import StackError
from kong_plugins.cli.stack import StackOptions, keys_for

UP_TIMEOUT_S = 900  # the first run builds the image
ENGINE_PROFILE = "sim"


def run_compose(options: StackOptions, stop: threading.Event, console: Console) -> int:
    """Bring the compose project up, wait for a signal, take it down. Its volumes stay: ledger, books and spool.

    Raises:
        StackError: Docker's engine does not answer, an option has no meaning there, or a container did not start.
    """
    if options.upstream != "sim":
        raise StackError("--gateway docker runs its own engine: start another with `docker compose --profile …`")
    engine = subprocess.run(["docker", "info"], capture_output=True, text=True, check=False)  # noqa: S607 docker is found on PATH on purpose
    if engine.returncode != 0:
        raise StackError(f"Docker's engine does not answer; start it, or use --gateway local:\n{engine.stderr.strip()}")
    keys, generated = keys_for(options.config)
    # mkdtemp makes it for us alone; Compose mounts the files of it into the containers.
    with tempfile.TemporaryDirectory(prefix="token-quota-secrets-") as directory:
        make_secrets(Path(directory), options.config, keys)
        filled_in = settings(options, Path(directory))
        env = {**os.environ, **filled_in}
        compose = compose_command(source_root())
        try:
            started = subprocess.run(
                [*compose, "up", "--build", "--detach", "--wait"], env=env, timeout=UP_TIMEOUT_S, check=False
            )
            if started.returncode != 0:
                raise StackError("docker compose could not start everything; see `docker compose logs`")
            console.print(f"gateway     http://127.0.0.1:{filled_in['TOKEN_QUOTA_PORT']} (Kong in Docker)")
            for name in generated:
                console.print(f"key         {name} {keys[name]}", markup=False)
            stop.wait()
        except subprocess.TimeoutExpired:
            raise StackError(f"docker compose was not up after {UP_TIMEOUT_S} s; see `docker compose logs`") from None
        finally:
            subprocess.run([*compose, "down"], env=env, check=False)
    return 0


def compose_command(root: Path) -> list[str]:
    """``docker compose`` on the source tree's file, with the stand-in as its engine whatever COMPOSE_PROFILES says."""
    return ["docker", "compose", "--file", str(root / "docker-compose.yml"), "--profile", ENGINE_PROFILE]


def settings(options: StackOptions, secrets: Path) -> dict[str, str]:
    """What docker-compose.yml's ``${…}`` are filled from, as environment variables."""
    return {
        "TOKEN_QUOTA_PORT": str(options.port or 8000),
        "TOKEN_QUOTA_CONFIG_DIR": str(options.config.resolve().parent),
        "TOKEN_QUOTA_CONFIG_FILE": options.config.resolve().name,
        "TOKEN_QUOTA_SECRETS": str(secrets),
    }


def make_secrets(directory: Path, config: Path, keys: dict[str, str]) -> None:
    """Every file that docker-compose.yml's secrets name, with ``keys`` (by DECK_… name) among them.

    Raises:
        StackError: they could not be made; with the script's own words.
    """
    script = source_root() / "deploy" / "docker" / "make-secrets.sh"
    made = subprocess.run(
        ["sh", str(script), str(directory), str(config)],  # noqa: S607 sh is found on PATH on purpose
        env={**os.environ, **keys},
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode != 0:
        raise StackError(f"no secrets for Docker: {made.stderr.strip()}")

"""A Kong with a database: a PostgreSQL of our own, Kong's tables in it, decK that puts a file in."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from kong_plugins.cli.kong_node import find_kong
from kong_plugins.cli.processes import free_port
from kong_plugins.cli.stack import SERVICE

# Where Debian keeps what initdb and postgres are; elsewhere they are on PATH.
DEBIAN = "/usr/lib/postgresql"
USER = "kong"


def left_out() -> str | None:
    """Why there is no such Kong here; None: there is one."""
    if find_kong() is None:
        return "no `kong` on PATH and KONG_BIN is not set"
    if find_deck() is None:
        return "no `deck` on PATH and DECK_BIN is not set"
    if _program("initdb") is None:
        return "no PostgreSQL server: no `initdb` on PATH"
    return None


def find_deck() -> str | None:
    return os.environ.get("DECK_BIN") or shutil.which("deck")


def _program(name: str) -> str | None:
    places = [str(path) for path in sorted(Path(DEBIAN).glob("*/bin"), reverse=True)]
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *places]))


@contextmanager
def postgres() -> Iterator[dict[str, str]]:
    """An empty PostgreSQL with Kong's tables, on a port of 127.0.0.1; Kong's environment for it."""
    # Not under pytest's directories, which are for one user only: PostgreSQL does not run as root.
    directory = Path(tempfile.mkdtemp(prefix="token-quota-postgres-"))
    user = None
    if os.geteuid() == 0:
        user = next(name for name in ("postgres", "nobody") if _exists(name))
        os.chown(directory, pwd.getpwnam(user).pw_uid, -1)
    data, port = str(directory / "data"), free_port()

    def run(name: str, *args: str) -> None:
        command = [_program(name) or name, *args]
        log = directory / f"{name}.log"  # postgres keeps an inherited pipe open
        with log.open("wb") as output:
            done = subprocess.run(
                command, user=user, cwd=directory, stdout=output, stderr=subprocess.STDOUT, check=False
            )
        assert done.returncode == 0, log.read_text()

    try:
        run("initdb", "-D", data, "-U", USER, "--auth=trust", "-E", "UTF8", "--no-sync")
        options = f"-c listen_addresses=127.0.0.1 -p {port} -k {directory} -c fsync=off -c max_connections=50"
        run("pg_ctl", "-D", data, "-w", "-l", f"{data}/log", "-o", options, "start")
        try:
            run("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", USER, USER)
            env = {
                "KONG_DATABASE": "postgres",
                "KONG_PG_HOST": "127.0.0.1",
                "KONG_PG_PORT": str(port),
                "KONG_PG_USER": USER,
                "KONG_PG_DATABASE": USER,
            }
            kong(["migrations", "bootstrap"], {**env, "KONG_PREFIX": str(directory / "migrations")})
            yield env
        finally:
            run("pg_ctl", "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(directory)


def _exists(user: str) -> bool:
    return any(entry.pw_name == user for entry in pwd.getpwall())


def kong(args: list[str], env: Mapping[str, str]) -> None:
    program = find_kong()
    assert program is not None
    done = subprocess.run([program, *args], env={**os.environ, **env}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def deck(command: str, config: Path, admin_url: str, keys: Mapping[str, str], *args: str) -> tuple[int, str]:
    """`deck gateway COMMAND`: its status and what it said."""
    program = find_deck()
    assert program is not None
    done = subprocess.run(
        [program, "gateway", command, str(config), "--kong-addr", admin_url, "--no-color", *args],
        env={**os.environ, **keys, "DECK_ANALYTICS": "off"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def for_deck(config: Path, upstream_url: str) -> Path:
    """The decK file beside it, with the service's url replaced and its references to the environment kept."""
    data: dict[str, Any] = yaml.safe_load(config.read_text())
    (service,) = (each for each in data["services"] if each["name"] == SERVICE)
    service["url"] = upstream_url
    path = config.with_name("deck.yaml")
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path

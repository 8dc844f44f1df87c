"""The local stack: ledger, plugin servers, gateway and engine on one machine, for `up`, `demo` and the tests."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

from kong_plugins.adapters.ledger import EmbeddedValkey, EmbeddedValkeyError, connect_ledger
from kong_plugins.application.ports import LedgerUnavailable
from kong_plugins.cli import kong_node
from kong_plugins.cli.engine_check import ENGINE_KEY, check_at_start
from kong_plugins.cli.paths import source_root
from kong_plugins.cli.processes import (
    Child,
    Processes,
    StackError,
    check_port,
    free_port,
    tcp_port_answers,
    unix_socket_answers,
)

SERVICE = "deepseek-r1"  # the service in kong/kong.yaml whose upstream `--upstream` stands in for
BOOKS_FILE = "books.duckdb"
STATE_FILE = "stack.json"  # tells `token-quota quota` where a running stack keeps its ledger
ENV_REFERENCE = re.compile(r'\$\{\{\s*env\s+"(DECK_[A-Z0-9_]+)"\s*\}\}')
# The flags of vllm/r1-tensor-parallel.yaml that change what a meter sees.
SIM_FLAGS = (
    "--reasoning-parser=deepseek_r1",
    "--enable-force-include-usage",
    "--enable-prompt-tokens-details",
    "--enable-request-id-headers",
)
ENGINE_START_S = 180.0  # real vLLM on a CPU takes 40-90 s to be ready

Say = Callable[[str], None]


class Gateway(StrEnum):
    AUTO = "auto"
    LOCAL = "local"
    KONG = "kong"
    DOCKER = "docker"


@dataclass(frozen=True)
class StackOptions:
    """What to bring up. ``upstream``: ``sim``, ``vllm-cpu`` or the URL of an engine's OpenAI API (``http://host:8000/v1``)."""

    config: Path
    gateway: Gateway = Gateway.AUTO
    upstream: str = "sim"
    port: int = 8000  # 0: any free one
    data_dir: Path | None = None  # None: a temporary one, gone at the end
    ledger_url: str | None = None  # None: an embedded Valkey in data_dir
    engine_args: tuple[str, ...] = ()
    plugin_args: tuple[str, ...] = ()
    check_engine: bool = True  # an upstream given by its URL is tried out first
    collect: bool = False  # into data_dir/books.duckdb
    collector_args: tuple[str, ...] = ()


@dataclass
class Stack:
    """A running stack. Use :func:`start_stack`; leaving the context ends everything that it started."""

    url: str
    upstream_url: str
    ledger_url: str
    gateway: Gateway
    keys: dict[str, str]
    run_dir: Path
    processes: Processes
    resources: ExitStack
    generated: list[str] = field(default_factory=list)
    books: Path | None = None  # where the collector writes, if there is one

    def ended(self) -> Child | None:
        return self.processes.first_ended()

    @property
    def engine_root(self) -> str:
        """The engine's own root, where ``/metrics`` is."""
        return self.upstream_url.removesuffix("/").removesuffix("/v1")


def default_config() -> Path:
    """kong/kong.yaml beside the working directory or the source tree."""
    here = Path("kong/kong.yaml")
    return here if here.exists() else source_root() / "kong" / "kong.yaml"


def default_data_dir() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "token-quota"


def keys_for(config: Path) -> tuple[dict[str, str], list[str]]:
    """Values for the config's ``${{ env "DECK_…" }}`` references: from the environment, else random for this run.

    Returns all of them by name, and the names that were made up.
    """
    names = sorted(set(ENV_REFERENCE.findall(config.read_text())))
    generated = [name for name in names if name not in os.environ]
    values = {name: os.environ.get(name) or f"sk-{secrets.token_urlsafe(24)}" for name in names}
    return values, generated


def choose_gateway(wanted: Gateway) -> Gateway:
    """AUTO is a native Kong where there is one, else the local gateway.

    Raises:
        StackError: Kong or Docker was asked for and is not there.
    """
    if wanted is Gateway.AUTO:
        return Gateway.KONG if kong_node.find_kong() else Gateway.LOCAL
    if wanted is Gateway.KONG and not kong_node.find_kong():
        raise StackError("no `kong` on PATH: install Kong Gateway 3.9, set KONG_BIN, or use --gateway local")
    if wanted is Gateway.DOCKER and not shutil.which("docker"):
        raise StackError("no `docker` on PATH: install Docker, or use --gateway local")
    return wanted


def start_stack(options: StackOptions, resources: ExitStack, say: Say) -> Stack:
    """Start everything in order, each part only when the one before it answers. ``resources`` ends it all.

    Raises:
        StackError: a part did not start; the message holds the end of its log.
    """
    if not options.config.exists():
        raise StackError(f"no config at {options.config}: give one with --config (decK format, see kong/kong.yaml)")
    gateway = choose_gateway(options.gateway)
    if options.port:
        check_port(options.port)
    run_dir = Path(tempfile.mkdtemp(prefix="token-quota-"))  # short: a unix socket's path has 107 bytes
    resources.callback(shutil.rmtree, run_dir, ignore_errors=True)
    data_dir = options.data_dir or run_dir / "data"
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StackError(f"cannot keep data in {data_dir}: {error}; choose another place with --data-dir") from error
    keys, generated = keys_for(options.config)

    ledger_url = options.ledger_url
    if ledger_url is None:
        try:
            ledger_url = resources.enter_context(EmbeddedValkey(data_dir / "ledger")).url
        except EmbeddedValkeyError as error:
            raise StackError(str(error)) from error
        say(f"ledger      {ledger_url} (append-only file in {data_dir / 'ledger'})")
    else:
        say(f"ledger      {_without_password(ledger_url)}")

    check_ledger(ledger_url)
    processes = resources.enter_context(Processes(data_dir / "logs"))
    upstream_url = _start_engine(options, processes, say)
    # Not in the run directory, which goes with this stack: what an outage left is replayed by the next one.
    spool = os.environ.get("TOKEN_QUOTA_SPOOL_DIR") or str(data_dir / "spool")
    env = {**keys, "TOKEN_QUOTA_LEDGER_URL": ledger_url, "TOKEN_QUOTA_SPOOL_DIR": spool}
    port = options.port or free_port()
    stack = Stack(
        url=f"http://127.0.0.1:{port}",
        upstream_url=upstream_url,
        ledger_url=ledger_url,
        gateway=gateway,
        keys=keys,
        run_dir=run_dir,
        processes=processes,
        resources=resources,
        generated=generated,
    )
    if gateway is Gateway.KONG:
        kong_node.start(options.config, stack, env, port, SERVICE)
    else:
        _start_local(options, stack, env, port)
    say(f"gateway     {stack.url} ({'Kong' if gateway is Gateway.KONG else 'local stand-in, not Kong'})")
    if options.collect:
        stack.books = data_dir / BOOKS_FILE
        _start_collector(options, stack, say)
    state = data_dir / STATE_FILE
    state.unlink(missing_ok=True)  # a mode is for a new file only
    with os.fdopen(os.open(state, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # a password may be in it
        json.dump({"ledger_url": ledger_url, "url": stack.url, "pid": os.getpid()}, file)
    resources.callback(state.unlink, missing_ok=True)
    return stack


def _start_collector(options: StackOptions, stack: Stack, say: Say) -> None:
    if importlib.util.find_spec("duckdb") is None:
        raise StackError("no books without DuckDB: pip install 'kong-token-quota[books]', or use --no-books")
    port = free_port()
    argv = [sys.executable, "-m", "kong_plugins.cli", "collector", "run", "--ledger", stack.ledger_url]
    argv += ["--sink", f"duckdb://{stack.books}", "--engine", stack.engine_root, "--listen", f"127.0.0.1:{port}"]
    stack.processes.start("collector", [*argv, *options.collector_args], {}, tcp_port_answers(port))
    say(f"collector   http://127.0.0.1:{port}/metrics, books in {stack.books}")


def check_ledger(url: str) -> None:
    """
    Raises:
        StackError: not a ledger's URL, or nothing answers there.
    """
    try:
        ledger = connect_ledger(url)
        ledger.tenants()
        ledger.close()
    except (ValueError, LedgerUnavailable) as error:
        raise StackError(f"no ledger at --ledger {_without_password(url)}: {error}") from error


def _without_password(url: str) -> str:
    return url if "@" not in url else f"{url.split('://', 1)[0]}://…@{url.rsplit('@', 1)[1]}"


def _start_engine(options: StackOptions, processes: Processes, say: Say) -> str:
    if options.upstream not in {"sim", "vllm-cpu"}:
        if urlsplit(options.upstream).scheme not in {"http", "https"}:
            raise StackError(
                f"--upstream is sim, vllm-cpu or a URL such as http://127.0.0.1:8000/v1, not {options.upstream!r}"
            )
        parts = urlsplit(options.upstream)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        if not tcp_port_answers(port, parts.hostname or "")():
            raise StackError(f"nothing answers at --upstream {options.upstream}: start the engine first")
        say(f"engine      {options.upstream} (already running)")
        if options.check_engine:
            check_at_start(options.upstream, os.environ.get(ENGINE_KEY), say)
        return options.upstream.rstrip("/")
    port = free_port()
    if options.upstream == "sim":
        argv = [sys.executable, "-m", "kong_plugins.engine_sim", "--port", str(port), *SIM_FLAGS, *options.engine_args]
        processes.start("engine", argv, {}, tcp_port_answers(port))
        say(f"engine      http://127.0.0.1:{port}/v1 (stand-in for vLLM)")
    else:
        processes.start("engine", _vllm_cpu(port, options.engine_args), {}, tcp_port_answers(port), ENGINE_START_S)
        say(f"engine      http://127.0.0.1:{port}/v1 (vLLM on the CPU)")
    return f"http://127.0.0.1:{port}/v1"


def _vllm_cpu(port: int, extra: tuple[str, ...]) -> list[str]:
    """The command of a real vLLM on the CPU: its Python and model are the operator's."""
    python, model = os.environ.get("TOKEN_QUOTA_VLLM_PYTHON"), os.environ.get("TOKEN_QUOTA_VLLM_MODEL")
    if not python or not model:
        raise StackError(
            "--upstream vllm-cpu needs a Python that has vllm-cpu and a model's folder: set "
            "TOKEN_QUOTA_VLLM_PYTHON and TOKEN_QUOTA_VLLM_MODEL (vllm/README.md tells how to install both)"
        )
    config = source_root() / "vllm" / "cpu-test-model.yaml"
    module = ["-m", "vllm.entrypoints.openai.api_server"]  # the package vllm-cpu has no `vllm serve`
    return [
        python,
        *module,
        "--config",
        str(config),
        "--model",
        model,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        *extra,
    ]


def _start_local(options: StackOptions, stack: Stack, env: dict[str, str], port: int) -> None:
    sockets = []
    for plugin, module in kong_node.PLUGIN_SERVERS.items():
        path = stack.run_dir / f"{plugin}.sock"
        argv = [sys.executable, "-m", module, "--kong-prefix", str(stack.run_dir), "--socket-name", path.name]
        stack.processes.start(plugin, [*argv, *options.plugin_args], env, unix_socket_answers(path))
        sockets += ["--plugin-socket", f"{plugin}={path}"]
    argv = [sys.executable, "-m", "kong_plugins.local_gateway", "--config", str(options.config), "--port", str(port)]
    argv += [*sockets, "--plugins-dir", str(source_root() / "kong" / "plugins")]
    argv += ["--upstream-override", f"{SERVICE}={stack.upstream_url}"]
    stack.processes.start("gateway", argv, env, tcp_port_answers(port))

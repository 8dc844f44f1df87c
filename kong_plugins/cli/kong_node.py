"""A native Kong Gateway with our plugins: its settings, a prefix of its own, start and stop."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from kong_plugins.adapters.deck_file import render as render_environment
from kong_plugins.cli.paths import source_root
from kong_plugins.cli.processes import StackError, tcp_port_answers, unix_socket_answers, wait_until

if TYPE_CHECKING:
    from kong_plugins.cli.stack import Stack

# Plugin name in Kong → Python module of its plugin server. Kong 3.9 reads only the first plugin of a dump: one each.
PLUGIN_SERVERS = {"token-quota": "kong_plugins.token_quota", "billing-events": "kong_plugins.billing_events"}
LUA_PLUGINS = ("usage-gate", "usage-tap")
PLUGIN_SERVER_ENV = (
    "TOKEN_QUOTA_LEDGER_URL",
    "TOKEN_QUOTA_SPOOL_DIR",
    "TOKEN_QUOTA_SPOOL_MAX_MB",
    "TOKEN_QUOTA_METRICS_PORT",
    "TOKEN_QUOTA_CACHE_SALT_KEY",
)


def find_kong() -> str | None:
    """KONG_BIN, else `kong` on PATH."""
    return os.environ.get("KONG_BIN") or shutil.which("kong")


def settings(prefix: Path, python: str = sys.executable) -> dict[str, str]:
    """The kong.conf settings our plugins need, each added to an existing Kong's own."""
    conf = {
        "plugins": ",".join(["bundled", *LUA_PLUGINS, *PLUGIN_SERVERS]),
        # kong.plugins.usage-tap.handler is kong/plugins/usage-tap/handler.lua under this root
        "lua_package_path": f"{source_root()}/?.lua;;",
        "pluginserver_names": ",".join(name.replace("-", "_") for name in PLUGIN_SERVERS),
        # Bodies up to this size stay in memory; larger ones are read back from nginx's temporary file.
        "nginx_http_client_body_buffer_size": "256k",
        # nginx drops the environment unless told, and the plugin servers are its children. Kong writes `env …;` of it.
        "nginx_main_env": "; env ".join(PLUGIN_SERVER_ENV),
    }
    for plugin, module in PLUGIN_SERVERS.items():
        key = f"pluginserver_{plugin.replace('-', '_')}"
        conf[f"{key}_socket"] = f"{prefix}/{plugin}.sock"
        conf[f"{key}_start_cmd"] = f"{python} -m {module} --kong-prefix {prefix} --socket-name {plugin}.sock"
        conf[f"{key}_query_cmd"] = f"{python} -m {module} --dump"
    return conf


def start(config: Path, stack: Stack, env: dict[str, str], port: int, service: str) -> None:
    """Start Kong DB-less with ``config``, ``service`` pointed at the stack's upstream.

    Raises:
        StackError: Kong did not start; with its own words.
    """
    kong = find_kong()
    if kong is None:
        raise StackError("no `kong` on PATH: install Kong Gateway 3.9, set KONG_BIN, or use --gateway local")
    prefix = stack.run_dir / "kong"
    prefix.mkdir(mode=0o700)
    log = stack.processes.logs / "kong.log"  # the prefix goes with the stack, and with it what Kong said
    log.unlink(missing_ok=True)  # an earlier run's errors would be read as this one's
    declarative = prefix / "kong.yaml"
    declarative.write_text(render(config, env, service, stack.upstream_url))
    declarative.chmod(0o600)  # it holds the rendered keys
    conf = {
        "prefix": str(prefix),
        "database": "off",
        "declarative_config": str(declarative),
        "proxy_listen": f"127.0.0.1:{port}",
        "admin_listen": "off",
        "admin_gui_listen": "off",
        "status_listen": "off",
        "anonymous_reports": "off",
        "nginx_worker_processes": "1",
        "proxy_error_log": str(log),
        "admin_error_log": str(log),
        **settings(prefix),
    }
    if os.geteuid() == 0:
        # Else its workers were Kong's own user, who can read neither this prefix nor what these plugin servers may.
        conf["nginx_user"] = "root root"
    conf_file = prefix / "token-quota.conf"
    conf_file.write_text("".join(f"{key} = {value}\n" for key, value in conf.items()))
    try:
        done = subprocess.run(
            [kong, "start", "-c", str(conf_file)],
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise StackError(f"cannot run {kong}: {error}; see KONG_BIN") from error
    if done.returncode != 0:
        raise StackError(f"`kong start` failed:\n{done.stdout}{done.stderr}")
    stack.resources.callback(stop, kong, prefix)
    # Kong answers on its port before its plugin servers have their sockets, with a 500 of its own until then.
    for name in PLUGIN_SERVERS:
        wait_until(unix_socket_answers(prefix / f"{name}.sock"), f"{name}'s plugin server", log)
    wait_until(tcp_port_answers(port), f"Kong on port {port}", log)


def stop(kong: str, prefix: Path) -> None:
    """Let Kong finish its requests, then end it. (It waits some ten seconds for its plugin servers even when idle.)"""
    subprocess.run([kong, "quit", "-p", str(prefix), "--timeout", "30"], capture_output=True, check=False)


def render(config: Path, env: dict[str, str], service: str, upstream_url: str) -> str:
    """The decK file as DB-less Kong takes it: environment filled in, the service's url replaced."""
    data = yaml.safe_load(render_environment(config.read_text(), env))
    data.pop("_info", None)
    for entry in data.get("services", []):
        if entry.get("name") == service:
            for key in ("host", "port", "path", "protocol"):
                entry.pop(key, None)
            entry["url"] = upstream_url
    return yaml.safe_dump(data, sort_keys=False)

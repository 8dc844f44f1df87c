"""The command line: kong-pdk's options, and those of our own."""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import logging
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

from kong_plugins.plugin_server.ancestry import Parent
from kong_plugins.plugin_server.plugins import LoadedPlugin, PluginError, info_of, load
from kong_plugins.plugin_server.socket_file import SocketFile

_STOCK_SOCKET_NAME = "python_pluginserver.sock"


def serve(plugins: Sequence[str] = (), argv: Sequence[str] | None = None) -> int:
    """Serve plugin modules (dotted names; ``--plugin`` adds more), or dump what Kong asks for. Returns the exit status.

    Patches the standard library for gevent before it imports a plugin: call it before anything else opens a socket.
    """
    options = _parser(need_plugin=not plugins).parse_args(argv)
    names = [*plugins, *options.plugin]
    if options.dump is not None:
        return _dump(names, options.dump)
    parent = Parent(options.parent_watch)
    if parent.is_kong and (status := parent.step_aside()) is not None:
        return status
    from gevent import monkey

    monkey.patch_all()
    return _run(names, options, parent)


def _parser(need_plugin: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Plugin server for Kong (MsgPack:1).", allow_abbrev=False)
    add = parser.add_argument
    add("-p", "--kong-prefix", "-kong-prefix", type=Path, default=Path("/usr/local/kong"), metavar="DIR",
        help="directory of the unix socket (default: %(default)s)")  # fmt: skip
    add("--socket-name", metavar="NAME", help="the socket's file name (default: the first plugin's name and .sock)")
    add("--plugin", action="append", default=[], required=need_plugin, metavar="MODULE",
        help="a plugin module's dotted name; may be repeated")  # fmt: skip
    add("--dump", "-dump", nargs="?", const="", metavar="PLUGIN",
        help="print what Kong's query command is to read, and end. Kong reads the first plugin only: "
        "with several, give each pluginserver_*_query_cmd its plugin's name")  # fmt: skip
    add("-v", "--verbose", action="count", default=0, help="log debug records too")
    add("--version", "-version", action="version", version=_version())
    add("--listen-queue-size", type=int, default=4096, metavar="N", help="backlog of the socket (default: %(default)s)")
    add("-g", "--gevent", action="store_true", help="accepted: gevent is what there is")
    add("--no-lua-style", action="store_true", help="accepted: PDK calls return one value and raise PDKException")
    add("--socket-mode", type=lambda text: int(text, 8), default=0o600, metavar="OCTAL",
        help="the socket's permissions; 0660 where Kong runs as another user of our group (default: 0600)")  # fmt: skip
    add("--log-file", type=Path, metavar="FILE", help="append log lines to this file too; it may be rotated")
    add("--event-deadline", type=_seconds, default=55.0, metavar="S",
        help="give up an answer after this; keep it below Kong's nginx_http_lua_socket_read_timeout (60 s) "
        "(default: %(default)s)")  # fmt: skip
    add("--event-ttl", type=_seconds, default=120.0, metavar="S",
        help="forget an event that Kong does not go on with for this long (default: %(default)s)")  # fmt: skip
    add("--max-instances", type=int, default=10_000, metavar="N", help="configured rows kept (default: %(default)s)")
    add("--instance-idle", type=_seconds, default=3600.0, metavar="S",
        help="drop a row's instance unused for this long; Kong starts it again when needed "
        "(default: %(default)s)")  # fmt: skip
    add("--drain-timeout", type=_seconds, default=10.0, metavar="S",
        help="on SIGTERM, finish running events for this long at most; after a worker of Kong that ended, wait so long "
        "for its successor (default: %(default)s)")  # fmt: skip
    add("--parent-watch", choices=("auto", "always", "never"), default="auto",
        help="end when the starting process has ended, after Kong's worker not before the next one has a server of its "
        "own; auto: if that is nginx (default: %(default)s)")  # fmt: skip
    return parser


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of seconds")
    return value


def _version() -> str:
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("kong-token-quota", "kong-pdk"))


def _dump(names: Sequence[str], wanted: str) -> int:
    try:
        infos = [info_of(load(name)) for name in names]
    except PluginError as error:
        return _give_up(str(error))
    if wanted:
        infos = [info for info in infos if info["Name"] == wanted]
        if not infos:
            return _give_up(f"--dump {wanted}: this server does not serve a plugin of that name")
    sys.stdout.write(json.dumps(infos) + "\n")
    return 0


def _run(names: Sequence[str], options: argparse.Namespace, parent: Parent) -> int:
    # After the patch, and not at all for --dump.
    from kong_plugins.plugin_server import logs
    from kong_plugins.plugin_server.engine import Engine, Limits
    from kong_plugins.plugin_server.instances import Instances
    from kong_plugins.plugin_server.server import Server

    if not options.kong_prefix.is_dir():
        return _give_up(f"there is no directory {options.kong_prefix} for the socket: see --kong-prefix")
    # Tenants' prompts and the ledger's password are in memory: a crash leaves no copy of them on the disk.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    os.environ.setdefault("KONG_PREFIX", str(options.kong_prefix))  # Kong's own name for it; plugins keep files there
    logs.configure(logging.DEBUG if options.verbose else logging.INFO, options.log_file)
    socket_name = None if options.socket_name == _STOCK_SOCKET_NAME else options.socket_name
    file: SocketFile | None = None
    try:
        if socket_name is not None:
            file = _early_socket(options, socket_name)
        plugins = _load_all(names)
        if file is None:
            file = _early_socket(options, f"{plugins[0].name}.sock")
        file.publish()
    except (PluginError, OSError) as error:
        if file is not None:
            file.withdraw()
        return _give_up(str(error))
    instances = Instances(plugins, limit=options.max_instances, idle_s=options.instance_idle)
    limits = Limits(deadline_s=options.event_deadline, ttl_s=options.event_ttl)
    engine = Engine(instances, limits, file.predecessor)
    shortest = min(options.event_deadline, options.event_ttl, options.instance_idle)
    gc.collect()
    gc.freeze()  # what is loaded now stays: collections look at events only
    Server(file, engine, instances, parent=parent, sweep_s=min(1.0, shortest / 8), drain_s=options.drain_timeout).run()
    return 0


def _early_socket(options: argparse.Namespace, name: str) -> SocketFile:
    file = SocketFile(options.kong_prefix / name, options.socket_mode, options.listen_queue_size)
    if file.is_free():
        # Requests wait in the backlog while plugins load, instead of failing. A live predecessor is replaced after.
        file.publish()
    return file


def _load_all(names: Sequence[str]) -> list[LoadedPlugin]:
    plugins = [load(name) for name in names]
    twice = {p.name for p in plugins if sum(q.name == p.name for q in plugins) > 1}
    if twice:
        raise PluginError(f"two plugins are named {', '.join(sorted(twice))}")
    return plugins


def _give_up(text: str) -> int:
    sys.stderr.write(f"[error] {text}\n")
    return 1

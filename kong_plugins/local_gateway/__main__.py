"""``python -m kong_plugins.local_gateway --config kong/kong.yaml --plugin-socket token-quota=/run/tq.sock``."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from kong_plugins.adapters.deck_file import DeckConfig, DeckError, read_deck
from kong_plugins.local_gateway.gateway import NOTICE, GatewayOptions, LocalGateway
from kong_plugins.local_gateway.lua_host import LuaPluginError
from kong_plugins.local_gateway.plugin_infos import read_dump


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs until SIGTERM or SIGINT; SIGHUP reads the file again. 1: the configuration cannot be used."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.getLevelName(options.log_level.upper()), format="%(asctime)s %(message)s")
    try:
        return asyncio.run(_serve(options))
    except (DeckError, LuaPluginError, OSError) as error:
        sys.stderr.write(f"local gateway: {error}\n")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kong_plugins.local_gateway", description=NOTICE)
    parser.add_argument("--config", type=Path, required=True, help='decK file; ${{ env "DECK_…" }} is rendered')
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--plugins-dir", type=Path, default=Path("kong/plugins"), help="folder of the Lua plugins")
    parser.add_argument("--plugin-socket", action="append", default=[], metavar="NAME=PATH", type=_pair)
    parser.add_argument("--plugin-dump", action="append", default=[], metavar="NAME=FILE", type=_pair)
    parser.add_argument("--upstream-override", action="append", default=[], metavar="SERVICE=URL", type=_pair)
    parser.add_argument("--plugin-timeout", type=float, default=60.0, metavar="SECONDS", help="between two reads")
    parser.add_argument("--stop-timeout", type=float, default=30.0, metavar="SECONDS", help="for requests under way")
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "notice", "warning", "error"))
    return parser


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=VALUE")
    return name, value


def _read(options: argparse.Namespace, env: Mapping[str, str]) -> DeckConfig:
    config = read_deck(options.config.read_text(encoding="utf-8"), env)
    return config.with_upstreams(dict(options.upstream_override))


async def _serve(options: argparse.Namespace) -> int:
    env = dict(os.environ)
    log = logging.getLogger("kong_plugins.local_gateway")
    infos = {name: read_dump(name, Path(path).read_text(encoding="utf-8")) for name, path in options.plugin_dump}
    gateway = LocalGateway(
        _read(options, env),
        GatewayOptions(
            host=options.host,
            port=options.port,
            plugins_dir=options.plugins_dir,
            plugin_sockets=dict(options.plugin_socket),
            plugin_infos=infos,
            read_timeout_s=options.plugin_timeout,
            stop_timeout_s=options.stop_timeout,
            env=env,
        ),
        log,
    )
    stop = asyncio.Event()

    def reload() -> None:
        try:
            gateway.reload(_read(options, env))
        except (DeckError, OSError) as error:
            log.error("not reloaded, the old configuration stays: %s", error)
        else:
            log.info("reloaded %s", options.config)

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, reload)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await gateway.start()
    gc.freeze()  # what is here now stays: keep it out of every later collection
    await stop.wait()
    await gateway.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())

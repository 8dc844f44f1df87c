"""What a plugin is: its phases, priority and schema, from its running server or from the command that describes it."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
import time
from collections.abc import Mapping
from typing import Any

from kong_plugins.adapters.deck_entities import DeckError
from kong_plugins.local_gateway.mp_rpc import RpcBroken, RpcClient, RpcFailed, SocketPool

SERVER_WAIT_S = 10.0
_KEYS = ("Name", "Priority", "Phases", "Schema")


async def describe(name: str, path: str, pool: SocketPool) -> Mapping[str, Any]:
    """A plugin's description: its server is asked over ``path``; of a server that cannot say, the dump of the module
    ``kong_plugins.NAME`` is read, as Kong reads its query command.

    Raises:
        DeckError: neither describes the plugin.
    """
    rpc = RpcClient(pool, path, lambda _: None, read_timeout_s=5.0)
    deadline = time.monotonic() + SERVER_WAIT_S
    while True:
        try:
            return _checked(name, await rpc.call("plugin.GetPluginInfo", name))
        except (RpcFailed, RpcBroken) as error:
            if not str(error).startswith("trying to connect"):
                return await _dumped(name, path, str(error))
            if time.monotonic() > deadline:
                told = f"the plugin server of '{name}' does not listen on {path} ({error})"
                raise DeckError(f"{told}: start it first, or check the path") from error
        await asyncio.sleep(0.1)


async def _dumped(name: str, path: str, why: str) -> Mapping[str, Any]:
    module = f"kong_plugins.{name.replace('-', '_')}"
    if importlib.util.find_spec(module) is None:
        raise DeckError(f"the plugin server of '{name}' at {path} does not describe its plugin: {why}")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, "--dump", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, complaint = await process.communicate()
    try:
        return read_dump(name, out.decode())
    except (ValueError, DeckError) as error:
        said = complaint.decode("utf-8", "replace").strip()[-500:]
        raise DeckError(f"`{sys.executable} -m {module} --dump` does not describe '{name}': {error} {said}") from error


def read_dump(name: str, dump: str) -> Mapping[str, Any]:
    """One plugin of a dump's JSON: the list of a plugin server's plugins.

    Raises:
        DeckError: it is not in there.
        ValueError: the dump is no JSON.
    """
    infos = json.loads(dump)
    for info in infos if isinstance(infos, list) else [infos]:
        if isinstance(info, dict) and info.get("Name") == name:
            return _checked(name, info)
    raise DeckError(f"the dump has no plugin '{name}'")


def _checked(name: str, info: object) -> Mapping[str, Any]:
    if not isinstance(info, dict) or any(key not in info for key in _KEYS):
        raise DeckError(f"the description of '{name}' lacks one of {', '.join(_KEYS)}")
    return info

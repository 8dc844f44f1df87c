"""The plugin under the wire tests, for this package's server and for stock kong-pdk alike.

``config.script`` says what each phase does: base64 of a MessagePack map of phase to a list of ``[method, arguments]``.
Methods that begin with ``!`` are the probe's own.
"""

from __future__ import annotations

import base64
import sys
import time
from typing import Any

import msgpack
from gevent.event import Event as Gate

NAME = "probe"
VERSION = "0.1.0"
PRIORITY = 900
SCHEMA = [
    {"tag": {"type": "string", "default": "t0"}},
    {"script": {"type": "string"}},
    {"secret": {"type": "string", "referenceable": True, "encrypted": True}},
]
held_at = [Gate()]  # the events that are in "!hold" now wait for this one


def pack_script(**phases: list[list[Any]]) -> str:
    return base64.b64encode(msgpack.packb(phases, unicode_errors="surrogateescape")).decode()


class Plugin:
    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.script = msgpack.unpackb(
            base64.b64decode(config.get("script", "gA==")), unicode_errors="surrogateescape", strict_map_key=False
        )
        for method, args in self.script.get("init", []):
            self._own(None, method, args, None)

    def access(self, kong: Any) -> None:
        self._play(kong, self.script.get("access", []))

    def log(self, kong: Any) -> None:
        self._play(kong, self.script.get("log", []))

    def close(self) -> None:
        for method, args in self.script.get("close", []):
            self._own(None, method, args, None)

    def _play(self, kong: Any, script: list[list[Any]]) -> None:
        got = None
        for method, args in script:
            if method.startswith("!"):
                self._own(kong, method, args, got)
                continue
            call = kong
            for name in method.split(".")[1:]:
                call = getattr(call, name)
            got = call(*args)

    def _own(self, kong: Any, method: str, args: list[Any], got: Any) -> None:
        if method == "!raise":
            raise ValueError(*args)
        if method == "!raise-with-secret":
            raise ValueError(f"cannot use {self.config['secret']}")
        if method == "!sys.exit":
            sys.exit(3)
        if method == "!echo":
            kong.ctx.shared.set("echo", got)
        elif method == "!tag":
            kong.ctx.shared.set("tag", self.config["tag"])
        elif method == "!wait":
            time.sleep(args[0])
        elif method == "!touch":
            with open(args[0], "a") as file:
                file.write("x")
        elif method == "!hold":  # until the next "!open-gate", letting others run: stock does not patch time.sleep
            gate = held_at[0]
            self._own(kong, "!touch", args, got)
            gate.wait()
        elif method == "!open-gate":
            held_at.append(Gate())
            held_at.pop(0).set()
        elif method == "!finally":
            self._finally(kong, *args)
        elif method == "!swallow":
            try:
                kong.response.exit(429, "no")
            except BaseException:  # noqa: BLE001  # what a careless plugin does
                kong.ctx.shared.set("after", "exit")
        elif method == "!big":
            kong.service.request.set_raw_body("b" * args[0])
        elif method == "!exit-object":
            kong.response.exit(429, {"number": 1 << 70})
        elif method == "!set-object":
            kong.ctx.shared.set("object", object())
        else:
            raise AssertionError(method)

    def _finally(self, kong: Any, path: str, seconds: float) -> None:
        try:
            time.sleep(seconds)
        finally:
            with open(path, "a") as file:
                file.write("x")
            kong.ctx.shared.set("from", "finally")

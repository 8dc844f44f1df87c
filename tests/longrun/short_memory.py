"""A plugin server whose ledger forgets what is over sooner than the shipped one does: within an hour it is level.

Shipped, a settled hold is remembered for an hour and a window's counter for a day after its end: in a run of an hour
both only grow. ``LONGRUN_REMEMBER_S`` stands for both. Which server it is, its socket's name tells.
"""

from __future__ import annotations

import os
import sys

from gevent import monkey

from kong_plugins.plugin_server import serve

REMEMBER_ENV = "LONGRUN_REMEMBER_S"


def main() -> int:
    monkey.patch_all()  # as serve does it, before anything opens a socket
    from kong_plugins.adapters.ledger import connect_ledger

    remember_us = int(os.environ[REMEMBER_ENV]) * 1_000_000
    assert connect_ledger.__kwdefaults__ is not None
    connect_ledger.__kwdefaults__.update(grace_us=remember_us, terminal_us=remember_us)
    name = sys.argv[sys.argv.index("--socket-name") + 1].removesuffix(".sock")
    return serve([f"kong_plugins.{name.replace('-', '_')}.plugin"])


if __name__ == "__main__":
    sys.exit(main())

"""A process that settles: ``spool_process.py LEDGER_URL SPOOL_DIR FIRST LAST WORKERS``.

A line for each request whose log phase would have answered Kong. When its standard input is closed it ends: at once if
that said ``now``, else when nothing waits any more.
"""

from __future__ import annotations

import sys

from gevent import monkey

monkey.patch_all()

import gevent  # noqa: E402
from gevent.fileobject import FileObject  # noqa: E402
from gevent.pool import Pool  # noqa: E402

from kong_plugins.adapters.process_parts import ProcessParts  # noqa: E402
from kong_plugins.application.settle import Settling  # noqa: E402
from kong_plugins.domain.events import Admitted, Ending  # noqa: E402
from kong_plugins.domain.usage import Evidence, Usage  # noqa: E402


def main(url: str, directory: str, first: int, last: int, workers: int) -> None:
    from pathlib import Path

    parts = ProcessParts(spool_dir=Path(directory))
    parts.join()
    settling = Settling(parts.poster(url, 0.2))
    sys.stdout.write("ready\n")
    sys.stdout.flush()

    def log(number: int) -> None:
        admitted = Admitted(f"r{number:05}", "tenant_a", "m", "/kong/test", 100, 100)
        usage = Usage(10 + number % 7, 5)
        settling.settle(
            admitted, Ending("chat", True, usage, Evidence.EXACT, finish="stop", ended=True, status=200, started_ms=1)
        )
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()
        gevent.sleep(0.002)  # others may run, as between requests

    Pool(workers).map(log, range(first, last))
    if FileObject(sys.stdin, "r").read() != "now":
        while not parts.replayed(timeout_s=60):
            pass
    parts.leave()
    sys.stdout.write("ended\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))

"""`python -m tests.bench.leases`: what a request waits for the ledger, when it is asked first and with a lease.

One stack (local gateway, both plugin servers, a real Valkey behind a link that takes its time), two tenants that differ
in `store_outage` alone, one request after the other, in turns. Read the differences: everything else is the same.
"""

from __future__ import annotations

import argparse
import selectors
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from contextlib import ExitStack
from pathlib import Path

import httpx2 as httpx
import pytest

from kong_plugins.adapters.ledger import EmbeddedValkey
from kong_plugins.cli.processes import free_port
from kong_plugins.cli.stack import Gateway, StackOptions
from tests.e2e.conftest import Running, chat, make_keys, start, suite_config
from tests.e2e.load import PATH

MODES = ("closed", "lease")
WARM_UP = 20
CHUNK = 65_536


class Link:
    """To ``port`` on this machine, from a port of its own; what passes is ``delay_s`` late, each way."""

    def __init__(self, port: int, delay_s: float) -> None:
        self._to, self._delay_s = port, delay_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._peers: dict[socket.socket, socket.socket] = {}
        self._waiting: deque[tuple[float, socket.socket, bytes]] = deque()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            left_s = max(0.0, self._waiting[0][0] - time.monotonic()) if self._waiting else None
            for key, _ in self._selector.select(left_s):
                self._take(key.fileobj)  # type: ignore[arg-type]
            while self._waiting and self._waiting[0][0] <= time.monotonic():
                _, peer, data = self._waiting.popleft()
                if data:
                    peer.sendall(data)
                else:
                    peer.shutdown(socket.SHUT_WR)

    def _take(self, sock: socket.socket) -> None:
        if sock is self._listener:
            near, _ = sock.accept()
            far = socket.create_connection(("127.0.0.1", self._to))
            for one, other in ((near, far), (far, near)):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._peers[one] = other
                self._selector.register(one, selectors.EVENT_READ)
            return
        data = sock.recv(CHUNK)
        if not data:
            self._selector.unregister(sock)
        self._waiting.append((time.monotonic() + self._delay_s, self._peers[sock], data))


def measure(running: Running, requests: int) -> tuple[dict[str, list[float]], Counter[str]]:
    """Milliseconds of each answer by mode, and what admitted them."""
    took: dict[str, list[float]] = {mode: [] for mode in MODES}
    admitted: Counter[str] = Counter()
    body = chat(max_tokens=1)
    with httpx.Client(timeout=30) as client:
        for number in range(WARM_UP + requests):
            for mode in MODES:
                began = time.perf_counter()
                answer = client.post(
                    f"{running.stack.url}{PATH}", json=body, headers={"apikey": running.key(f"bench_{mode}")}
                )
                answer.raise_for_status()
                if number >= WARM_UP:
                    took[mode].append((time.perf_counter() - began) * 1000)
                    admitted[f"{mode}: {answer.headers.get('x-token-quota-admitted-by', 'ledger')}"] += 1
    return took, admitted


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.bench.leases", description=__doc__)
    parser.add_argument("--requests", type=int, default=300, help="of each tenant, for each distance")
    parser.add_argument("--ledger-ms", default="0,1,5", help="to the ledger and back, milliseconds, several")
    options = parser.parse_args()
    budgets = [{"name": "daily", "limit": 100_000_000, "window": "day"}]
    tenants = {f"bench_{mode}": {"budgets": budgets, "store_outage": mode} for mode in MODES}
    print(f"{'ledger':>8}  {'asked first':>20}  {'lease':>20}  {'difference of p50':>18}")
    print(f"{'ms':>8}  {'p50, p95 ms':>20}  {'p50, p95 ms':>20}  {'ms':>18}")
    seen: Counter[str] = Counter()
    for distance in map(float, options.ledger_ms.split(",")):
        with ExitStack() as resources:
            directory = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="leases-")))
            make_keys(resources.enter_context(pytest.MonkeyPatch.context()), *tenants)
            port = free_port()
            resources.enter_context(EmbeddedValkey(directory / "valkey", port=port))
            link = Link(port, distance / 2000)
            stack = StackOptions(
                config=suite_config(directory, tenants),
                gateway=Gateway.LOCAL,
                port=0,
                data_dir=directory,
                ledger_url=f"redis://127.0.0.1:{link.port}/0",
            )
            took, admitted = measure(start(stack, resources), options.requests)
        seen += admitted
        cells = [f"{statistics.median(ms):.2f}, {statistics.quantiles(ms, n=20)[-1]:.2f}" for ms in took.values()]
        less = statistics.median(took["closed"]) - statistics.median(took["lease"])
        print(f"{distance:>8g}  {cells[0]:>20}  {cells[1]:>20}  {less:>18.2f}", flush=True)
    print(dict(seen))
    return 0


if __name__ == "__main__":
    sys.exit(main())

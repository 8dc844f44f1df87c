"""What can be seen of the stack from outside at one moment: processes, store, files, metrics."""

from __future__ import annotations

import json
import os
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from kong_plugins.adapters.ledger.connect import open_client
from kong_plugins.domain.partitions import PARTITIONS, hash_tag
from tests.longrun.stage import Stage

GENERATING = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
NOTES = 900  # of the engine's last thousand
Figures = dict[str, float]

_TICKS = os.sysconf("SC_CLK_TCK")


def process(pid: int) -> Figures:
    """Proportional and resident memory (MB), descriptors, threads, and processor time so far (s)."""
    root = Path(f"/proc/{pid}")
    rollup = _fields(root / "smaps_rollup")
    status = _fields(root / "status")
    times = (root / "stat").read_text().rpartition(")")[2].split()
    return {
        "pss_mb": rollup["Pss"] / 1000,
        "rss_mb": rollup["Rss"] / 1000,
        "fds": len(os.listdir(root / "fd")),
        "threads": status["Threads"],
        "cpu_s": (int(times[11]) + int(times[12])) / _TICKS,
    }


def _fields(path: Path) -> dict[str, int]:
    found = {}
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        if words := value.split():
            found[name] = int(words[0]) if words[0].isdigit() else 0
    return found


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())
    return path.stat().st_size if path.exists() else 0


class Sampler:
    """Reads the stack; its own store connection is the only thing that it adds."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._pids = stage.pids
        self._client = open_client(stage.ledger.url, timeout_s=60.0)
        self._metrics: dict[str, str] = {}
        self.generated: set[str] = set()

    def close(self) -> None:
        self._client.close()

    def sample(self) -> Figures:
        """A moment's figures by name (``gateway pss_mb``, ``keys``, …)."""
        figures = {f"{name} {what}": value for name, pid in self._pids.items() for what, value in process(pid).items()}
        memory, space = self._client.info("memory"), self._client.info("keyspace").get("db0", {})
        keys, expires = space.get("keys", 0), space.get("expires", 0)
        figures |= {"store_mb": memory["used_memory"] / 1e6, "keys": keys, "keys_for_ever": keys - expires}
        pipe = self._client.pipeline(transaction=False)
        for partition in range(PARTITIONS):
            pipe.xlen(f"{hash_tag(partition)}:outbox")
        figures["outbox"] = sum(pipe.execute())
        directory = self._stage.directory
        figures["spool_kb"] = _size(directory / "spool") / 1000
        figures["books_kb"] = (_size(self._stage.books) + _size(Path(f"{self._stage.books}.wal"))) / 1000
        figures["logs_kb"] = _size(directory / "logs") / 1000
        figures["aof_mb"] = _size(directory / "ledger") / 1e6
        self.look()
        return figures

    def look(self) -> None:
        """Take down which requests the engine generated for, before it forgets them."""
        root = self._stage.stack.engine_root
        notes = json.loads(_get(f"{root}/sim/requests?last={NOTES}"))["requests"]
        found = {
            dict(map(tuple, note["headers"]))["x-request-id"]
            for note in notes
            if note["path"] in GENERATING and note["size"]
        }
        assert len(notes) < NOTES or self.generated & found, "the engine has forgotten some requests: look more often"
        self.generated |= found

    def families(self) -> Counter[str]:
        """The store's keys by what they are for."""
        return Counter(
            key.decode(errors="replace").partition("}:")[2].partition(":")[0] or "other"
            for key in self._client.scan_iter(count=1000)
        )

    def series(self) -> Figures:
        """How many metrics each process exposes."""
        ports = [self._stage.metrics_port, self._stage.metrics_port + 1]
        pages: list[tuple[str, Callable[[], bytes]]] = [
            (f"plugin server {n}", lambda port=port: _get(f"http://127.0.0.1:{port}/metrics"))
            for n, port in enumerate(ports, 1)
        ]
        pages.append(("collector", lambda: _get(self._collector_page())))
        return {
            f"{name} series": sum(1 for line in page().splitlines() if line and not line.startswith(b"#"))
            for name, page in pages
        }

    def _collector_page(self) -> str:
        log = (self._stage.directory / "logs" / "collector.log").read_text(errors="replace")
        argv = Path(f"/proc/{self._pids['collector']}/cmdline").read_text().split("\0")
        assert "--listen" in argv, log
        return f"http://{argv[argv.index('--listen') + 1]}/metrics"


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as answer:
        page: bytes = answer.read()
        return page

"""How fast the collector is: `python -m tests.bench.collector --sink duckdb --events 200000`.

Fills the outbox of a real Valkey (append-only file on) with events as token-quota writes them, has one collector
drain it, then keeps a steady rate going while it collects. All on this machine: Valkey, collector and sink share its
cores, and this process fills.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import redis

from kong_plugins.adapters.ledger import EmbeddedValkey
from kong_plugins.adapters.outbox import Outbox, SinkStatus, connect_outbox
from kong_plugins.domain.partitions import hash_tag, partition_of
from tests.integration.outbox_parts import event_of

TICKS = os.sysconf("SC_CLK_TCK")
CHUNK = 1000


def add(client: redis.Redis, first: int, count: int, tenants: int) -> int:
    """Append events as the ledger's scripts do. Returns their bytes."""
    size = 0
    pipeline = client.pipeline(transaction=False)
    for number in range(first, first + count):
        tenant, event_id = f"tenant-{number % tenants}", f"{number:032x}"
        event = event_of(event_id, tenant, 200 + number % 3000, number % 700)
        size += len(event)
        fields = {"id": event_id, "event": event, "posted.daily": number % 3700, "posted.monthly": number % 3700}
        pipeline.xadd(f"{hash_tag(partition_of(tenant))}:outbox", fields)  # type: ignore[arg-type]
        if number % CHUNK == CHUNK - 1:
            pipeline.execute()
    pipeline.execute()
    return size


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def rss_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


@contextlib.contextmanager
def collector(ledger_url: str, sink_url: str, arguments: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "kong_plugins.cli", "collector", "run", "--ledger", ledger_url, "--sink", sink_url]
    process = subprocess.Popen([*command, "--listen", "off", *arguments], stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def standing(outbox: Outbox) -> SinkStatus:
    return next((each for each in outbox.status() if each.sink == "bench"), SinkStatus("bench"))


def sink_url(kind: str, folder: Path, resources: ExitStack) -> str:
    match kind:
        case "duckdb":
            return f"duckdb://{folder}/books.duckdb?name=bench"
        case "jsonl":
            return f"jsonl://{folder}/lines?name=bench"
        case _:
            return f"kafka://{_mock_kafka(resources)}/billing?name=bench"


def _mock_kafka(resources: ExitStack) -> str:
    """librdkafka's mock cluster, in a process of its own."""
    code = (
        "from confluent_kafka import Producer; import sys, time\n"
        "p = Producer({'test.mock.num.brokers': 1, 'bootstrap.servers': 'mock'})\n"
        "print(next(iter(p.list_topics(timeout=10).brokers.values())), flush=True)\n"
        "sys.stdin.read()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    resources.callback(process.wait)
    resources.callback(process.terminate)
    assert process.stdout is not None
    return process.stdout.readline().strip().partition("/")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sink", choices=["duckdb", "jsonl", "kafka"], default="duckdb")
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--tenants", type=int, default=500)
    parser.add_argument("--batch", type=int, default=5000)
    parser.add_argument("--rate", type=int, default=5000, help="events a second of the steady part")
    parser.add_argument("--seconds", type=int, default=20, help="of the steady part; 0: none")
    options = parser.parse_args()
    with ExitStack() as resources:
        folder = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="collector-bench-")))
        server = resources.enter_context(EmbeddedValkey(folder / "valkey"))
        client = resources.enter_context(contextlib.closing(redis.Redis.from_url(server.url)))
        url = sink_url(options.sink, folder, resources)
        outbox = connect_outbox(server.url)
        outbox.register(["bench"])
        size = add(client, 0, options.events, options.tenants)
        print(f"outbox   {options.events:,} events of {options.tenants} tenants, {size // options.events} bytes each")
        process = resources.enter_context(collector(server.url, url, ["--batch", str(options.batch)]))
        while standing(outbox).behind == options.events:
            time.sleep(0.01)  # it starts, and opens its sink
        began, left = time.perf_counter(), standing(outbox).behind
        cpu = cpu_s(process.pid), cpu_s(server.pid)
        while standing(outbox).behind:
            time.sleep(0.05)
        wall = time.perf_counter() - began
        used = [now - then for now, then in zip((cpu_s(process.pid), cpu_s(server.pid)), cpu, strict=True)]
        result = {
            "sink": options.sink,
            "events_s": round(left / wall),
            "collector_cpu_us_an_event": round(used[0] / left * 1e6, 1),
            "valkey_cpu_us_an_event": round(used[1] / left * 1e6, 1),
            "collector_rss_mb": round(rss_mb(process.pid)),
        }
        print(f"drained  {left / wall:,.0f} events/s ({left:,} in {wall:.2f} s after the first batch)")
        if options.seconds:
            result |= steady(client, outbox, options)
        print(json.dumps(result))


def steady(client: redis.Redis, outbox: Outbox, options: argparse.Namespace) -> dict[str, float]:
    """Events at a fixed rate, and how far behind the collector is meanwhile."""
    began, added, lags, ages = time.perf_counter(), 0, [], []
    while (elapsed := time.perf_counter() - began) < options.seconds:
        due = int(elapsed * options.rate) - added
        if due >= 250:
            add(client, options.events + added, due, options.tenants)
            added += due
            status = standing(outbox)
            lags.append(status.behind)
            ages.append(status.oldest_s or 0.0)
        else:
            time.sleep(0.01)
    rate = added / (time.perf_counter() - began)
    lags.sort()
    print(f"steady   {rate:,.0f} events/s for {options.seconds} s: behind {lags[len(lags) // 2]:,} (median),")
    print(f"         {lags[-1]:,} (most); oldest {max(ages):.2f} s (most)")
    return {
        "steady_events_s": round(rate),
        "lag_median": lags[len(lags) // 2],
        "lag_max": lags[-1],
        "oldest_s": max(ages),
    }


if __name__ == "__main__":
    main()

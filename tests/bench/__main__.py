"""`make bench`: token-quota's plugin server on Kong's side of the wire, beside stock kong-pdk running the same plugin.

Everything in one run on this machine, so read ratios and CPU, not absolutes. Real Valkey (append-only file on), one
plugin process, the driver in this process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from kong_plugins.adapters.ledger import EmbeddedValkey
from kong_plugins.cli.processes import Child, Processes, unix_socket_answers
from tests.bench.driver import Report, Request, run, start_instance

TICKS = os.sysconf("SC_CLK_TCK")
BODY = json.dumps(
    {
        "model": "deepseek-r1",
        "messages": [
            {"role": "system", "content": "You answer in one sentence. " * 20},
            {"role": "user", "content": "How many requests remain for me today?"},
        ],
        "max_tokens": 200,
        "stream": True,
    }
)


def config(limit: int, ledger_url: str) -> str:
    budget = {"name": "daily", "limit": limit, "window": "day"}
    return json.dumps({"ledger_url": ledger_url, "budgets": [budget], "context_tokens": 8192, "__seq__": 1})


# A streamed answer of 120 tokens as its client gets it.
ANSWER = "".join(
    f'data: {{"id":"chatcmpl-8f3a","object":"chat.completion.chunk","created":1763812800,"model":"deepseek-r1",'
    f'"choices":[{{"index":0,"delta":{{"content":" word{n}"}},"logprobs":null,"finish_reason":null}}]}}\n\n'
    for n in range(120)
)


def make_request(tenants: int, *, settle: bool, sdk: bool = False) -> Callable[[int], Request]:
    """Tables as usage-gate and usage-tap leave them; ids are new for each request. ``sdk``: it sends a retry count, so
    its answer is kept for a retry."""

    def make(number: int) -> Request:
        tenant = f"tenant-{number % tenants}"
        identity = uuid.uuid4().hex
        gate: dict[str, Any] = {
            "v": 1,
            "id": identity,
            "method": "POST",
            "path": "/v1/chat/completions",
            "type": "application/json",
            "body": BODY,
            "size": len(BODY),
            "consumer": {"id": str(uuid.uuid5(uuid.NAMESPACE_DNS, tenant)), "username": tenant},
            "credential": {"id": str(uuid.uuid4()), "hash": "0123456789abcdef"},
            "ip": "127.0.0.1",
            "service": {"id": "s", "name": "deepseek-r1"},
            "route": {"id": "r", "name": "v1"},
        }
        if sdk:
            gate["body"] = BODY[:-1] + f', "seed": {number}}}'
            gate["size"] = len(gate["body"])
            gate["retry_count"] = "0"
        if not settle:
            return {"usage_gate": gate}, None
        log: dict[str, object] = {"retriable": True} if sdk else {}
        tap = {
            "v": 1,
            "log": {
                **log,
                "hold": identity,
                "tenant": tenant,
                "model": "deepseek-r1",
                "endpoint": "chat",
                "stream": True,
            },
            "request_id": identity,
            "endpoint": "chat",
            "stream": True,
            "usage": {"prompt": 160, "completion": 120, "cached": 128},
            "evidence": "exact",
            "finish": "stop",
            "ended": True,
            "status": 200,
            "upstream_status": "200",
            "source": "service",
            "started_ms": 1_795_358_264_162,
            "first_ms": 1_795_358_264_200,
            "last_ms": 1_795_358_264_900,
        }
        if not sdk:
            return {"usage_gate": gate}, {"usage_tap": tap}
        tap["answer"] = "kept"
        answer = {"v": 1, "status": 200, "type": "text/event-stream; charset=utf-8", "body": ANSWER}
        return {"usage_gate": gate}, {"usage_tap": tap, "usage_tap_answer": answer}

    return make


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def rss_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


def show(name: str, connections: int, report: Report, cpu: float) -> None:
    count = max(1, report.requests)
    print(
        f"{name:<22} {connections:>4} {report.requests / report.wall_s:>9.0f} "
        f"{report.percentile_ms(report.access_s, 0.5):>8.2f} {report.percentile_ms(report.access_s, 0.99):>8.2f} "
        f"{1e6 * cpu / count:>10.0f} {1e6 * report.driver_cpu_s / count:>10.0f} "
        f"{report.calls['access'] / count:>7.2f} {report.calls['log'] / count:>6.2f} {len(report.errors):>6}",
        flush=True,
    )
    for error in sorted(set(report.errors))[:3]:
        print(f"    {error}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000, help="per row, admitted and settled")
    parser.add_argument("--stock-requests", type=int, default=3_000, help="the same for stock kong-pdk")
    parser.add_argument("--denials", type=int, default=100_000, help="for the memory row")
    parser.add_argument("--stock-denials", type=int, default=8_000)
    options = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    header = f"{'server':<22} {'conn':>4} {'req/s':>9} {'p50 ms':>8} {'p99 ms':>8} {'server µs':>10} {'driver µs':>10}"
    print(
        f"{header} {'access':>7} {'log':>6} {'errors':>6}   (PDK calls a request; ms: access phase; µs: CPU a request)"
    )
    with ExitStack() as resources:
        directory = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="tq-bench-")))
        ledger = resources.enter_context(EmbeddedValkey(directory / "ledger"))
        processes = resources.enter_context(Processes(directory / "logs"))
        env = {"TOKEN_QUOTA_LEDGER_URL": ledger.url}

        def start(name: str, *module: str) -> tuple[Child, Path]:
            path = directory / f"{name}.sock"
            argv = [sys.executable, "-m", *module, "--kong-prefix", str(directory), "--socket-name", path.name]
            return processes.start(name, argv, env, unix_socket_answers(path)), path

        ours = start("ours", "kong_plugins.token_quota")
        stock = start("stock", "tests.bench.stock_server", "-g", "--no-lua-style")
        rows = [
            ("ours", ours, options.requests, False),
            ("ours, answers kept", ours, options.requests, True),
            ("stock kong-pdk", stock, options.stock_requests, False),
        ]
        for connections in (1, 32, 128):
            for name, (child, path), count, sdk in rows:
                instance = start_instance(path, "token-quota", config(10**12, ledger.url))
                before = cpu_s(child.process.pid)
                amount = count // 10 if connections == 1 else count
                report = run(path, instance, amount, connections, make_request(50, settle=True, sdk=sdk))
                show(name, connections, report, cpu_s(child.process.pid) - before)
        for name, (child, path), count in [
            ("ours, denials", ours, options.denials),
            ("stock, denials", stock, options.stock_denials),
        ]:
            instance = start_instance(path, "token-quota", config(1, ledger.url))
            run(path, instance, 1_000, 32, make_request(50, settle=False))
            rss, before = rss_mb(child.process.pid), cpu_s(child.process.pid)
            report = run(path, instance, count, 32, make_request(50, settle=False))
            show(name, 32, report, cpu_s(child.process.pid) - before)
            print(f"    RSS {rss:.1f} MB -> {rss_mb(child.process.pid):.1f} MB over {count:,} denials")
    return 0


if __name__ == "__main__":
    sys.exit(main())

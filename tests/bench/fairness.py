"""``python -m tests.bench.fairness``: a flood on an engine that others use too, with and without `engine_places`.

An engine stand-in that runs so many sequences at a time, before it Kong or the local gateway. Legs: a polite tenant
alone; beside a flood, with nothing in its way; beside it with as many places as the engine runs; then tenants that all
want more than there is. Clients ask again as soon as they are answered, or when a refusal told them to.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx
import yaml

from kong_plugins.cli.stack import Gateway, StackOptions, default_config, start_stack

SEQUENCES, STEP_MS, TOKENS = 16, 50, 20  # 1 s a request: 16 a second, which two cores carry easily
WARM_S = 2.0  # of each leg, not counted
SETTLE_S = 3.0


@dataclass
class Tenant:
    """What one tenant's clients met."""

    clients: int
    answered: int = 0
    failed: int = 0
    first_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)  # how long refusals took
    told_s: list[float] = field(default_factory=list)  # how long they said to wait


@dataclass
class Leg:
    tenants: dict[str, Tenant]
    seconds: float
    health_s: list[float] = field(default_factory=list)
    unhealthy: int = 0
    waiting: list[int] = field(default_factory=list)  # in the engine's queue

    def lines(self) -> list[str]:
        lines = []
        for name, tenant in self.tenants.items():
            first = f"first token p50 {_ms(tenant.first_s, 50)}, p95 {_ms(tenant.first_s, 95)}"
            refused = ""
            if tenant.refused_s:
                told = f"told to wait p50 {_ms(tenant.told_s, 50)}"
                refused = f", refused {len(tenant.refused_s)} in p50 {_ms(tenant.refused_s, 50)}, {told}"
            lines.append(
                f"  {name:8}{tenant.clients:4} clients: {tenant.answered:5} answered"
                f" ({tenant.answered / self.seconds:.1f}/s), {tenant.failed} failed, {first}{refused}"
            )
        waiting = sum(self.waiting) / max(1, len(self.waiting))
        lines.append(
            f"  engine's queue {waiting:.0f} on average, {max(self.waiting, default=0)} at most; health check"
            f" {len(self.health_s)} times, {self.unhealthy} failed, p95 {_ms(self.health_s, 95)}"
        )
        return lines


def _ms(values: list[float], percent: int) -> str:
    if not values:
        return "-"
    return f"{1000 * sorted(values)[min(len(values) - 1, len(values) * percent // 100)]:,.0f} ms"


def jain(parts: list[float]) -> float:
    return sum(parts) ** 2 / (len(parts) * sum(part * part for part in parts)) if any(parts) else 0.0


def config(directory: Path, rows: dict[str, dict[str, Any]]) -> Path:
    """kong/kong.yaml with these tenants and no budgets that matter."""
    data = yaml.safe_load(default_config().read_text())
    data["consumers"] = [
        {
            "username": name,
            "keyauth_credentials": [{"key": f'${{{{ env "DECK_{name.upper()}_KEY" }}}}'}],
            "plugins": [{"name": "token-quota", "config": {"budgets": [], **row}}],
        }
        for name, row in rows.items()
    ]
    path = directory / "kong.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


async def client(http: httpx.AsyncClient, url: str, key: str, tenant: Tenant, window: tuple[float, float]) -> None:
    counts_from, until = window
    body = {"model": "deepseek-r1", "messages": [{"role": "user", "content": "How many?"}], "max_tokens": TOKENS}
    while (started := time.monotonic()) < until:
        counted = started >= counts_from
        async with http.stream("POST", url, json={**body, "stream": True}, headers={"apikey": key}) as answer:
            if answer.status_code == 429:
                await answer.aread()
                wait_s = int(answer.headers["retry-after-ms"]) / 1000
                if counted:
                    tenant.refused_s.append(time.monotonic() - started)
                    tenant.told_s.append(wait_s)
                await asyncio.sleep(min(wait_s, max(0.0, until - time.monotonic())))
                continue
            first_s = None
            async for line in answer.aiter_lines():
                if first_s is None and '"reasoning":"' in line.replace(": ", ":"):
                    first_s = time.monotonic() - started
            if counted and answer.status_code == 200 and first_s is not None:
                tenant.answered += 1
                tenant.first_s.append(first_s)
            elif counted:
                tenant.failed += 1


async def watch(http: httpx.AsyncClient, root: str, leg: Leg, until: float) -> None:
    """What a load balancer's health check sees, and the engine's queue."""
    while time.monotonic() < until:
        started = time.monotonic()
        answer = await http.get(f"{root}/health")
        leg.health_s.append(time.monotonic() - started)
        leg.unhealthy += answer.status_code != 200
        page = (await http.get(f"{root}/metrics")).text
        waiting = (
            line.rpartition(" ")[2] for line in page.splitlines() if line.startswith("vllm:num_requests_waiting{")
        )
        leg.waiting.append(round(sum(float(count) for count in waiting)))
        await asyncio.sleep(0.25)


async def run(url: str, root: str, keys: dict[str, str], clients: dict[str, int], seconds: float) -> Leg:
    leg = Leg({name: Tenant(count) for name, count in clients.items()}, seconds)
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=60, limits=limits) as http, httpx.AsyncClient(timeout=10) as watching:
        begins = time.monotonic() + WARM_S
        until = begins + seconds
        tasks = [watch(watching, root, leg, until)]
        for name, tenant in leg.tenants.items():
            key = keys[f"DECK_{name.upper()}_KEY"]
            tasks += [client(http, url, key, tenant, (begins, until)) for _ in range(tenant.clients)]
        await asyncio.gather(*tasks)
    return leg


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gateway", choices=["local", "kong"], default="local")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each leg")
    parser.add_argument("--flood", type=int, default=100, help="clients of the flooding tenant")
    options = parser.parse_args()
    places = {"engine_places": SEQUENCES}
    rows = {
        "polite": {},
        "flood": {},
        "shared_polite": places,
        "shared_flood": places,
        "many": places,
        "some": places,
        "few": places,
        "heavy": {**places, "engine_weight": 3},
        "light": places,
    }
    legs = {
        "alone": {"polite": 2},
        "beside a flood": {"polite": 2, "flood": options.flood},
        f"beside a flood, engine_places {SEQUENCES}": {"shared_polite": 2, "shared_flood": options.flood},
        f"three hungry tenants, engine_places {SEQUENCES}": {"many": options.flood, "some": 30, "few": 10},
        f"weights 3 and 1, engine_places {SEQUENCES}": {"heavy": 30, "light": options.flood},
    }
    for name in rows:
        os.environ[f"DECK_{name.upper()}_KEY"] = f"sk-{secrets.token_hex(12)}"
    with ExitStack() as resources:
        directory = Path(resources.enter_context(tempfile.TemporaryDirectory()))
        engine = (f"--max-num-seqs={SEQUENCES}", f"--token-delay-ms={STEP_MS}", "--answer=4096")
        stack = start_stack(
            StackOptions(
                config=config(directory, rows),
                gateway=Gateway(options.gateway),
                port=0,
                data_dir=directory / "data",
                engine_args=engine,
            ),
            resources,
            lambda _: None,
        )
        url = f"{stack.url}/v1/chat/completions"
        told = {
            "gateway": options.gateway,
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
            "seconds": options.seconds,
        }
        sys.stdout.write(f"{json.dumps(told)}\n")
        for name, clients in legs.items():
            leg = asyncio.run(run(url, stack.engine_root, stack.keys, clients, options.seconds))
            sys.stdout.write("\n".join([name, *leg.lines()]) + "\n")
            if len(clients) > 1:
                weights = [rows[tenant].get("engine_weight", 1) for tenant in clients]
                parts = [each.answered / weight for each, weight in zip(leg.tenants.values(), weights, strict=True)]
                sys.stdout.write(f"  Jain's index of answered requests by weight: {jain(parts):.3f}\n")
            sys.stdout.flush()
            time.sleep(SETTLE_S)
    return 0


if __name__ == "__main__":
    sys.exit(main())

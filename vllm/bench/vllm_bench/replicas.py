"""Two or more engines behind one Kong, twice: a path where beginnings stay together, and one where all take turns."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from kong_plugins.cli.stack import Gateway
from vllm_bench.gateway import CONFIG, TENANTS, gateway
from vllm_bench.load import Cell
from vllm_bench.session import Session
from vllm_bench.wire import Target

WAYS = {"header": {"hash_on": "header", "hash_on_header": "xprefixaffinity"}, "turns": {}}
STREAMS, OUTPUT_TOKENS = 16, 32
PROMPT_TOKENS = 2000


@contextlib.contextmanager
def balanced(urls: Sequence[str], processes: int, say: Callable[[str], None]) -> Iterator[dict[str, Target]]:
    """A target for each of ``WAYS``. Balancing is Kong's: the local gateway has none."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "replicas.yaml"
        config.write_text(yaml.safe_dump(replicas_config(urls), sort_keys=False))
        with gateway(Gateway.KONG, urls[0], processes, say, config) as running:
            (target,) = running.targets()
            yield {way: Target(target.url.removesuffix("/v1") + f"/{way}", target.headers) for way in WAYS}


def replicas_config(urls: Sequence[str]) -> dict[str, Any]:
    """The benchmark's gateway, its service once more for each way to balance."""
    data: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    (service,) = data["services"]
    for plugin in service["plugins"]:
        if plugin["name"] == "token-quota":
            # Well within the shared system prompt: what follows it is each request's own.
            plugin["config"] |= {"affinity": "header", "affinity_prefix_bytes": 4096}
    addresses = [urlsplit(url).netloc for url in urls]
    data["upstreams"] = []
    for way, hashing in WAYS.items():
        targets = [{"target": address, "weight": 100} for address in addresses]
        data["upstreams"].append({"name": way, "targets": targets, **hashing})
        (route,) = service["routes"]
        data["services"].append(
            {key: value for key, value in service.items() if key not in {"url", "routes"}}
            | {"name": way, "host": way, "port": 80, "protocol": "http", "path": "/v1"}
            | {"routes": [{**route, "name": way, "paths": [f"/{way}"]}]}
        )
    return data


def measure_replicas(
    session: Session, engine: str, urls: Sequence[str], processes: int, prefixes: Sequence[int]
) -> None:
    """Cached share and first token, in turns: prompts that share nothing, then 90 % of one of so many beginnings."""
    cells = [Cell(STREAMS, 10, PROMPT_TOKENS, OUTPUT_TOKENS, 0)]
    for count in prefixes:
        # Each beginning comes six times or more: the first is cold wherever it goes.
        requests = max(12, -(-6 * count // STREAMS))
        cells.append(Cell(STREAMS, requests, PROMPT_TOKENS, OUTPUT_TOKENS, 90, prefixes=count))
    with balanced(urls, processes, session.say) as ways:
        for target in ways.values():
            session.warm_up([target], STREAMS)
        for cell in cells:
            for turn in range(2):
                for way, target in list(ways.items())[:: 1 if turn % 2 == 0 else -1]:
                    with session.step(f"{engine} {way} {cell.prefixes} {cell.shared_percent}"):
                        note = {"purpose": "replicas", "turn": turn, "tenant": TENANTS[0]}
                        row = session.measure(engine, way, [target], cell, **note)
                        share = 100 * row["cached_counted"] / max(1, row["prompt_counted"])
                        session.say(f"{engine}: {way}, {cell.prefixes} beginnings: {share:.1f} % of prompts cached")

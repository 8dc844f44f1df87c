"""The measurements of a run, one after another; a step that fails is written down and the next one goes on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vllm_bench.figures import Row, cell_row, paired_row, ratio_row
from vllm_bench.gateway import Running
from vllm_bench.hops import Ports, hops_row, recorded
from vllm_bench.load import Cell, Clients, paired
from vllm_bench.reconcile import check_books
from vllm_bench.wire import Target

DIRECT = "direct"
PAUSE_S = 0.05  # by then a gateway has settled what it answered last


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    concurrency: tuple[int, ...] = (1, 8, 32, 64, 200)
    shared: tuple[int, ...] = (0, 90)
    prompt_tokens: int = 512
    output_tokens: int = 128
    requests: int = 3
    repeats: int = 3
    pairs: int = 40
    loaded_streams: int = 32  # beside the pairs, in a second round of them
    loaded_seconds: float = 40.0
    hops: int = 100
    long_prompts: tuple[tuple[int, int], ...] = ((4000, 1), (2048, 64))  # (tokens, streams)
    books: int = 2000
    books_concurrency: int = 32

    def cell(self, concurrency: int, shared_percent: int) -> Cell:
        # One stream alone needs more requests for a median worth its name.
        requests = max(self.requests, -(-8 // concurrency))
        return Cell(concurrency, requests, self.prompt_tokens, self.output_tokens, shared_percent)


@dataclass
class Session:
    """Rows as they come, also on disk at once: a run that is cut short keeps what it measured."""

    output: Path
    clients: Clients
    sizes: Sizes
    say: Callable[[str], None]
    rows: list[Row] = field(default_factory=list)
    started: float = field(default_factory=time.time)

    def add(self, row: Row) -> Row:
        self.rows.append(row)
        with self.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        return row

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Whatever goes wrong inside is a row of its own."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 the other measurements are still worth having
            self.say(f"FAILED {name}: {error}")
            self.add({"kind": "failed", "step": name, "error": f"{type(error).__name__}: {error}"[-2000:]})

    @property
    def failed(self) -> bool:
        return any(
            row["kind"] == "failed"
            or row.get("unexplained")
            or row.get("failures")
            or (row.get("cut") and row.get("purpose") != "window")
            for row in self.rows
        )

    def measure(self, engine: str, way: str, targets: Sequence[Target], cell: Cell, **extra: Any) -> Row:
        """One cell, with a seed no cache has seen."""
        seed = f"{self.started:.0f}/{len(self.rows)}"
        cell = replace(cell, seed=seed)
        row = cell_row(cell, self.clients.run(cell, targets))
        row = self.add({"kind": "cell", "engine": engine, "way": way, **extra, **row})
        first = (row["first_token_ms"] or {}).get("p50")
        self.say(
            f"{engine:<14} {way:<8} {cell.concurrency:>4} streams, {cell.shared_percent:>2} % shared: "
            f"{row['output_tokens_per_s']:>9,.1f} tokens/s, first token p50 {first} ms, client busy "
            f"{row['client_busy']}{', FAILURES ' + str(row['failures']) if row['failures'] else ''}"
        )
        return row

    def warm_up(self, targets: Sequence[Target], concurrency: int) -> None:
        """Requests whose figures nobody keeps: connections, caches of code, an engine's first steps."""
        self.clients.run(Cell(concurrency, 1, self.sizes.prompt_tokens, 16, 0, seed=f"warm/{time.time()}"), targets)

    def table(self, engine: str, ways: dict[str, Sequence[Target]]) -> None:
        """Every concurrency and share, the ways in turns."""
        for shared in self.sizes.shared:
            for concurrency in self.sizes.concurrency:
                for way, targets in ways.items():
                    with self.step(f"{engine} {way} {concurrency} {shared}"):
                        self.measure(engine, way, targets, self.sizes.cell(concurrency, shared))

    def ratio(self, engine: str, direct: Sequence[Target], way: str, targets: Sequence[Target]) -> None:
        """Throughput at the most streams, direct and through, ``repeats`` times in turns."""
        cell = self.sizes.cell(max(self.sizes.concurrency), 0)
        rows: dict[str, list[Row]] = {DIRECT: [], way: []}
        for turn in range(self.sizes.repeats):
            order = [(DIRECT, direct), (way, targets)]
            for name, where in order if turn % 2 == 0 else order[::-1]:
                rows[name].append(self.measure(engine, name, where, cell, turn=turn))
        row = ratio_row(rows[DIRECT], rows[way])
        self.add({"kind": "ratio", "engine": engine, "way": way, **row})
        self.say(f"{engine}: {way} has {row['percent_of_direct']} % of direct throughput")

    def added(self, engine: str, direct: Target, ways: dict[str, Target]) -> None:
        """What each way adds to the first token of a request that is alone, all ways in turns."""
        self._added(self._pairs(engine), engine, direct, ways, beside=0)

    def added_beside(self, engine: str, direct: Target, way: str, targets: Sequence[Target]) -> None:
        """The same while other streams run through the gateway, for so many seconds."""
        streams, seconds = self.sizes.loaded_streams, self.sizes.loaded_seconds
        load = Cell(
            streams, 1_000_000, self.sizes.prompt_tokens, self.sizes.output_tokens, 0, seconds, f"{time.time()}"
        )
        running = self.clients.start(load, targets)
        time.sleep(seconds / 10)  # all streams are on their way
        cell = replace(self._pairs(engine), requests=1_000_000, seconds=0.8 * seconds, seed=f"beside/{time.time()}")
        self._added(cell, engine, direct, {way: targets[0]}, beside=streams)
        failed = [reply.error for reply in running.result().replies if not reply.good]
        if failed:
            raise RuntimeError(f"{len(failed)} of the streams beside failed: {failed[0]}")

    def _pairs(self, engine: str) -> Cell:
        return Cell(1, self.sizes.pairs, self.sizes.prompt_tokens, 8, 0, seed=f"pairs/{self.started:.0f}/{engine}")

    def _added(self, cell: Cell, engine: str, direct: Target, ways: dict[str, Target], *, beside: int) -> None:
        replies = asyncio.run(paired([direct, *ways.values()], cell))
        for way, through in zip(ways, replies[1:], strict=True):
            figures = paired_row(cell, replies[0], through)
            row = self.add({"kind": "added", "engine": engine, "way": way, "streams_beside": beside, **figures})
            self.say(
                f"{engine}: {way} adds {row['added_p50_ms']} ms to the first token (p50 of {row['pairs']} pairs, "
                f"{beside} streams beside)"
            )

    def hops(self, engine: str, direct: Target, way: str, running: Running) -> None:
        """Where the first token's time goes, direct and through, from the packets' timestamps; with a pause between."""
        through = running.targets()[0]
        ports = Ports(engine=direct.address[1], gateway=through.address[1])
        cell = replace(self._pairs(engine), requests=self.sizes.hops, seed=f"hops/{time.time()}")
        with recorded((ports.engine, ports.gateway)) as packets:
            replies = asyncio.run(paired([direct, through], cell, PAUSE_S))
        row = self.add({"kind": "hops", "engine": engine, "way": way, **hops_row(packets, replies, ports)})
        for side in ("direct", "through"):
            told = ", ".join(f"{name} {leg['p50']}" for name, leg in row[f"{side}_ms"].items())
            self.say(f"{engine}: {way} {side}, ms p50 of {row[f'{side}_seen']}: {told}")

    def long_prompts(self, engine: str, ways: dict[str, Sequence[Target]]) -> None:
        """First token of long prompts, cold and with 90 % in the cache."""
        for tokens, concurrency in self.sizes.long_prompts:
            requests = max(2, -(-20 // concurrency))
            for shared in (0, 90):
                for way, targets in ways.items():
                    with self.step(f"{engine} {way} long prompts {tokens}"):
                        cell = Cell(concurrency, requests, tokens, 16, shared)
                        self.measure(engine, way, targets, cell, purpose="long prompts")

    def books(self, engine: str, way: str, running: Running, engine_root: str) -> None:
        row = check_books(
            running,
            engine_root,
            count=self.sizes.books,
            concurrency=self.sizes.books_concurrency,
            seed=f"books/{self.started:.0f}",
            say=self.say,
        )
        self.add({"kind": "books", "engine": engine, "way": way, **row})
        self.say(f"{engine}: books through {way} {'balance' if not row['unexplained'] else row['unexplained']}")

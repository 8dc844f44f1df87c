"""Measure an engine direct and through the gateway, and end with a check of the books. One command, every figure.

  what runs here without a GPU (the engine stand-in; half a minute):
    python vllm/bench/run.py --stand-in --quick --out /tmp/bench

  an engine that runs already:
    python vllm/bench/run.py --url r1=http://127.0.0.1:8000/v1 --out /tmp/bench

  everything on two cards: each config is started, measured and ended, then the server that vLLM replaces:
    python vllm/bench/run.py --out /tmp/bench \\
        --serve tp2=vllm/r1-tensor-parallel.yaml --serve dp2=vllm/r1-data-parallel.yaml \\
        --api-servers tp2=1,2,8 --baseline /models/r1-distill-7b \\
        --gateway kong --gateway local --gateway-processes 8

  engines that run already on one card, with 1 and 8 API servers, and two of them as replicas behind Kong:
    python vllm/bench/run.py --out /tmp/bench --gateway-processes 4 --steps none \\
        --most-streams api1=http://127.0.0.1:8001/v1 --most-streams api8=http://127.0.0.1:8008/v1 \\
        --replicas two=http://127.0.0.1:8001/v1,http://127.0.0.1:8008/v1

Writes OUT/results.jsonl (a row for each figure, as it comes), OUT/table.md and OUT/chart.svg. Always first: what the
load client itself can carry, direct and through each gateway, from a server that has its answers ready. Read no figure
near that ceiling as the engine's. Needs the package's environment with the extra `local` (.venv after `make venv`).
Exit status 1 when a step failed, a request failed or the books do not balance.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(1, str(Path(__file__).resolve().parent.parent.parent))

from vllm_bench.conditions import conditions, engine_version
from vllm_bench.gateway import Running, gateway
from vllm_bench.load import Cell, Clients
from vllm_bench.replicas import measure_replicas
from vllm_bench.reports import write_reports
from vllm_bench.servers import answers, server
from vllm_bench.session import DIRECT, Session, Sizes
from vllm_bench.wire import Target

from kong_plugins.cli.processes import free_port, tcp_port_answers
from kong_plugins.cli.stack import SIM_FLAGS, Gateway

BENCH = Path(__file__).resolve().parent
QUICK = Sizes((1, 4), (0, 90), 128, 16, 2, 1, 4, 3, 2.0, 4, ((512, 2),), 60, 6)
STEPS = ("ceiling", "added", "hops", "ratio", "table", "long", "books")
BASELINE_SECONDS = 30.0
CEILING_TOKENS = 256


def main() -> int:
    options = parse_options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    results = out / "results.jsonl"
    results.unlink(missing_ok=True)
    began = time.monotonic()

    def say(text: str) -> None:
        sys.stdout.write(f"[{time.monotonic() - began:6.1f} s] {text}\n")
        sys.stdout.flush()

    with Clients(options.processes) as clients:
        session = Session(results, clients, options.sizes, say)
        session.add(conditions(shlex.join(["python", "vllm/bench/run.py", *sys.argv[1:]])))
        try:
            measure_all(session, options)
        finally:
            write_reports(session.rows, out)
    say(f"done: {results}, {out / 'table.md'}, {out / 'chart.svg'}")
    return 1 if session.failed else 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for results.jsonl, table.md, chart.svg and logs"
    )
    what = parser.add_argument_group("what is measured (any of these, in this order)")
    what.add_argument("--stand-in", action="store_true", help="the engine stand-in: proves the bench, measures nothing")
    what.add_argument("--url", action="append", default=[], type=named, metavar="NAME=URL", help="an engine that runs")
    what.add_argument(
        "--serve", action="append", default=[], type=named, metavar="NAME=YAML", help="`vllm serve --config YAML`"
    )
    what.add_argument(
        "--api-servers",
        action="append",
        default=[],
        type=named,
        metavar="NAME=N,N",
        help="start that --serve again with other --api-server-count, and measure the most streams only",
    )
    what.add_argument(
        "--baseline", metavar="MODEL", help="transformers behind FastAPI with this model folder, one card"
    )
    what.add_argument(
        "--most-streams",
        action="append",
        default=[],
        type=named,
        metavar="NAME=URL",
        help="an engine that runs: the most streams only, all of these in turns",
    )
    what.add_argument(
        "--replicas",
        action="append",
        default=[],
        type=named,
        metavar="NAME=URL,URL",
        help="engines that run, as replicas behind Kong: by the affinity header, and in turns",
    )
    what.add_argument(
        "--steps",
        type=steps,
        default=tuple(step for step in STEPS if step != "hops"),
        metavar="STEP,STEP",
        help=f"of {','.join(STEPS)}, or none (default: all but hops, which need root)",
    )
    how = parser.add_argument_group("how engines are started")
    how.add_argument("--vllm", default="vllm serve", help="command (default: %(default)s)")
    how.add_argument("--model", help="model folder in place of the config's")
    how.add_argument("--serve-args", default="", help="more options for every --serve, e.g. '--load-format dummy'")
    how.add_argument("--baseline-python", default=sys.executable, help="a Python that has torch and transformers")
    how.add_argument("--baseline-args", default="", help="e.g. --random-weights")
    gate = parser.add_argument_group("gateway")
    gate.add_argument(
        "--gateway", action="append", choices=["kong", "local", "none"], help="repeat for several (default: local)"
    )
    gate.add_argument("--gateway-processes", type=int, default=1, help="Kong's workers, or local gateways")
    size = parser.add_argument_group("how much")
    base = Sizes()
    size.add_argument("--quick", action="store_true", help="a few small requests, to see that everything works")
    size.add_argument("--concurrency", type=numbers, default=base.concurrency, help="streams at once (1,8,32,64,200)")
    size.add_argument("--shared", type=numbers, default=base.shared, help="percent of the prompt all share (0,90)")
    size.add_argument("--prompt-tokens", type=int, default=base.prompt_tokens)
    size.add_argument("--output-tokens", type=int, default=base.output_tokens)
    size.add_argument("--requests", type=int, default=base.requests, help="one after another in each stream")
    size.add_argument(
        "--repeats", type=int, default=base.repeats, help="direct and through, in turns, at the most streams"
    )
    size.add_argument("--pairs", type=int, default=base.pairs, help="single requests for the added first-token time")
    size.add_argument(
        "--beside", type=float, default=base.loaded_seconds, help="seconds of more pairs beside streams (0: none)"
    )
    size.add_argument("--hops", type=int, default=base.hops, help="single requests whose packets are timed")
    size.add_argument("--prefixes", type=numbers, default=(16, 128), help="beginnings that replicas are asked with")
    size.add_argument(
        "--books", type=int, default=base.books, help="mixed requests for the check of the books (0: none)"
    )
    size.add_argument("--processes", type=int, default=min(16, os.cpu_count() or 1), help="of the load client")
    options = parser.parse_args()
    options.gateway = [Gateway(name) for name in options.gateway or ["local"] if name != "none"]
    options.sizes = (
        QUICK
        if options.quick
        else Sizes(
            concurrency=options.concurrency,
            shared=options.shared,
            prompt_tokens=options.prompt_tokens,
            output_tokens=options.output_tokens,
            requests=options.requests,
            repeats=options.repeats,
            pairs=options.pairs,
            loaded_seconds=options.beside,
            hops=options.hops,
            books=options.books,
        )
    )
    unknown = {name for name, _ in options.api_servers} - {name for name, _ in options.serve}
    if unknown:
        parser.error(f"--api-servers {', '.join(sorted(unknown))}: no --serve of that name")
    engines = options.stand_in or options.url or options.serve or options.most_streams or options.replicas
    if not (engines or options.baseline):
        parser.error("nothing to measure: give --stand-in, --url, --serve, --baseline, --most-streams or --replicas")
    return options


def quiet(_: str) -> None:
    """What the stack says of its parts; every step has its own line here."""


def named(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def steps(text: str) -> tuple[str, ...]:
    chosen = () if text == "none" else tuple(text.split(","))
    if unknown := set(chosen) - set(STEPS):
        raise argparse.ArgumentTypeError(f"no step {', '.join(sorted(unknown))}: {', '.join(STEPS)}")
    return chosen


def numbers(text: str) -> tuple[int, ...]:
    return tuple(sorted({int(part) for part in text.split(",")}))


def measure_all(session: Session, options: argparse.Namespace) -> None:
    if "ceiling" in options.steps:
        with session.step("ceiling"):
            measure_ceiling(session, options)
    if options.stand_in:
        with session.step("stand-in"), stand_in(session, options.out) as url:
            measure_engine(session, options, "stand-in", url)
    for name, url in options.url:
        with session.step(name):
            measure_engine(session, options, name, url)
    for name, config in options.serve:
        with session.step(name), serve(session, options, name, config, []) as url:
            measure_engine(session, options, name, url)
    if options.baseline:
        with session.step("baseline"):
            measure_baseline(session, options)
    configs = dict(options.serve)
    for name, counts in options.api_servers:
        for count in numbers(counts):
            label, flag = f"{name}-api{count}", ["--api-server-count", str(count)]
            with session.step(label), serve(session, options, label, configs[name], flag) as url:
                measure_most_streams(session, {label: url})
    if options.most_streams:
        with session.step("most streams"):
            measure_most_streams(session, dict(options.most_streams))
    for name, urls in options.replicas:
        with session.step(name):
            measure_replicas(session, name, urls.split(","), options.gateway_processes, options.prefixes)


@contextmanager
def ready_server(session: Session, options: argparse.Namespace, name: str, *extra: str) -> Iterator[str]:
    port = free_port()
    argv = [sys.executable, "-m", "vllm_bench.instant", "--port", str(port), *extra]
    env = {"PYTHONPATH": f"{BENCH}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    log = options.out / "logs" / f"{name}.log"
    with server(f"{name} server", argv, tcp_port_answers(port), log, session.say, env=env):
        yield f"http://127.0.0.1:{port}/v1"


def measure_ceiling(session: Session, options: argparse.Namespace) -> None:
    """Client and gateways in front of a server that has its answers ready."""
    sizes = session.sizes
    servers = max(1, min(8, (os.cpu_count() or 1) // 2))
    with ready_server(session, options, "instant", "--processes", str(servers)) as url:
        tokens = CEILING_TOKENS if not options.quick else sizes.output_tokens
        cell = Cell(max(sizes.concurrency), sizes.requests, sizes.prompt_tokens, tokens, 0)
        session.warm_up([Target(url)], cell.concurrency)
        note = {"purpose": "ceiling", "server_processes": servers}
        session.measure("instant", DIRECT, [Target(url)], cell, **note)
        for kind in options.gateway:
            with session.step(f"ceiling {kind.value}"), gateway(kind, url, options.gateway_processes, quiet) as running:
                session.warm_up(running.targets(), cell.concurrency)
                note["gateway_processes"] = options.gateway_processes
                session.measure("instant", kind.value, running.targets(), cell, **note)
                session.added("instant", Target(url), {kind.value: running.targets()[0]})
                if "hops" in options.steps:
                    session.hops("instant", Target(url), kind.value, running)
    if "hops" in options.steps:
        # The same way, in an engine's time: what being idle in between costs.
        with ready_server(session, options, "paced", "--first-ms", "30", "--gap-ms", "6") as url:
            for kind in options.gateway:
                with (
                    session.step(f"paced {kind.value}"),
                    gateway(kind, url, options.gateway_processes, quiet) as running,
                ):
                    session.warm_up([Target(url)], 1)
                    session.warm_up(running.targets(), 1)
                    session.hops("paced", Target(url), kind.value, running)


def measure_engine(session: Session, options: argparse.Namespace, name: str, url: str) -> None:
    """The whole table of one engine."""
    root = url.removesuffix("/v1")
    session.add({"kind": "engine", "engine": name, "version": engine_version(root)})
    with ExitStack() as stack:
        gateways: dict[str, Running] = {}
        for kind in options.gateway:
            with session.step(f"{name} {kind.value}"):
                gateways[kind.value] = stack.enter_context(gateway(kind, url, options.gateway_processes, quiet))
        direct = [Target(url)]
        first = next(iter(gateways), None)
        session.warm_up(direct, max(session.sizes.concurrency))
        for running in gateways.values():
            session.warm_up(running.targets(), max(session.sizes.concurrency))
        ways = {DIRECT: direct}
        if first is not None:
            ways[first] = list(gateways[first].targets())
        if "added" in options.steps:
            with session.step(f"{name} added first token"):
                session.added(name, direct[0], {way: running.targets()[0] for way, running in gateways.items()})
            for way, running in gateways.items() if session.sizes.loaded_seconds else ():
                with session.step(f"{name} {way} added first token beside streams"):
                    session.added_beside(name, direct[0], way, running.targets())
        for way, running in gateways.items():
            if "hops" in options.steps:
                with session.step(f"{name} {way} hops"):
                    session.hops(name, direct[0], way, running)
            if "ratio" in options.steps:
                with session.step(f"{name} {way} ratio"):
                    session.ratio(name, direct, way, running.targets())
        if "table" in options.steps:
            session.table(name, ways)
        if "long" in options.steps:
            session.long_prompts(name, ways)
        if first is not None and "books" in options.steps and session.sizes.books:
            with session.step(f"{name} books"):
                session.books(name, first, gateways[first], root)


def measure_most_streams(session: Session, engines: dict[str, str]) -> None:
    """Only what tells API server counts apart: the most streams, direct, the engines in turns."""
    most = max(session.sizes.concurrency)
    for url in engines.values():
        session.warm_up([Target(url)], most)
    for turn in range(session.sizes.repeats):
        for name, url in list(engines.items())[:: 1 if turn % 2 == 0 else -1]:
            session.measure(name, DIRECT, [Target(url)], session.sizes.cell(most, 0), turn=turn)


@contextmanager
def stand_in(session: Session, out: Path) -> Iterator[str]:
    port = free_port()
    argv = [sys.executable, "-m", "kong_plugins.engine_sim", "--port", str(port), *SIM_FLAGS, "--answer", "4096"]
    root = f"http://127.0.0.1:{port}"
    with server("stand-in", argv, lambda: answers(f"{root}/health"), out / "logs" / "stand-in.log", session.say):
        yield f"{root}/v1"


@contextmanager
def serve(session: Session, options: argparse.Namespace, name: str, config: str, extra: list[str]) -> Iterator[str]:
    port = free_port()
    argv = [*shlex.split(options.vllm), *([options.model] if options.model else []), "--config", config]
    argv += ["--host", "127.0.0.1", "--port", str(port), *shlex.split(options.serve_args), *extra]
    root = f"http://127.0.0.1:{port}"
    session.say(f"{name}: {shlex.join(argv)}")
    log = options.out / "logs" / f"{name}.log"
    with server(name, argv, lambda: answers(f"{root}/health"), log, session.say) as seconds:
        command = shlex.join(["vllm", "serve", "--config", Path(config).name, *shlex.split(options.serve_args), *extra])
        session.add({"kind": "started", "engine": name, "seconds": round(seconds, 1), "command": command})
        session.say(f"{name}: ready after {seconds:.0f} s")
        yield f"{root}/v1"


def measure_baseline(session: Session, options: argparse.Namespace) -> None:
    """One request at a time, so many clients are watched for a while only."""
    port = free_port()
    argv = [options.baseline_python, str(BENCH / "vllm_bench" / "baseline.py"), options.baseline, "--port", str(port)]
    argv += shlex.split(options.baseline_args)
    root = f"http://127.0.0.1:{port}"
    target, sizes = [Target(f"{root}/v1")], session.sizes
    log = options.out / "logs" / "baseline.log"
    with server("baseline", argv, lambda: answers(f"{root}/health"), log, session.say) as seconds:
        command = "baseline.py MODEL " + options.baseline_args
        session.add({"kind": "started", "engine": "baseline", "seconds": round(seconds, 1), "command": command})
        session.warm_up(target, 1)
        for concurrency in sizes.concurrency:
            with session.step(f"baseline {concurrency}"):
                requests = 3 if concurrency == 1 else 1
                cell = Cell(concurrency, requests, sizes.prompt_tokens, sizes.output_tokens, seconds=BASELINE_SECONDS)
                session.measure("baseline", DIRECT, target, cell, purpose="window")


if __name__ == "__main__":
    sys.exit(main())

"""The engine's own counters, read from its Prometheus page under vLLM's names."""

from __future__ import annotations

import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from kong_plugins.application.reconcile_scrapes import Scrape

PROMPT_TOKENS = "vllm:prompt_tokens_total"
PROMPT_TOKENS_BORN = "vllm:prompt_tokens_created"
GENERATION_TOKENS = "vllm:generation_tokens_total"
CACHED_TOKENS = "vllm:prefix_cache_hits_total"
REQUESTS = "vllm:request_success_total"
RUNNING = "vllm:num_requests_running"
PROCESS_BORN = "process_start_time_seconds"
_READ = {PROMPT_TOKENS, PROMPT_TOKENS_BORN, GENERATION_TOKENS, CACHED_TOKENS, REQUESTS, RUNNING}
TIMEOUT_S = 5.0
SECOND_US = 1_000_000

_Labels = Mapping[str, str]


class EngineMetricsError(Exception):
    """The page could not be read, or lacks a counter that the books need."""


@dataclass(frozen=True, slots=True)
class EngineCounters:
    """Tokens since the engine started, all models and ranks of the page together; ``requests`` counts finished ones."""

    prompt: int
    completion: int
    cached: int
    requests: int


def parse_scrapes(page: str, engine: str, at_us: int) -> list[Scrape]:
    """A metrics page as scrapes, one for each model and rank on it, in their order there.

    ``engine`` names where the page is from. A page without ``…_created`` and without ``process_start_time_seconds``
    (several API server processes behind one address) does not tell when its counters began.

    Raises:
        EngineMetricsError: a token counter is missing, or it is no metrics page.
    """
    found: defaultdict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    finished: defaultdict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    process_born: float | None = None
    for name, labels, value in _samples(page):
        if name == PROCESS_BORN:
            process_born = value
        elif name in _READ:
            key = labels.get("model_name", ""), labels.get("engine", "0")
            if name == REQUESTS:
                reason = labels.get("finished_reason", "")
                finished[key][reason] = finished[key].get(reason, 0) + int(value)
            else:
                found[key][name] = found[key].get(name, 0.0) + value
    for needed in (PROMPT_TOKENS, GENERATION_TOKENS):
        if not any(needed in values for values in found.values()):
            raise EngineMetricsError(f"the engine's metrics page has no {needed}: is this a vLLM server's /metrics?")
    scrapes = []
    for (model, rank), values in found.items():
        life, born_us = _life(engine, rank, values.get(PROMPT_TOKENS_BORN), process_born)
        scrapes.append(
            Scrape(
                engine=engine,
                model=model,
                rank=rank,
                life=life,
                at_us=at_us,
                born_us=born_us,
                prompt=int(values.get(PROMPT_TOKENS, 0)),
                completion=int(values.get(GENERATION_TOKENS, 0)),
                cached=int(values.get(CACHED_TOKENS, 0)),
                finished=finished[model, rank],
                running=int(values.get(RUNNING, 0)),
            )
        )
    return scrapes


def parse_counters(page: str) -> EngineCounters:
    """Sum the counters of a metrics page.

    Raises:
        EngineMetricsError: a token counter is missing.
    """
    scrapes = parse_scrapes(page, "", 0)
    return EngineCounters(
        prompt=sum(each.prompt for each in scrapes),
        completion=sum(each.completion for each in scrapes),
        cached=sum(each.cached for each in scrapes),
        requests=sum(sum(each.finished.values()) for each in scrapes),
    )


def read_counters(engine_root: str) -> EngineCounters:
    """Fetch ``{engine_root}/metrics`` and sum it.

    Raises:
        EngineMetricsError: it cannot be fetched or read.
    """
    return parse_counters(_fetch(engine_root))


class EngineScraper:
    """Scrapes the engines at ``addresses`` (``http://host:8000``; ``/v1`` or ``/metrics`` at their ends are dropped).

    Raises:
        ValueError: not an HTTP address.
    """

    def __init__(self, *addresses: str) -> None:
        self.engines = tuple(dict.fromkeys(map(engine_address, addresses)))
        self.failures: dict[str, str] = {}
        """Engines that the last ``scrape`` could not read, and why."""

    def scrape(self, now_us: int) -> list[Scrape]:
        """All engines' counters as of now, fetched side by side, within ``TIMEOUT_S`` each. One that does not answer is
        in ``failures``; its counters go on where they were when it does again."""
        if not self.engines:
            return []
        with ThreadPoolExecutor(len(self.engines), thread_name_prefix="scrape") as threads:
            results = list(threads.map(lambda engine: self._one(engine, now_us), self.engines))
        answers = dict(zip(self.engines, results, strict=True))
        self.failures = {engine: answer for engine, answer in answers.items() if isinstance(answer, str)}
        return [scrape for answer in answers.values() if not isinstance(answer, str) for scrape in answer]

    @staticmethod
    def _one(engine: str, now_us: int) -> list[Scrape] | str:
        try:
            return parse_scrapes(_fetch(engine), engine, now_us)
        except EngineMetricsError as error:
            return str(error)


def engine_address(address: str) -> str:
    """An engine's address in the one form that names it.

    Raises:
        ValueError: not an HTTP address.
    """
    if not address.startswith(("http://", "https://")):
        raise ValueError(f"an engine's address is like http://127.0.0.1:8000, not {address!r}")
    address = address.rstrip("/")
    for end in ("/metrics", "/v1"):
        address = address.removesuffix(end).rstrip("/")
    return address


def _life(engine: str, rank: str, born_s: float | None, process_born_s: float | None) -> tuple[str, int | None]:
    """Counters that say when they began are known by that, under whatever address. A process's start is in hundredths
    of a second: two engines can share it."""
    if born_s is not None:
        born_us = int(born_s * SECOND_US)
        return f"{rank}@{born_us}", born_us
    if process_born_s is not None:
        born_us = int(process_born_s * SECOND_US)
        return f"{rank}@{born_us}@{engine}", born_us
    return f"{rank}@{engine}", None


def _samples(page: str) -> Iterator[tuple[str, _Labels, float]]:
    try:
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                yield sample.name, sample.labels, sample.value
    except (ValueError, IndexError, KeyError) as error:  # what the parser raises on other text
        raise EngineMetricsError(f"not a metrics page: {error}") from error


def _fetch(engine_root: str) -> str:
    url = f"{engine_root.rstrip('/')}/metrics"
    if not url.startswith(("http://", "https://")):
        raise EngineMetricsError(f"not an HTTP address: {url}")
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:  # noqa: S310 the scheme is checked above
            page: str = response.read().decode()
    except (OSError, ValueError) as error:
        raise EngineMetricsError(f"cannot read {url}: {error}") from error
    return page

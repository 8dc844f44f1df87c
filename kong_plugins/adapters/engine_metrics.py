"""The engine's own counters, read from its Prometheus page under vLLM's names."""

from __future__ import annotations

import urllib.request
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

PROMPT_TOKENS = "vllm:prompt_tokens_total"
GENERATION_TOKENS = "vllm:generation_tokens_total"
CACHED_TOKENS = "vllm:prefix_cache_hits_total"
REQUESTS = "vllm:request_success_total"
TIMEOUT_S = 5.0


class EngineMetricsError(Exception):
    """The page could not be read, or lacks a counter that the books need."""


@dataclass(frozen=True, slots=True)
class EngineCounters:
    """Tokens since the engine started, all models and ranks of the page together; ``requests`` counts finished ones."""

    prompt: int
    completion: int
    cached: int
    requests: int


def parse_counters(page: str) -> EngineCounters:
    """Sum the counters of a metrics page.

    Raises:
        EngineMetricsError: a token counter is missing.
    """
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    for name in (PROMPT_TOKENS, GENERATION_TOKENS):
        if name not in sums:
            raise EngineMetricsError(f"the engine's metrics page has no {name}: is this a vLLM server's /metrics?")
    return EngineCounters(
        prompt=int(sums[PROMPT_TOKENS]),
        completion=int(sums[GENERATION_TOKENS]),
        cached=int(sums.get(CACHED_TOKENS, 0)),
        requests=int(sums.get(REQUESTS, 0)),
    )


def read_counters(engine_root: str) -> EngineCounters:
    """Fetch ``{engine_root}/metrics`` and sum it.

    Raises:
        EngineMetricsError: it cannot be fetched or read.
    """
    url = f"{engine_root.rstrip('/')}/metrics"
    if not url.startswith(("http://", "https://")):
        raise EngineMetricsError(f"not an HTTP address: {url}")
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:  # noqa: S310 the scheme is checked above
            page = response.read().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise EngineMetricsError(f"cannot read {url}: {error}") from error
    return parse_counters(page)

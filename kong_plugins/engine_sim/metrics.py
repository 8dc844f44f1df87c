"""The engine's counters under vLLM's names and labels, as Prometheus text.

A request with n choices counts its prompt n times here, as vLLM does, while its ``usage`` counts it once. An aborted
request counts what was prefilled and generated and no success.
"""

from __future__ import annotations

from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

_Family = TypeVar("_Family", Counter, Gauge)
FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
_ITERATION = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_FIRST_TOKEN_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0),
    *(2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_NEXT_TOKEN_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0),
)
_REQUEST_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_UNMEASURED_PATHS = {"/metrics", "/health", "/load", "/ping", "/version"}
_OWN_PATHS = "/sim/"


class EngineMetrics:
    """Counters of one engine (label ``engine="0"``). Values start at 0 and never go back."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, model: str, block_size: int, blocks: int) -> None:
        self._registry = CollectorRegistry()
        self._labels = {"engine": "0", "model_name": model}
        self._blocks = blocks
        self._block_size = block_size
        self.queries = self._counter("prefix_cache_queries", "Prefix cache queries, in tokens.")
        self.hits = self._counter("prefix_cache_hits", "Prefix cache hits, in tokens.")
        self.prompt_tokens = self._counter("prompt_tokens", "Prefill tokens processed.")
        self.prompt_cached = self._counter("prompt_tokens_cached", "Cached prompt tokens.")
        self.generated = self._counter("generation_tokens", "Generation tokens processed.")
        self.preemptions = self._counter("num_preemptions", "Preemptions; this engine makes none.")
        sources = self._family(Counter, "prompt_tokens_by_source", "Prompt tokens by source.", "source")
        self.computed = sources.labels(**self._labels, source="local_compute")
        self.cache_hit = sources.labels(**self._labels, source="local_cache_hit")
        sources.labels(**self._labels, source="external_kv_transfer")
        success = self._family(Counter, "request_success", "Requests that ran to their end.", "finished_reason")
        self.success = {reason: success.labels(**self._labels, finished_reason=reason) for reason in FINISH_REASONS}
        self.running = self._gauge("num_requests_running", "Requests in the batch.")
        self.waiting = self._gauge("num_requests_waiting", "Requests waiting.")
        reasons = self._family(Gauge, "num_requests_waiting_by_reason", "Requests waiting, by reason.", "reason")
        self.waiting_for_room = reasons.labels(**self._labels, reason="capacity")
        reasons.labels(**self._labels, reason="deferred")
        self.kv_usage = self._gauge("kv_cache_usage_perc", "Share of the KV cache in use; 1 is all.")
        self.request_prompt = self._histogram("request_prompt_tokens", "Prompt tokens per request.", _TOKENS)
        self.request_generated = self._histogram("request_generation_tokens", "Tokens per request.", _TOKENS)
        self.request_generated_max = self._histogram(
            "request_max_num_generation_tokens", "Most tokens of any choice per request.", _TOKENS
        )
        self.request_computed = self._histogram(
            "request_prefill_kv_computed_tokens", "Prompt tokens not found in the cache, per request.", _TOKENS
        )
        self.params_n = self._histogram("request_params_n", "The n parameter.", (1, 2, 5, 10, 20))
        self.params_max_tokens = self._histogram("request_params_max_tokens", "The max_tokens parameter.", _TOKENS)
        self.iteration = self._histogram("iteration_tokens_total", "Tokens per engine step.", _ITERATION)
        self.first_token_s = self._histogram("time_to_first_token_seconds", "Time to first token.", _FIRST_TOKEN_S)
        self.next_token_s = self._histogram("inter_token_latency_seconds", "Time between tokens.", _NEXT_TOKEN_S)
        self.request_s = self._histogram("e2e_request_latency_seconds", "Time per request.", _REQUEST_S)
        self.queue_s = self._histogram("request_queue_time_seconds", "Time in the queue.", _REQUEST_S)
        config = Gauge(
            "vllm:cache_config_info",
            "The cache's configuration.",
            ["block_size", "engine", "num_gpu_blocks"],
            registry=self._registry,
        )
        config.labels(block_size=str(block_size), engine="0", num_gpu_blocks=str(blocks)).set(1)
        self._http = Counter(
            "http_requests", "Requests by handler, method and status.", ["handler", "method", "status"],
            registry=self._registry,
        )  # fmt: skip

    def _family(self, kind: type[_Family], name: str, text: str, *labels: str) -> _Family:
        return kind(f"vllm:{name}", text, ["engine", "model_name", *labels], registry=self._registry)

    def _counter(self, name: str, text: str) -> Counter:
        return self._family(Counter, name, text).labels(**self._labels)

    def _gauge(self, name: str, text: str) -> Gauge:
        return self._family(Gauge, name, text).labels(**self._labels)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        family = Histogram(f"vllm:{name}", text, ["engine", "model_name"], buckets=buckets, registry=self._registry)
        return family.labels(**self._labels)

    def prefilled(self, prompt: int, cached: int) -> None:
        """A sequence's prompt was processed."""
        self.prompt_tokens.inc(prompt)
        self.prompt_cached.inc(cached)
        self.computed.inc(prompt - cached)
        self.cache_hit.inc(cached)

    def load(self, running: int, waiting: int, tokens_held: int) -> None:
        """What the scheduler holds now; ``tokens_held`` counts whole blocks' tokens."""
        self.running.set(running)
        self.waiting.set(waiting)
        self.waiting_for_room.set(waiting)
        # One block is never given out: vLLM keeps it as the null block.
        self.kv_usage.set(tokens_held / self._block_size / max(1, self._blocks - 1))

    def answered(self, handler: str, method: str, status: int) -> None:
        if handler not in _UNMEASURED_PATHS and not handler.startswith(_OWN_PATHS):
            self._http.labels(handler=handler, method=method, status=f"{status // 100}xx").inc()

    def text(self) -> bytes:
        return generate_latest(self._registry)

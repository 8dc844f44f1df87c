"""Server options: vLLM's flags by vLLM's names, and a few that only a stand-in has."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from kong_plugins.engine_sim.faults import NO_FAULTS, DieHow, Faults

VLLM_VERSION = "0.32.0"


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How the engine serves.

    ``answer``: ``scripted`` (the recorded answer: 40 tokens, 19 of them reasoning), ``varied`` (a length of 8 to 160
    tokens that depends on the prompt alone) or a number of tokens. A request's header ``x-sim-answer-tokens``
    overrides it. ``token_delay_ms`` is the time of one engine step: every running sequence gets a token in it.
    ``coalesce``: as vLLM does, tokens that a slow reader has not taken yet share one chunk.
    """

    host: str = "127.0.0.1"
    port: int = 0
    served_model_name: str = "deepseek-r1"
    model: str = "deepseek-ai/DeepSeek-R1"
    api_key: str | None = None
    max_model_len: int = 8192
    max_num_seqs: int = 256
    block_size: int = 128
    num_gpu_blocks: int = 16384
    enable_prefix_caching: bool = True
    reasoning_parser: str | None = None
    enable_force_include_usage: bool = False
    enable_prompt_tokens_details: bool = False
    enable_request_id_headers: bool = False
    enable_server_load_tracking: bool = False
    answer: str = "scripted"
    token_delay_ms: float = 2.0
    coalesce: bool = True
    requests_kept: int = 1000
    faults: Faults = NO_FAULTS

    def __post_init__(self) -> None:
        if self.answer not in {"scripted", "varied"} and not (self.answer.isdigit() and int(self.answer) > 0):
            raise ValueError(f"answer is scripted, varied or a number of tokens, not {self.answer!r}")
        if self.reasoning_parser not in {None, "deepseek_r1"}:
            raise ValueError(f"reasoning_parser: only deepseek_r1 is known, not {self.reasoning_parser!r}")
        if min(self.max_model_len, self.max_num_seqs, self.block_size, self.num_gpu_blocks) < 1:
            raise ValueError("max_model_len, max_num_seqs, block_size and num_gpu_blocks are at least 1")

    @property
    def fingerprint(self) -> str:
        """vLLM's ``system_fingerprint``: the version, and a digest of how it is configured."""
        digest = hashlib.sha256(repr(sorted(asdict(self).items(), key=lambda item: item[0])).encode()).hexdigest()
        return f"vllm-{VLLM_VERSION}-{digest[:8]}"


def _switch(parser: argparse.ArgumentParser, name: str, default: bool, text: str) -> None:
    parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=default, help=text)


def parse_arguments(arguments: Sequence[str] | None = None) -> EngineOptions:
    """Options from a command line; exits with a usage message on a bad one."""
    parser = argparse.ArgumentParser(
        prog="python -m kong_plugins.engine_sim",
        description="Answers as `vllm serve deepseek-r1` does, without a model.",
    )
    base = EngineOptions()
    parser.add_argument("--host", default=base.host)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--served-model-name", default=base.served_model_name)
    parser.add_argument("--model", default=base.model, help="named as `root` in /v1/models")
    parser.add_argument("--api-key", default=None, help="required as a bearer token on /v1")
    parser.add_argument("--max-model-len", type=int, default=base.max_model_len)
    parser.add_argument("--max-num-seqs", type=int, default=base.max_num_seqs, help="sequences that run at once")
    parser.add_argument("--block-size", type=int, default=base.block_size, help="tokens in a prefix cache block")
    parser.add_argument("--num-gpu-blocks-override", type=int, default=base.num_gpu_blocks, help="size of the cache")
    parser.add_argument("--reasoning-parser", choices=["deepseek_r1"], default=None)
    _switch(parser, "enable-prefix-caching", base.enable_prefix_caching, "reuse cached prompt blocks")
    _switch(parser, "enable-force-include-usage", False, "usage in every chunk whatever the client asks")
    _switch(parser, "enable-prompt-tokens-details", False, "cached tokens in usage")
    _switch(parser, "enable-request-id-headers", False, "X-Request-Id on every answer")
    _switch(parser, "enable-server-load-tracking", False, "count requests in flight for /load")
    sim = parser.add_argument_group("stand-in only")
    sim.add_argument("--answer", default=base.answer, help="scripted, varied or a number of tokens")
    sim.add_argument("--token-delay-ms", type=float, default=base.token_delay_ms, help="time of one engine step")
    _switch(parser, "coalesce", base.coalesce, "let tokens share a chunk when the reader is slow")
    sim.add_argument("--first-token-delay-ms", type=float, default=0.0)
    sim.add_argument("--die-after-tokens", type=int, default=None)
    sim.add_argument("--die-how", choices=[how.value for how in DieHow], default=DieHow.ERROR_EVENT.value)
    sim.add_argument("--hang-after-tokens", type=int, default=None)
    sim.add_argument("--status", type=int, default=None, help="answer every /v1 request with this status")
    sim.add_argument("--no-usage", action="store_true", help="never report usage")
    given = parser.parse_args(arguments)
    try:
        return EngineOptions(
            host=given.host,
            port=given.port,
            served_model_name=given.served_model_name,
            model=given.model,
            api_key=given.api_key,
            max_model_len=given.max_model_len,
            max_num_seqs=given.max_num_seqs,
            block_size=given.block_size,
            num_gpu_blocks=given.num_gpu_blocks_override,
            enable_prefix_caching=given.enable_prefix_caching,
            reasoning_parser=given.reasoning_parser,
            enable_force_include_usage=given.enable_force_include_usage,
            enable_prompt_tokens_details=given.enable_prompt_tokens_details,
            enable_request_id_headers=given.enable_request_id_headers,
            enable_server_load_tracking=given.enable_server_load_tracking,
            answer=given.answer,
            token_delay_ms=given.token_delay_ms,
            coalesce=given.coalesce,
            faults=Faults(
                first_token_delay_ms=given.first_token_delay_ms,
                die_after_tokens=given.die_after_tokens,
                die_how=DieHow(given.die_how),
                hang_after_tokens=given.hang_after_tokens,
                status=given.status,
                no_usage=given.no_usage,
            ),
        )
    except ValueError as error:
        parser.error(str(error))

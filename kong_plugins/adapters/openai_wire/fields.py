"""Top-level fields that a tenant may not pass to the engine, each with its reason.

Dropped fields carry engine state or scheduling that belongs to the operator; their absence changes no answer. Refused
fields change what is generated or how much, so dropping them silently would answer another question than was asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from kong_plugins.domain.demand import Endpoint

DROPPED: Mapping[str, str] = MappingProxyType(
    {
        "request_id": "becomes the engine's id; a client could reuse another request's",
        "session_id": "names a session that routing and caches may key on",
        "priority": "jumps the queue of the other tenants",
        "data_parallel_rank": "chooses the engine's rank",
        "kv_transfer_params": "names remote cache blocks, and its prompt_token_ids replace the metered prompt",
        "ec_transfer_params": "names remote encoder cache blocks",
        "vllm_xargs": "reaches the same engine arguments as kv_transfer_params",
        "cache_salt": "chooses whose cached prefixes are read; the tenant's own is set instead",
        "stream_interval": "spaces out running usage, so an aborted stream would be billed short",
        "logits_processors": "names code for the engine to import",
    }
)

_ANY = {
    "chat_template": "is a program that can print any prompt",
    "mm_processor_kwargs": "changes how many tokens a media part takes",
    "media_io_kwargs": "changes how many tokens a media part takes",
    "use_beam_search": "generates tokens that no usage reports",
    "prompt_embeds": "holds a prompt whose tokens cannot be counted",
}
_STORED = "adds stored text that is not in the request"

# Fields of other endpoints' prompts are refused too: a route that rewrites paths could bring the body to a handler that
# reads the field we did not meter.
REFUSED: Mapping[Endpoint, Mapping[str, str]] = MappingProxyType(
    {
        Endpoint.CHAT: _ANY | dict.fromkeys(("prompt", "input"), "is not a field of chat completions"),
        Endpoint.COMPLETIONS: _ANY | dict.fromkeys(("messages", "input"), "is not a field of completions"),
        Endpoint.EMBEDDINGS: _ANY
        | dict.fromkeys(("messages", "prompt"), "is not metered for embeddings; send `input`")
        | {"padding": "adds tokens that are not in the request"},
        Endpoint.RESPONSES: _ANY
        | dict.fromkeys(
            ("previous_response_id", "conversation", "previous_response", "previous_input_messages", "prompt"), _STORED
        )
        | {"background": "answers after the request has ended", "messages": "is not a field of responses"},
        Endpoint.MESSAGES: _ANY
        | dict.fromkeys(("prompt", "input"), "is not a field of messages")
        | {"container": _STORED, "mcp_servers": "lets the engine add text of its own", "context_management": _STORED},
    }
)

# Where the client's limit stands, in the order of what the engine reads first; the first takes an injected limit.
# vLLM reads max_completion_tokens before max_tokens; the larger one is metered, so either reading is covered.
MAX_TOKENS: Mapping[Endpoint, tuple[str, ...]] = MappingProxyType(
    {
        Endpoint.CHAT: ("max_tokens", "max_completion_tokens"),
        Endpoint.COMPLETIONS: ("max_tokens",),
        Endpoint.EMBEDDINGS: (),
        Endpoint.RESPONSES: ("max_output_tokens",),
        Endpoint.MESSAGES: ("max_tokens",),
    }
)

STREAM_OPTIONS = frozenset({Endpoint.CHAT, Endpoint.COMPLETIONS})

COMPLETIONS_MAX_TOKENS = 16  # the API's default for /completions; sent explicitly, so that every engine keeps to it

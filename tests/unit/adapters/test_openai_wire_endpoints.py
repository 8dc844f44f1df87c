"""Paths to metered endpoints."""

from __future__ import annotations

import pytest

from kong_plugins.adapters.openai_wire import endpoint_of
from kong_plugins.domain.demand import Endpoint


@pytest.mark.parametrize(
    ("path", "endpoint"),
    [
        ("/v1/chat/completions", Endpoint.CHAT),
        ("/chat/completions", Endpoint.CHAT),
        ("/chat/v1/chat/completions", Endpoint.CHAT),
        ("/v1/completions", Endpoint.COMPLETIONS),
        ("/chat/v1/completions", Endpoint.COMPLETIONS),
        ("/v1/embeddings", Endpoint.EMBEDDINGS),
        ("/v1/responses", Endpoint.RESPONSES),
        ("/v1/messages", Endpoint.MESSAGES),
    ],
)
def test_an_endpoint_is_known_by_its_last_segments_after_any_prefix(path: str, endpoint: Endpoint) -> None:
    assert endpoint_of(path) is endpoint


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions/",
        "//v1//chat//completions",
        "/v1/./chat/../chat/completions",
        "/v1/chat%2Fcompletions",
        "/v1/%63hat/completions",
        "/v1/%2563hat/completions",
        "/v1/Chat/Completions",
        "/v1/models/../chat/completions",
        "/v1/chat\\completions",
        "/v1/chat/completions%0a",
        "/v1/chat/completions%2509 ",
    ],
)
def test_a_spelling_that_some_proxy_would_resolve_is_metered_as_what_it_resolves_to(path: str) -> None:
    assert endpoint_of(path) is Endpoint.CHAT


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/v1/models",
        "/v1/messages/count_tokens",
        "/v1/chat/completions/render",
        "/v1/responses/resp_123",
        "/v1/responses/resp_123/cancel",
        "/tokenize",
        "/metrics",
        "/v1/chat/completions/..",
        "/v1/chatcompletions",
        "/v1/xcompletions",
    ],
)
def test_every_other_path_is_not_metered(path: str) -> None:
    assert endpoint_of(path) is None

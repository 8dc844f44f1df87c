"""Clients that leave before the engine says what they used: through the whole stack, no way of leaving is free."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.conftest import MODEL, Running, chat
from tests.e2e.waiting import settled

TEMPLATE_TOKENS = 3  # R1's for a single turn; charged only where the engine counted
MESSAGES = chat()["messages"]
STREAMS: dict[str, tuple[dict[str, Any], str]] = {
    "/v1/responses": ({"input": "How many?", "max_output_tokens": 64}, '"delta":'),
    "/v1/messages": ({"messages": MESSAGES, "max_tokens": 64}, "content_block_delta"),
}


@pytest.mark.parametrize("path", STREAMS)
def test_a_stream_left_before_its_only_usage_is_charged_what_came(running: Running, path: str) -> None:
    """No running usage in these shapes: the prompt and the text that passed are charged, by whoever settles first."""
    body, delta = STREAMS[path]
    running.post("leaver", "/v1/chat/completions", json=chat())
    before_ledger, before_engine = settled(running, "leaver"), running.engine()
    running.faults(hang_after_tokens=25, requests=1)
    headers = {"apikey": running.key("leaver")}
    url, seen = f"{running.stack.url}{path}", 0
    with running.http.stream("POST", url, json={"model": MODEL, "stream": True, **body}, headers=headers) as answer:
        for line in answer.iter_lines():
            seen += line.startswith("data: ") and delta in line
            if seen == 15:
                break
    charged, after = settled(running, "leaver") - before_ledger, running.engine()
    prompt = after.prompt - before_engine.prompt
    # Text is counted anew: marks such as <think>, and those that the template puts around a prompt, are no text.
    assert prompt - TEMPLATE_TOKENS + 15 <= charged <= prompt + 64


def test_a_completion_of_many_prompts_left_early_is_charged_for_each(running: Running) -> None:
    """Running usage tells one prompt at a time."""
    running.post("leaver", "/v1/chat/completions", json=chat())
    before_ledger, before_engine = settled(running, "leaver"), running.engine()
    prompts = [f"Once upon a time {n} there was a king" for n in range(8)]
    body = {"model": MODEL, "prompt": prompts, "max_tokens": 64, "stream": True}
    url, headers = f"{running.stack.url}/v1/completions", {"apikey": running.key("leaver")}
    running.faults(token_delay_ms=20, requests=1)
    with running.http.stream("POST", url, json=body, headers=headers) as answer:
        for count, _ in enumerate(line for line in answer.iter_lines() if line.startswith("data: ")):
            if count == 40:
                break
    charged, after = settled(running, "leaver") - before_ledger, running.engine()
    prompt = after.prompt - before_engine.prompt
    assert prompt > 60
    assert prompt + 40 <= charged <= prompt + after.completion - before_engine.completion

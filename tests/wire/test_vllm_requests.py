"""Recorded vLLM exchanges: our reading of each request against what the engine answered and counted."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from kong_plugins.adapters.openai_wire import (
    DEEPSEEK_R1,
    BadRequest,
    Request,
    WireRules,
    check_media_type,
    count_prompt,
    endpoint_of,
    parse,
    rewrite,
)
from kong_plugins.adapters.tokenizers import encoding_for

DATA = Path(__file__).parents[1] / "data" / "vllm"
RULES = WireRules(context_tokens=8192, allowance=DEEPSEEK_R1)
# The served template ends in <｜Assistant｜>, without the <think> and newline of later ones, and nothing was added to
# plain prompts: this is all that it adds, so counts come out exact.
EXACT = replace(RULES, allowance=replace(DEEPSEEK_R1, request=2, prompt=0, roles={"system": 0, "user": 1}))
# Refused by the engine for what a gateway does not know: other models, tools not enabled, a limit over its context,
# a negative temperature, a prompt over its context. No hold outlives these: the engine's answer releases it.
LEFT_TO_THE_ENGINE = {
    "main/40-err-model",
    "main/41-err-too-long",
    "main/41b-err-too-long-stream",
    "main/42-err-max-tokens",
    "main/49c-err-salt-empty",
    "main/49e-err-temp",
    "extra/14-tools",
    "plain/25-err-too-long-stream",
}


def exchanges() -> list[str]:
    found = []
    for path in sorted(DATA.glob("*/*.req")):
        head = path.read_bytes().split(b" ", 2)
        if head[0] == b"POST" and endpoint_of(head[1].decode()) is not None:
            found.append(str(path.relative_to(DATA).with_suffix("")))
    assert len(found) > 70
    return found


def read(name: str, rules: WireRules) -> Request:
    head, _, body = (DATA / f"{name}.req").read_bytes().partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    endpoint = endpoint_of(lines[0].split(" ")[1])
    assert endpoint is not None
    check_media_type(headers.get("content-type"), headers.get("content-encoding"))
    return parse(endpoint, body, rules)


def answered(name: str) -> tuple[int, bytes]:
    answer = (DATA / f"{name}.resp").read_bytes()
    return int(answer[9:12]), answer


def counted(answer: bytes) -> int | None:
    """The engine's own count of the prompt, from its last usage. Anthropic's input_tokens leave out the cache."""
    usage = re.findall(rb'"(?:prompt_tokens|input_tokens)":(\d+)', answer)
    of_cache = re.findall(rb'"cache_(?:creation|read)_input_tokens":(\d+)', answer)
    return int(usage[-1]) + sum(map(int, of_cache[-2:])) if usage else None


@pytest.mark.parametrize("name", exchanges())
def test_what_the_engine_refused_is_refused_and_what_it_answered_is_not(name: str) -> None:
    if not (DATA / f"{name}.resp").stat().st_size:  # aborted before the answer
        read(name, RULES)
        return
    status, answer = answered(name)
    if status == 400 and name not in LEFT_TO_THE_ENGINE:
        with pytest.raises(BadRequest) as caught:
            read(name, RULES)
        assert caught.value.status in {400, 415}
        theirs = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["param"]
        if theirs is not None and not theirs.startswith("body.38"):
            assert caught.value.param == theirs.removeprefix("body.")
    else:
        read(name, RULES)


def test_prompt_counts_equal_the_engines() -> None:
    """Sum of texts and the template's marks, to the token, for every recorded usage of every endpoint."""
    count_text = encoding_for("deepseek-r1")
    compared = set()
    for name in exchanges():
        if name in LEFT_TO_THE_ENGINE or not (DATA / f"{name}.resp").stat().st_size:
            continue
        status, answer = answered(name)
        real = counted(answer) if status == 200 else None
        if real is None:
            continue
        request = read(name, EXACT)
        assert count_prompt(request, EXACT, count_text) == real, name
        allowed = count_prompt(read(name, RULES), RULES, count_text) - real
        assert 0 <= allowed <= 2 + 2 * request.prompt.roles.count("system") + request.prompt.plain, name
        assert real <= request.demand.prompt_bound, name
        compared.add(request.demand.endpoint)
    assert {endpoint.value for endpoint in compared} == {"chat", "completions", "responses", "messages"}


@pytest.mark.parametrize("name", exchanges())
def test_a_rewritten_request_reads_as_the_same_demand(name: str) -> None:
    """Metering the upstream body gives what was metered, so nothing is lost or gained on the way."""
    try:
        request = read(name, RULES)
    except BadRequest:
        return
    again = parse(request.demand.endpoint, rewrite(request), RULES)
    bounds = {"prompt_bound": 0, "wants_usage": True}
    assert replace(again.demand, **bounds) == replace(request.demand, **bounds)
    assert [bytes(raw) for raw in again.prompt.texts] == [bytes(raw) for raw in request.prompt.texts]

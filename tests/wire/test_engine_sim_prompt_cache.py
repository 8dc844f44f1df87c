"""What /v1/messages says of its prompt cache: recorded from vLLM with blocks of 32, cold and warm."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from engine_exchange import Exchange, ask, recorded

from kong_plugins.engine_sim import EngineOptions, EngineSim

RECORDED = Path(__file__).parents[1] / "data" / "vllm" / "warm"
COLD, WARM = "13-messages-stream-cold", "12-messages-stream-warm"
OPTIONS = EngineOptions(
    block_size=32, token_delay_ms=0, enable_prompt_tokens_details=True, reasoning_parser="deepseek_r1"
)


def usages(answer: Exchange) -> list[Any]:
    """Every usage of an answer, in order, streamed or whole."""
    if answer.body.startswith(b"{"):
        return [json.loads(answer.body)["usage"]]
    documents = [json.loads(line[6:]) for line in answer.body.split(b"\n") if line.startswith(b"data: ")]
    return [usage for doc in documents if (usage := doc.get("usage") or doc.get("message", {}).get("usage"))]


def test_tokens_read_from_the_cache_or_written_to_it_are_not_input_tokens() -> None:
    """Cold and warm, streamed and whole: the same figures as the engine's, message_start with the whole prompt."""

    async def replay() -> dict[str, tuple[list[Any], list[Any]]]:
        sim = EngineSim(OPTIONS)
        await sim.start()
        try:
            found = {}
            for name in (COLD, WARM, WARM, "11-messages-warm"):  # the second time it is warm
                answer = await ask(sim.port, (RECORDED / f"{name}.req").read_bytes())
                found[name] = usages(answer), usages(await recorded(RECORDED / f"{name}.resp"))
            return found
        finally:
            await sim.stop()

    for name, (found, engine) in asyncio.run(replay()).items():
        assert found == engine, name

"""The server that vLLM replaces: transformers' generate behind FastAPI, one request at a time, on one card.

    python vllm/bench/vllm_bench/baseline.py MODEL_FOLDER --port 8100

Answers chat completions; to a client that streams, the whole text comes as one event. Weights: those in the folder, or
random ones with --random-weights (for speed only). Needs torch, transformers, fastapi and uvicorn.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

MODEL_NAME = "deepseek-r1"


class Generator:
    """The model on one device, one request at a time."""

    def __init__(self, folder: str, device: str, *, random_weights: bool) -> None:
        import torch  # type: ignore[import-not-found]  # only where a baseline runs
        from transformers import (  # type: ignore[import-not-found]
            AutoConfig,
            AutoModelForCausalLM,
            AutoTokenizer,
        )

        self._torch, self._device = torch, device
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        if random_weights:
            with torch.device(device):
                config = AutoConfig.from_pretrained(folder)
                self._model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        else:
            self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device)
        self._model.eval()

    def complete(self, messages: list[dict[str, Any]], max_tokens: int, *, ignore_eos: bool) -> tuple[int, int, str]:
        """Prompt tokens, completion tokens and text."""
        prompt = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(self._device)
        count = int(prompt["input_ids"].shape[1])
        with self._torch.inference_mode():
            output = self._model.generate(
                **prompt,
                max_new_tokens=max_tokens,
                min_new_tokens=max_tokens if ignore_eos else None,
                do_sample=False,
                pad_token_id=self._tokenizer.eos_token_id,
            )[0, count:]
        return count, len(output), self._tokenizer.decode(output, skip_special_tokens=True)


async def _client_gone(request: Any) -> None:
    """Returns when the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def make_app(generator: Generator) -> Any:
    """One thread generates, one request after another: threads of their own would each bring a pool of torch's.

    A request whose client has gone before its turn is not generated.
    """
    from fastapi import FastAPI, Request  # type: ignore[import-not-found]
    from fastapi.responses import StreamingResponse  # type: ignore[import-not-found]

    app = FastAPI()
    one = ThreadPoolExecutor(1)

    async def health() -> dict[str, str]:
        return {}

    async def chat(request: Any) -> Any:
        body: dict[str, Any] = await request.json()
        work = functools.partial(
            generator.complete,
            body["messages"],
            body.get("max_tokens") or 256,
            ignore_eos=bool(body.get("ignore_eos")),
        )
        generated = asyncio.get_running_loop().run_in_executor(one, work)
        gone = asyncio.create_task(_client_gone(request))
        await asyncio.wait((generated, gone), return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not generated.done():
            generated.cancel()  # takes it out of the queue; what runs already runs to its end
            return {}
        prompt, completion, text = generated.result()
        usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": MODEL_NAME, "usage": usage}
        message = {"role": "assistant", "content": text}
        if not body.get("stream"):
            choice = {"index": 0, "message": message, "finish_reason": "length"}
            return {**head, "object": "chat.completion", "choices": [choice]}

        def events() -> Iterator[str]:
            choice = {"index": 0, "delta": message, "finish_reason": "length"}
            yield f"data: {json.dumps({**head, 'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    # Typed by assignment and not by decorators: annotations are strings here, and FastAPI would not find local names.
    chat.__annotations__["request"] = Request
    chat.__annotations__["return"] = None
    app.add_api_route("/health", health, methods=["GET"], response_model=None)
    app.add_api_route("/v1/chat/completions", chat, methods=["POST"], response_model=None)
    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder with config.json and a tokenizer")
    parser.add_argument("--port", type=int, default=8100)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--random-weights", action="store_true", help="do not read weights: for speed only")
    options = parser.parse_args()
    import uvicorn

    app = make_app(Generator(options.model, options.device, random_weights=options.random_weights))
    uvicorn.run(app, host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()

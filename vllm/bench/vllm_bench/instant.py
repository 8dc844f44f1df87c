"""A server that has its answer ready: what client and gateway can carry when no engine limits them.

    python -m vllm_bench.instant --port 9100 --processes 4

Streams ``max_tokens`` events shaped as vLLM's with usage on each, one write for each, as fast as they are taken; or in
an engine's time (``--first-ms 30 --gap-ms 6``), to see what a gateway adds that is idle between two tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import multiprocessing
import re
import signal
import socket
from multiprocessing.process import BaseProcess

PROMPT_TOKENS = 512
LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
MAX_TOKENS = re.compile(rb'"max_(?:completion_)?tokens"\s*:\s*(\d+)')
STREAM = re.compile(rb'"stream"\s*:\s*true')
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
DONE = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


def _usage(completion: int) -> dict[str, int]:
    return {
        "prompt_tokens": PROMPT_TOKENS,
        "total_tokens": PROMPT_TOKENS + completion,
        "completion_tokens": completion,
    }


@functools.lru_cache(maxsize=8192)
def event_chunk(number: int, last: bool) -> bytes:
    """The HTTP chunk of the ``number``-th token's event, counted from 1."""
    choice = {
        "index": 0,
        "delta": {"content": " the"},
        "logprobs": None,
        "finish_reason": "length" if last else None,
        "token_ids": None,
    }
    event = {
        "id": "chatcmpl-00000000000000000000000000000000",
        "object": "chat.completion.chunk",
        "created": 1_795_358_264,
        "model": "deepseek-r1",
        "choices": [choice],
        "usage": _usage(number),
    }
    content = b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(content), content)


def whole_answer(tokens: int) -> bytes:
    """An answer that is not streamed, head included."""
    message = {"role": "assistant", "content": " the" * tokens}
    answer = {
        "id": "chatcmpl-00000000000000000000000000000000",
        "object": "chat.completion",
        "created": 1_795_358_264,
        "model": "deepseek-r1",
        "choices": [{"index": 0, "message": message, "finish_reason": "length"}],
        "usage": _usage(tokens),
    }
    content = json.dumps(answer).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
        len(content),
        content,
    )


class Instant(asyncio.Protocol):
    """One client connection; requests one after another. ``first_s`` until the first event, ``gap_s`` between them."""

    def __init__(self, first_s: float = 0.0, gap_s: float = 0.0) -> None:
        self._first_s, self._gap_s = first_s, gap_s
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._task: asyncio.Task[None] | None = None
        self._may_write = asyncio.Event()
        self._may_write.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, rest = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        length = LENGTH.search(head)
        size = int(length[1]) if length else 0
        if len(rest) < size:
            return
        self._received = rest[size:]
        self._task = asyncio.get_running_loop().create_task(self._answer(rest[:size]))

    async def _answer(self, body: bytes) -> None:
        assert self._transport is not None
        wanted = MAX_TOKENS.search(body)
        tokens = int(wanted[1]) if wanted else 1
        if not STREAM.search(body):
            self._transport.write(whole_answer(tokens))
            return
        await asyncio.sleep(self._first_s)
        self._transport.write(HEAD)
        for number in range(1, tokens + 1):
            await self._may_write.wait()
            self._transport.write(event_chunk(number, number == tokens))
            await asyncio.sleep(self._gap_s)  # 0: the other streams' turn, as an engine steps all of them
        self._transport.write(DONE)


async def _serve(port: int, first_s: float, gap_s: float) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    protocol = functools.partial(Instant, first_s, gap_s)
    server = await loop.create_server(protocol, "127.0.0.1", port, reuse_port=True, backlog=1024)
    await stop.wait()
    server.close()


def _run(port: int, first_s: float, gap_s: float) -> None:
    asyncio.run(_serve(port, first_s, gap_s))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=9100)
    parser.add_argument("--processes", type=int, default=1, help="they share the port")
    parser.add_argument("--first-ms", type=float, default=0.0, help="until the first event")
    parser.add_argument("--gap-ms", type=float, default=0.0, help="between events")
    options = parser.parse_args()
    times = options.port, options.first_ms / 1000, options.gap_ms / 1000
    others: list[BaseProcess] = [
        multiprocessing.get_context("spawn").Process(target=_run, args=times, daemon=True)
        for _ in range(options.processes - 1)
    ]
    for process in others:
        process.start()
    _run(*times)
    for process in others:
        process.terminate()
        process.join()


if __name__ == "__main__":
    main()

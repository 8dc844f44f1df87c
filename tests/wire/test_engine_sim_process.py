"""The stand-in as a process of its own."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys

import openai
from engine_exchange import ask, get

from kong_plugins.engine_sim import EngineOptions, serve_in_thread

COMMAND = (sys.executable, "-m", "kong_plugins.engine_sim")


def test_a_process_serves_until_it_is_told_to_stop() -> None:
    """It says where it listens, answers there, and exits with 0 on SIGTERM."""
    with subprocess.Popen([*COMMAND, "--port", "0"], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        url = process.stderr.readline().split()[-1]
        port = int(url.removesuffix("/v1").rpartition(":")[2])
        assert asyncio.run(ask(port, get("/health"))).code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_a_taken_port_is_said() -> None:
    with serve_in_thread(EngineOptions()) as sim:
        command = [*COMMAND, "--port", str(sim.port)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 1
    assert f"cannot listen on 127.0.0.1:{sim.port}" in ended.stderr


def test_the_official_client_reads_every_shape() -> None:
    """openai's own models parse chat, raw completions, embeddings and responses, streamed and not."""
    ask_hello = {"role": "user", "content": "hello"}
    with (
        serve_in_thread(EngineOptions(token_delay_ms=0, reasoning_parser="deepseek_r1", api_key="k")) as sim,
        openai.OpenAI(base_url=f"{sim.url}/v1", api_key="k") as client,
    ):
        whole = client.chat.completions.create(model="deepseek-r1", messages=[ask_hello])
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 40
        stream = client.chat.completions.create(
            model="deepseek-r1", messages=[ask_hello], stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
        assert (
            "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
        )
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
        assert client.completions.create(model="deepseek-r1", prompt="Hello", max_tokens=1).choices[0].text == "!"
        assert len(client.embeddings.create(model="deepseek-r1", input="Hello").data[0].embedding) == 64
        response = client.responses.create(model="deepseek-r1", input="hello")
        assert response.output_text == whole.choices[0].message.content
        events = list(client.responses.create(model="deepseek-r1", input="hello", stream=True))
        assert events[-1].type == "response.completed"

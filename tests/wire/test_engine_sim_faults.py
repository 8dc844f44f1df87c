"""The stand-in told to misbehave: what a client sees, and what the engine's counters say afterwards."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from engine_exchange import Exchange, ask, get, post, read_exchange, samples

from kong_plugins.engine_sim import DieHow, EngineOptions, EngineSim, Faults, serve_in_thread

CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {"model": "deepseek-r1", "messages": [{"role": "user", "content": "hello"}]}
ENDPOINTS: dict[str, dict[str, Any]] = {
    CHAT: HELLO,
    "/v1/completions": {"prompt": "Hello"},
    "/v1/embeddings": {"input": "Hello"},
    "/v1/responses": {"input": "Hello"},
    "/v1/messages": {**HELLO, "max_tokens": 64},
}


def request(path: str = CHAT, body: dict[str, Any] | None = None, **more: object) -> bytes:
    return post(path, json.dumps({**(body or HELLO), **more}).encode())


def serving(scenario: Callable[[EngineSim], Awaitable[None]], **options: Any) -> None:
    """Run a scenario against a server of its own, for 20 seconds at most."""

    async def run() -> None:
        sim = EngineSim(EngineOptions(**{"token_delay_ms": 0, **options}))
        await sim.start()
        try:
            await asyncio.wait_for(scenario(sim), 20)
        finally:
            await sim.stop()

    asyncio.run(run())


async def metric(sim: EngineSim, name: str) -> float:
    values = samples((await ask(sim.port, get("/metrics"))).body)
    return values[f'vllm:{name}{{engine="0",model_name="deepseek-r1"}}']


async def tell(sim: EngineSim, **faults: object) -> Exchange:
    return await ask(sim.port, post("/sim/faults", json.dumps(faults).encode()))


def payload(answer: Exchange) -> Any:
    return json.loads(answer.body)


def chunks_of(answer: Exchange) -> list[Any]:
    return [json.loads(event[6:]) for event in answer.events if event.startswith(b"data: {")]


def test_an_error_event_ends_one_stream_and_no_other() -> None:
    """HTTP 200, the tokens so far, an error event and [DONE]; the next request is served."""

    async def scenario(sim: EngineSim) -> None:
        await tell(sim, die_after_tokens=5, requests=1)
        answer = await ask(sim.port, request(stream=True))
        assert (answer.code, answer.complete) == (200, True)
        assert json.loads(answer.events[-2][6:])["error"]["code"] == 500
        assert answer.events[-1] == b"data: [DONE]"
        assert len(chunks_of(answer)) == 1 + 5 + 1
        assert (await ask(sim.port, request())).code == 200
        assert (await ask(sim.port, get("/health"))).code == 200

    serving(scenario)


def test_a_dead_engine_ends_everything_until_it_is_reset() -> None:
    """Every running stream gets the error event; then 500 and an unhealthy 503; after a reset, 200 again."""

    async def scenario(sim: EngineSim) -> None:
        await tell(sim, hang_after_tokens=4, requests=1)
        reader, writer = await asyncio.open_connection("127.0.0.1", sim.port)
        writer.write(request(stream=True))
        await reader.readuntil(b"user")
        await tell(sim, hang_after_tokens=None, die_after_tokens=2, die_how="engine")
        assert (await ask(sim.port, request())).code == 500
        assert b"EngineCore encountered an issue" in await reader.readuntil(b"[DONE]")
        writer.close()
        assert (await ask(sim.port, get("/health"))).code == 503
        assert (await ask(sim.port, request())).code == 500
        assert (await ask(sim.port, request("/v1/embeddings", {"input": "x"}))).code == 500
        assert (await ask(sim.port, post("/sim/reset", b""))).code == 200
        assert (await ask(sim.port, get("/health"))).code == 200
        assert (await ask(sim.port, request())).code == 200

    serving(scenario)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("how", "seen"), [(DieHow.EOF, asyncio.IncompleteReadError), (DieHow.RESET, ConnectionResetError)]
)
def test_a_cut_connection_ends_without_another_byte(how: DieHow, seen: type[Exception], stream: bool) -> None:
    """EOF or RST in the middle of a stream, or instead of a whole answer."""

    async def scenario(sim: EngineSim) -> None:
        await tell(sim, die_after_tokens=5, die_how=how.value)
        if stream:
            answer = await ask(sim.port, request(stream=True))
            assert not answer.complete
            assert isinstance(answer.error, seen)
            assert len(answer.events) == 1 + 5
        else:
            with pytest.raises(seen):
                await ask(sim.port, request())

    serving(scenario)


def test_a_hanging_stream_ends_with_its_client() -> None:
    """Silence after so many tokens; when the client leaves nothing runs any more, and what it got was counted."""

    async def scenario(sim: EngineSim) -> None:
        await tell(sim, hang_after_tokens=7)
        reader, writer = await asyncio.open_connection("127.0.0.1", sim.port)
        options = {"include_usage": True, "continuous_usage_stats": True}
        writer.write(request(stream=True, stream_options=options))
        answer = await read_exchange(reader, chunks_max=8)
        assert chunks_of(answer)[-1]["usage"]["completion_tokens"] == 7
        assert await metric(sim, "num_requests_running") == 1
        writer.close()
        while await metric(sim, "num_requests_running"):
            pass
        assert await metric(sim, "generation_tokens_total") == 7
        assert await metric(sim, "request_generation_tokens_count") == 0

    serving(scenario)


def test_an_abort_stops_the_engine() -> None:
    """A client that leaves an endless answer is noticed: counters stop, stream or not."""

    async def scenario(sim: EngineSim) -> None:
        for stream in (True, False):
            reader, writer = await asyncio.open_connection("127.0.0.1", sim.port)
            writer.write(request(stream=stream, ignore_eos=True, max_tokens=8000))
            if stream:
                await reader.readuntil(b"user")
            while not await metric(sim, "num_requests_running"):
                pass
            writer.close()
            while await metric(sim, "num_requests_running"):
                pass
            assert await metric(sim, "generation_tokens_total") < 8000
            assert await metric(sim, "request_generation_tokens_count") == 0

    serving(scenario, token_delay_ms=1)


def test_a_reset_lets_a_hanging_request_finish() -> None:
    async def scenario(sim: EngineSim) -> None:
        await tell(sim, hang_after_tokens=3)
        asking = asyncio.ensure_future(ask(sim.port, request()))
        while await metric(sim, "generation_tokens_total") < 3:
            pass
        assert not asking.done()
        await ask(sim.port, post("/sim/reset", b""))
        assert payload(await asking)["usage"]["completion_tokens"] == 40

    serving(scenario)


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_status_refuses_every_generating_endpoint_as_often_as_told(path: str, status: int) -> None:
    """``requests`` counts refusals down; then the endpoint answers again and nothing was generated meanwhile."""

    async def scenario(sim: EngineSim) -> None:
        await tell(sim, status=status, requests=2)
        for _ in range(2):
            answer = await ask(sim.port, request(path, ENDPOINTS[path]))
            assert (answer.code, payload(answer)["error"]["code"]) == (status, status)
        assert await metric(sim, "generation_tokens_total") == 0
        assert (await ask(sim.port, request(path, ENDPOINTS[path]))).code == 200

    serving(scenario)


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("stream", [True, False])
def test_an_engine_without_usage_reports_none(path: str, stream: bool) -> None:
    """No count of tokens anywhere, even with the forced form; with usage on, the same request has them."""

    async def scenario(sim: EngineSim) -> None:
        told = await ask(sim.port, request(path, ENDPOINTS[path], stream=stream))
        assert b"_tokens" in told.body.replace(b"max_output_tokens", b"")
        await tell(sim, no_usage=True)
        silent = await ask(sim.port, request(path, ENDPOINTS[path], stream=stream))
        assert silent.code == 200
        assert b"_tokens" not in silent.body.replace(b"max_output_tokens", b"")

    serving(scenario, enable_force_include_usage=True)


def test_a_first_token_can_be_late() -> None:
    """The stream's headers come at once, its first event after the delay."""

    async def scenario(sim: EngineSim) -> None:
        await tell(sim, first_token_delay_ms=1_000)
        loop = asyncio.get_running_loop()
        reader, writer = await asyncio.open_connection("127.0.0.1", sim.port)
        started = loop.time()
        writer.write(request(stream=True))
        await reader.readuntil(b"\r\n\r\n")
        headers_s = loop.time() - started
        await reader.readuntil(b"data: ")
        assert loop.time() - started >= 0.999
        assert headers_s < 0.999
        writer.close()

    serving(scenario)


def test_steps_can_be_slow() -> None:
    """A token delay is the least time between two tokens."""

    async def scenario(sim: EngineSim) -> None:
        await tell(sim, token_delay_ms=20)
        started = asyncio.get_running_loop().time()
        assert (await ask(sim.port, request(max_tokens=6))).code == 200
        assert asyncio.get_running_loop().time() - started >= 0.1

    serving(scenario)


def test_a_closed_socket_refuses_and_opens_again_on_its_port() -> None:
    async def scenario(sim: EngineSim) -> None:
        port = sim.port
        sim.refuse()
        with pytest.raises(ConnectionRefusedError):
            await ask(port, get("/health"))
        await sim.accept()
        assert (await ask(port, get("/health"))).code == 200
        assert payload(await ask(port, post("/sim/refuse", b'{"for_ms":50}'))) == {"refusing_for_ms": 50}
        with pytest.raises(ConnectionRefusedError):
            await ask(port, get("/health"))
        answered = False
        while not answered:
            try:
                answered = (await ask(port, get("/health"))).code == 200
            except ConnectionRefusedError:
                await asyncio.sleep(0)

    serving(scenario)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"die_how": "fast"}, "fast"),
        ({"die_after_tokens": -1}, "die_after_tokens"),
        ({"die_after_tokens": True}, "die_after_tokens"),
        ({"status": 200}, "status"),
        ({"requests": 0}, "requests"),
        ({"no_such": 1}, "no_such"),
        ([], "object"),
    ],
)
def test_a_fault_that_cannot_be_is_refused_by_name(change: object, named: str) -> None:
    """And the faults in force stay as they were."""

    async def scenario(sim: EngineSim) -> None:
        await tell(sim, status=503)
        answer = await ask(sim.port, post("/sim/faults", json.dumps(change).encode()))
        assert answer.code == 400
        assert named in payload(answer)["error"]["message"]
        assert payload(await ask(sim.port, get("/sim/faults"))) == Faults(status=503).as_json()

    serving(scenario)


def test_requests_are_remembered_as_they_came() -> None:
    """Method, path, query, headers in order and the body's text: what a test of a gateway asks about."""

    async def scenario(sim: EngineSim) -> None:
        body = '{"prompt":"令牌","max_tokens":1}'.encode()
        await ask(sim.port, post("/v1/completions?a=1", body, X_Tenant="acme"))
        await ask(sim.port, get("/v1/models"))
        await ask(sim.port, get("/metrics"))
        [first, second] = payload(await ask(sim.port, get("/sim/requests")))["requests"]
        assert (first["method"], first["path"], first["query"]) == ("POST", "/v1/completions", "a=1")
        assert (first["body"], first["size"]) == (body.decode(), len(body))
        assert ["x-tenant", "acme"] in first["headers"]
        assert second["path"] == "/v1/models"
        assert payload(await ask(sim.port, get("/sim/requests?last=1")))["requests"] == [second]
        assert payload(await ask(sim.port, get("/sim/requests?last=0")))["requests"] == []
        await ask(sim.port, post("/sim/reset", b""))
        assert payload(await ask(sim.port, get("/sim/requests")))["requests"] == []

    serving(scenario)


@pytest.mark.parametrize("tokens", [1, 2, 7, 8, 9, 100])
def test_an_answer_has_as_many_tokens_as_the_header_says(tokens: int) -> None:
    """End of sentence included, in usage and in the engine's counter."""

    async def scenario(sim: EngineSim) -> None:
        body = json.dumps(HELLO).encode()
        answer = payload(await ask(sim.port, post(CHAT, body, X_Sim_Answer_Tokens=str(tokens))))
        assert answer["usage"]["completion_tokens"] == tokens
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert await metric(sim, "generation_tokens_total") == tokens
        assert (await ask(sim.port, post(CHAT, body, X_Sim_Answer_Tokens="many"))).code == 400

    serving(scenario, reasoning_parser="deepseek_r1")


def test_varied_answers_depend_on_the_prompt_alone_and_the_books_balance() -> None:
    """100 concurrent streams: lengths differ by prompt, repeat exactly, and usage sums to the engine's counters."""

    async def scenario(sim: EngineSim) -> None:
        def one(place: int) -> bytes:
            messages = [{"role": "user", "content": f"question {place}"}]
            return request(messages=messages, stream=True, stream_options={"include_usage": True})

        answers = await asyncio.gather(*(ask(sim.port, one(place)) for place in range(100)))
        usages = [chunks_of(answer)[-1]["usage"] for answer in answers]
        lengths = [usage["completion_tokens"] for usage in usages]
        assert len(set(lengths)) > 30
        assert sum(lengths) == await metric(sim, "generation_tokens_total")
        assert sum(usage["prompt_tokens"] for usage in usages) == await metric(sim, "prompt_tokens_total")
        again = await asyncio.gather(*(ask(sim.port, one(place)) for place in range(5)))
        assert [chunks_of(answer)[-1]["usage"]["completion_tokens"] for answer in again] == lengths[:5]

    serving(scenario, answer="varied")


def test_embeddings_are_equal_for_equal_texts_in_both_encodings() -> None:
    """The documented shape; usage counts every input's tokens."""

    async def scenario(sim: EngineSim) -> None:
        answer = payload(await ask(sim.port, request("/v1/embeddings", {"input": ["Hello", "Hello", [19923, 2058]]})))
        assert [one["index"] for one in answer["data"]] == [0, 1, 2]
        assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] == 1 + 1 + 2
        first, same, other = (one["embedding"] for one in answer["data"])
        assert first == same != other
        packed = {"input": "Hello", "encoding_format": "base64"}
        data = payload(await ask(sim.port, request("/v1/embeddings", packed)))["data"]
        assert isinstance(data[0]["embedding"], str)
        assert (await ask(sim.port, request("/v1/embeddings", {"input": []}))).code == 400

    serving(scenario)


def test_a_thread_serves_callers_without_an_event_loop() -> None:
    with serve_in_thread(EngineOptions(token_delay_ms=0)) as sim:
        assert asyncio.run(ask(sim.port, get("/health"))).code == 200
        port = sim.port
    with pytest.raises(ConnectionRefusedError):
        asyncio.run(ask(port, get("/health")))

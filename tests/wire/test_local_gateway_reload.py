"""A new configuration under running traffic: Kong's frames, requests under way left alone."""

from __future__ import annotations

import asyncio
from typing import Any

import msgpack
import pytest
from local_gateway_replay import WAIT_S, Stage, ask, cases, setup_of, stage

from kong_plugins.adapters.deck_file import DeckConfig, DeckError, read_deck


def configuration(on: Stage, *edits: tuple[str, str]) -> DeckConfig:
    text = setup_of("01-start-and-config")["yml"].replace('kong.log.set_serialize_value("llm.usage", usage)', "")
    for before, after in edits:
        assert before in text
        text = text.replace(before, after)
    config = read_deck(text, {})
    return config.with_upstreams({service.name: on.url for service in config.services})


class Echo:
    """A plugin server that counts instances up from 0 and lets every event pass."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self._instances = 0

    def __call__(self, message: list[Any]) -> list[bytes]:
        _, msgid, method, arguments = message
        self.calls.append((method, arguments[0]))
        if method == "plugin.StartInstance":
            self._instances += 1
            return [msgpack.packb([1, msgid, None, {"Id": self._instances - 1}])]
        return [msgpack.packb([1, msgid, None, {"Data": "ret", "EventId": 1}])]


def test_every_reload_starts_the_row_anew_and_closes_the_old_instance() -> None:
    """Also an identical one: StartInstance with a higher __seq__, then CloseInstance of the old id, then the event."""

    async def script() -> None:
        async with stage("01-start-and-config") as on:
            server = Echo()
            on.plugin._answers = server  # type: ignore[method-assign]
            case = cases("01-start-and-config")["second-request-service-row"]
            on.upstream.play(case)
            await ask(on.gateway.port, case.request)
            await ask(on.gateway.port, case.request)
            on.gateway.reload(configuration(on))
            await ask(on.gateway.port, case.request)
            await asyncio.sleep(0.05)
            methods = [method for method, _ in server.calls if method != "plugin.HandleEvent"]
            assert methods == ["plugin.StartInstance", "plugin.StartInstance", "plugin.CloseInstance"]
            seqs = [int(a["Config"].split('"__seq__":')[1].split(",")[0]) for m, a in server.calls if m == methods[0]]
            assert seqs[1] > seqs[0]
            assert next(argument for method, argument in server.calls if method == "plugin.CloseInstance") == 0
            order = [method for method, _ in server.calls][-4:-1]
            assert order == ["plugin.StartInstance", "plugin.CloseInstance", "plugin.HandleEvent"]

    asyncio.run(script())


def test_a_removed_row_no_longer_runs_and_its_instance_is_never_closed() -> None:
    async def script() -> None:
        async with stage("01-start-and-config") as on:
            server = Echo()
            on.plugin._answers = server  # type: ignore[method-assign]
            case = cases("01-start-and-config")["first-request-global-row"]
            on.upstream.play(case)
            await ask(on.gateway.port, case.request)
            await asyncio.sleep(0.05)
            before = len(server.calls)
            assert before == 3
            on.gateway.reload(configuration(on, ("plugins:\n- name: probe\n  config: {tag: global}\n", "")))
            assert (await ask(on.gateway.port, case.request)).status == 200
            await asyncio.sleep(0.05)
            assert len(server.calls) == before

    asyncio.run(script())


def test_a_request_under_way_keeps_its_configuration() -> None:
    """A stream that began before the reload ends after it, whole; the next request meets the new rows."""

    async def script() -> None:
        async with stage("01-start-and-config") as on:
            on.plugin._answers = Echo()  # type: ignore[method-assign]
            stream = cases("04-log-phase")["200-sse"]
            on.upstream.play(stream)
            reader, writer = await asyncio.open_connection("127.0.0.1", on.gateway.port)
            writer.write(stream.request)
            await reader.readuntil(b"chat.completion.chunk")
            on.gateway.reload(configuration(on, ('paths: ["/v1"]', 'paths: ["/v2"]')))
            rest = await asyncio.wait_for(reader.read(-1), WAIT_S)
            writer.close()
            assert rest.endswith(b"0\r\n\r\n")
            assert (await ask(on.gateway.port, stream.request)).status == 404

    asyncio.run(script())


def test_a_configuration_that_does_not_fit_changes_nothing() -> None:
    """The error names the row and the field in Kong's words; the old configuration goes on."""

    async def script() -> None:
        async with stage("01-start-and-config") as on:
            on.plugin._answers = Echo()  # type: ignore[method-assign]
            with pytest.raises(DeckError, match=r"plugin probe \(consumer tenant_b\): config.lmit: unknown field"):
                on.gateway.reload(configuration(on, ("limit: 9", "lmit: 9")))
            case = cases("01-start-and-config")["second-request-service-row"]
            on.upstream.play(case)
            assert (await ask(on.gateway.port, case.request)).status == 200

    asyncio.run(script())

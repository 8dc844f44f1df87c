"""Connections that were needed at once are not kept for ever when fewer are needed again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kong_plugins.local_gateway import mp_rpc, upstream

CROWD = 6


class _Peer:
    """A server that counts who is connected, and can close them all."""

    def __init__(self) -> None:
        self.writers: set[asyncio.StreamWriter] = set()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        await reader.read()
        self.writers.discard(writer)
        writer.close()

    async def has(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.writers) != count:
                await asyncio.sleep(0.01)


def test_a_plugin_server_keeps_only_those_that_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def script() -> None:
        peer, path = _Peer(), str(tmp_path / "s.sock")
        async with await asyncio.start_unix_server(peer, path):
            pool = mp_rpc.SocketPool()
            for connection in [await pool.take(path) for _ in range(CROWD)]:
                pool.give_back(path, connection)
            await peer.has(CROWD)
            monkeypatch.setattr(mp_rpc, "IDLE_S", 0.0)
            pool.give_back(path, await pool.take(path))
            await peer.has(1)
            pool.close()
            await peer.has(0)

    asyncio.run(script())


def test_what_an_engine_has_closed_is_forgotten() -> None:
    """Engines close idle connections within seconds; up to 512 of them were remembered."""

    async def script() -> None:
        peer = _Peer()
        async with await asyncio.start_server(peer, "127.0.0.1") as server:
            host, port = server.sockets[0].getsockname()
            pool = upstream.UpstreamPool()
            for connection in [await pool.connect(host, port, 5, tls=False) for _ in range(CROWD)]:
                pool.give_back((host, port), connection)
            await peer.has(CROWD)
            for writer in list(peer.writers):
                writer.close()
            await peer.has(0)
            latest = await pool.connect(host, port, 5, tls=False)
            pool.give_back((host, port), latest)
            assert pool._idle == {(host, port): [latest]}
            assert pool.idle(host, port) is latest
            latest.abandon()

    asyncio.run(script())

"""Serving the stand-in: inside an event loop (`EngineSim`), or beside one in a thread (`serve_in_thread`)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from kong_plugins.engine_sim.app import build_app, build_service
from kong_plugins.engine_sim.engine import Engine
from kong_plugins.engine_sim.options import EngineOptions

KEEP_ALIVE_S = 5  # vLLM's own default
START_TIMEOUT_S = 30
STOP_TIMEOUT_S = 1.0


class _Protocol(H11Protocol):
    """Lets a fault reach the connection it is to cut."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport}
        # asyncio sets it only on sockets that name TCP as their protocol, and ours comes from create_server: without it
        # a kept-alive connection's first event waits 40 ms for an acknowledgement.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class _Server(uvicorn.Server):
    """Leaves signals to the process it lives in."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class EngineSim:
    """The stand-in as a server. One instance serves once: `start`, then `stop`.

    ``url`` and ``port`` are known after `start`. `refuse` closes the listening socket (clients get "connection
    refused"), `accept` opens it again on the same port.
    """

    def __init__(self, options: EngineOptions | None = None) -> None:
        self.options = options or EngineOptions()
        self.port = 0
        self._service = build_service(self.options)
        self._tasks: list[asyncio.Task[None]] = []
        self._server: _Server | None = None
        self._listener: asyncio.Server | None = None
        self._reopening: asyncio.Future[None] | None = None
        self._service.refuse_for = self.refuse_for

    @property
    def url(self) -> str:
        return f"http://{self.options.host}:{self.port}"

    @property
    def engine(self) -> Engine:
        return self._service.engine

    @property
    def requests(self) -> list[dict[str, Any]]:
        """Requests as they came, oldest first; see GET /sim/requests."""
        return list(self._service.seen)

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the port is taken.
        """
        config = uvicorn.Config(
            build_app(self._service),
            http=_Protocol,
            ws="none",
            lifespan="off",
            access_log=False,
            log_level="warning",
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        config.load()
        self._server = server = _Server(config)
        server.lifespan = config.lifespan_class(config)
        server.servers = []
        self.port = self.options.port
        await self.accept()
        await server.startup(sockets=[])
        server.servers = []
        await server.on_tick(0)
        self._tasks = [asyncio.create_task(self.engine.run()), asyncio.create_task(server.main_loop())]

    async def accept(self) -> None:
        """Open the listening socket, if it is closed."""
        if self._listener is not None or self._server is None:
            return
        config, state = self._server.config, self._server.server_state
        listening = socket.create_server((self.options.host, self.port), backlog=2048)
        self.port = listening.getsockname()[1]
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(
            lambda: _Protocol(config=config, server_state=state, app_state={}), sock=listening
        )

    def refuse(self) -> None:
        """Close the listening socket; connections that are open stay."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def refuse_for(self, pause_s: float) -> None:
        """`refuse` now, `accept` after some seconds."""
        self.refuse()
        self._reopening = asyncio.ensure_future(self._accept_after(pause_s))

    async def _accept_after(self, pause_s: float) -> None:
        await asyncio.sleep(pause_s)
        await self.accept()

    async def stop(self) -> None:
        """Stop listening, end what runs, close every connection; raise what the engine's ticker failed with."""
        server = self._server
        if server is None:
            return
        if self._reopening is not None:
            self._reopening.cancel()
        self.refuse()
        self.engine.kill()
        # Not uvicorn's own shutdown: that waits in steps of 0.1 s, which every test of a gateway would pay.
        state = server.server_state
        for connection in list(state.connections):
            connection.shutdown()
        give_up = asyncio.get_running_loop().time() + STOP_TIMEOUT_S
        while (state.connections or state.tasks) and asyncio.get_running_loop().time() < give_up:
            await asyncio.sleep(0.002)
        for connection in list(state.connections):
            connection.transport.abort()
        for task in self._tasks:
            task.cancel()
        ends = await asyncio.gather(*self._tasks, return_exceptions=True)
        self._server = None
        for end in ends:
            if isinstance(end, Exception):
                raise end

    async def failed(self) -> None:
        """Wait until the engine's ticker ends by an error, and raise it. It never ends otherwise."""
        await self._tasks[0]


@contextlib.contextmanager
def serve_in_thread(options: EngineOptions | None = None) -> Iterator[EngineSim]:
    """The stand-in in a thread of its own, for callers without an event loop. Use its HTTP controls, not its methods.

    Raises:
        OSError: the port is taken.
    """
    sim = EngineSim(options)
    started = threading.Event()
    stopping: asyncio.Event
    loop: asyncio.AbstractEventLoop
    problem: list[BaseException] = []

    async def serve() -> None:
        nonlocal stopping, loop
        stopping, loop = asyncio.Event(), asyncio.get_running_loop()
        try:
            await sim.start()
        except OSError as error:
            problem.append(error)
            return
        finally:
            started.set()
        await stopping.wait()
        await sim.stop()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="engine-sim", daemon=True)
    thread.start()
    started.wait(START_TIMEOUT_S)
    if problem:
        raise problem[0]
    try:
        yield sim
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join(START_TIMEOUT_S)

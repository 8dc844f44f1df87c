"""The event engine: what each frame from Kong means, and how long anything may take."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gevent

from kong_plugins.plugin_server import frames
from kong_plugins.plugin_server.connections import Connection
from kong_plugins.plugin_server.events import FAILED_CLOSED, Call, Event, Work, call_kong
from kong_plugins.plugin_server.instances import Instance, Instances, NoSuchInstance
from kong_plugins.plugin_server.logs import log
from kong_plugins.plugin_server.pdk import EventAbandoned, Pdk
from kong_plugins.plugin_server.predecessor import Predecessor, PredecessorGone

_NO_INSTANCE = "no plugin instance"


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds and counts. ``deadline_s``: for one answer; Kong reads for 60 s (``nginx_http_lua_socket_read_timeout``)
    and then gives the connection to the next request. ``ttl_s``: for Kong's Step after a PDK call, which never comes
    when the call throws in Lua; ``waiting``: how many events may wait for one."""

    deadline_s: float = 55.0
    ttl_s: float = 120.0
    waiting: int = 10_000


class Engine:
    """Dispatches frames to instances and keeps every event until it is answered, exits or is given up."""

    def __init__(
        self,
        instances: Instances,
        limits: Limits,
        predecessor: Predecessor,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.hub = gevent.get_hub()
        self.pdk = Pdk("kong", call_kong)
        self._instances = instances
        self._limits = limits
        self._predecessor = predecessor
        self._clock = clock
        # Both in the order of their times: an insertion is always the newest.
        self._running: dict[Work, float] = {}  # by when Kong's answer is due
        self._waiting: dict[int, Event] = {}  # for a Step
        self._pid_frame = frames.server_pid(os.getpid())
        # A Step meant for a process before this one must find no event here. Below 2^52: Lua counts in doubles.
        self._last_event = random.SystemRandom().randrange(1 << 48, 1 << 51)
        self.draining = False

    @property
    def busy(self) -> int:
        """Events and calls under way."""
        return len(self._running) + len(self._waiting)

    def receive(self, connection: Connection, frame: Any) -> None:
        """Act on one frame. Never waits and never raises for what a frame holds."""
        if connection.owner is not None:
            # Kong has one frame in flight on a connection: it stopped waiting for the first one. Its answer would be
            # read as this one's.
            log.error("%s: Kong stopped waiting for the answer", connection.owner)
            self._abandon(connection.owner)
        try:
            kind, msgid, method, (argument, *_) = frame
        except (TypeError, ValueError):
            kind = msgid = method = argument = None
        if kind != frames.REQUEST or not isinstance(msgid, int):
            log.error("closing a connection: a frame from Kong is not a request")
            connection.break_off()
            return
        if isinstance(argument, dict) and "EventId" in argument:
            # Whatever the method's name is: a client can make Kong use one of its choosing (a header `_method`).
            self._step(connection, msgid, method, argument)
        elif method == "plugin.HandleEvent" and isinstance(argument, dict):
            self._handle_event(connection, msgid, argument)
        elif method == "plugin.StartInstance" and isinstance(argument, dict):
            self._start_instance(connection, msgid, argument)
        elif method == "plugin.CloseInstance":
            self._close_instance(connection, msgid, argument)
        else:
            connection.send(
                frames.error(msgid, "this server knows StartInstance, CloseInstance, HandleEvent and steps")
            )

    def ask(self, event: Event, request: dict[str, Any]) -> bool:
        """Send a PDK call as the answer to the frame the event holds. False: nobody waits for it any more."""
        connection = event.connection
        if not self._send(event, frames.response(event.msgid, {"EventId": event.id, "Data": request})):
            return False
        if connection is not None:
            connection.mid_event = True
        event.since = self._clock()
        self._waiting[event.id] = event
        if len(self._waiting) > self._limits.waiting:
            oldest = next(iter(self._waiting.values()))
            log.error("%s: given up: over %d events wait for Kong", oldest, self._limits.waiting)
            self._abandon(oldest)
        return True

    def answer(self, work: Work, result: object) -> None:
        """Answer for good.

        Raises:
            TypeError, ValueError, OverflowError: the result cannot be packed; nothing was sent.
        """
        self._send(work, frames.response(work.msgid, result))

    def refuse(self, work: Work, text: str) -> None:
        """Answer with an error, which Kong logs."""
        self._send(work, frames.error(work.msgid, _never_restarts(text)))

    def forget(self, event: Event) -> None:
        """Kong's Step for it is not expected any more."""
        self._waiting.pop(event.id, None)

    def connection_closed(self, connection: Connection) -> None:
        """Nobody waits for the answer. What the plugin does without Kong it may finish: a settlement, a clean-up."""
        work, connection.owner = connection.owner, None
        if work is not None:
            work.connection = None

    def sweep(self) -> None:
        """Give up what is over its time. Call it often."""
        now = self._clock()
        for work, due in list(self._running.items()):
            if due > now:
                break
            log.error("%s: no answer in %g s: given up", work, self._limits.deadline_s)
            self._break_off(work)
        for event in list(self._waiting.values()):
            if event.since + self._limits.ttl_s > now:
                break
            log.info("%s: given up: Kong did not go on with it in %g s", event, self._limits.ttl_s)
            self._abandon(event)
        self._instances.expire(now)

    def abandon_all(self) -> None:
        """The process ends: unwind every plugin."""
        for work in [*self._running, *self._waiting.values()]:
            self._break_off(work)

    # Frames

    def _step(self, connection: Connection, msgid: int, method: object, argument: dict[Any, Any]) -> None:
        event_id = argument["EventId"]
        event = self._waiting.pop(event_id, None) if isinstance(event_id, int) else None
        if event is None:

            def pass_on() -> object:
                try:
                    return self._predecessor.step(msgid, method, argument)
                except PredecessorGone:
                    log.error("Kong goes on with an event that is not here (given up, or of a process before this one)")
                    # An error would let the request pass. In the log phase an exit only throws.
                    return {"EventId": 0, "Data": FAILED_CLOSED}

            call = Call(self, connection, msgid, plugin_name="", function=pass_on, secrets=lambda: ())
            self._enter(connection, call)
            return
        event.connection = connection
        event.msgid = msgid
        self._enter(connection, event, argument.get("Data"))

    def _handle_event(self, connection: Connection, msgid: int, argument: dict[Any, Any]) -> None:
        phase = argument.get("EventName")
        if self.draining and phase != "log":
            # Kong asks again at once, on a new connection: to the process that took over, or in vain (500).
            connection.send_last(frames.error(msgid, f"{_NO_INSTANCE}: this process is ending"))
            return
        instance_id = argument.get("InstanceId")
        try:
            instance = self._instances.get(instance_id)
        except NoSuchInstance as missing:
            self._tell_pid(connection, str(instance_id).rpartition("-")[0])
            connection.send(frames.error(msgid, str(missing)))
            return
        if not isinstance(phase, str) or phase not in instance.methods:
            connection.send(frames.error(msgid, f"{instance.plugin.name} has no such phase"))
            return
        self._last_event += 1
        instance.enter(self._clock())
        self._enter(
            connection, Event(self, connection, msgid, event_id=self._last_event, instance=instance, phase=phase)
        )

    def _start_instance(self, connection: Connection, msgid: int, argument: dict[Any, Any]) -> None:
        name, config = argument.get("Name"), argument.get("Config")
        if self.draining:
            connection.send_last(frames.error(msgid, "this process is ending"))
            return
        if name not in self._instances.names or not isinstance(config, str):
            served = ", ".join(self._instances.names)
            connection.send(frames.error(msgid, f"this server serves {served}, and config comes as a JSON string"))
            return

        def start() -> dict[str, object]:
            instance = self._instances.start(name, config, self._clock)
            return {"Name": name, "Id": instance.id, "StartTime": time.time()}

        self._enter(
            connection,
            Call(
                self,
                connection,
                msgid,
                plugin_name=name,
                function=start,
                secrets=lambda: self._instances.secrets_in(name, config),
            ),
        )

    def _close_instance(self, connection: Connection, msgid: int, instance_id: object) -> None:
        try:
            instance: Instance = self._instances.close(instance_id)
        except NoSuchInstance as missing:
            connection.send(frames.error(msgid, str(missing)))
            return
        self._tell_pid(connection, instance.plugin.name)
        connection.send(frames.response(msgid, {"Name": instance.plugin.name, "Id": instance.id}))

    # Work

    def _enter(self, connection: Connection, work: Work, *value: object) -> None:
        connection.owner = work
        self._running[work] = self._clock() + self._limits.deadline_s
        work.switch(*value)

    def _send(self, work: Work, frame: bytes) -> bool:
        due = self._running.pop(work, None)
        connection, work.connection = work.connection, None
        if connection is None or due is None:
            return False
        connection.owner = None
        if self._clock() > due:
            log.error("%s: answered after %g s: too late", work, self._limits.deadline_s)
            connection.break_off()
            return False
        self._tell_pid(connection, work.plugin_name)
        return connection.send(frame)

    def _tell_pid(self, connection: Connection, plugin_name: str) -> None:
        if plugin_name not in connection.told and plugin_name in self._instances.names:
            connection.told.add(plugin_name)
            connection.send(self._pid_frame)

    def _break_off(self, work: Work) -> None:
        connection = work.connection
        self._abandon(work)
        if connection is not None:
            connection.break_off()

    def _abandon(self, work: Work) -> None:
        """Nothing of it will be sent; its greenlet unwinds as soon as the loop is free."""
        self._running.pop(work, None)
        if isinstance(work, Event):
            self._waiting.pop(work.id, None)
        if work.connection is not None:
            work.connection.owner = None
            work.connection = None
        if not work.abandoned and not work.dead:
            work.abandoned = True
            self.hub.loop.run_callback(_unwind, work)


def _unwind(work: Work) -> None:
    if not work.dead:
        work.throw(EventAbandoned)


def _never_restarts(text: str) -> str:
    """Kong would start the instance again, without limit, for an error that mentions a missing one."""
    return text if _NO_INSTANCE not in text.lower() else "the error's own text cannot be passed on"

"""Work for Kong, each in a raw greenlet whose parent is gevent's hub.

A frame's callback switches straight into the greenlet; a PDK call writes its frame and switches back to the hub until
the Step arrives; a wait for a socket of the plugin's own goes through the hub as anywhere in gevent.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from greenlet import getcurrent, greenlet

from kong_plugins.plugin_server.logs import log
from kong_plugins.plugin_server.pdk import TERMINAL_METHODS, EventAbandoned, EventExit, PDKException
from kong_plugins.plugin_server.redaction import message_of, place_of, story_of

if TYPE_CHECKING:
    from kong_plugins.plugin_server.connections import Connection
    from kong_plugins.plugin_server.engine import Engine
    from kong_plugins.plugin_server.instances import Instance

RETURNED = "ret"
# Its own words for a client's SDK; the operator finds the cause in Kong's error log.
FAILED_CLOSED = {
    "Method": "kong.response.exit",
    "Args": (
        503,
        json.dumps(
            {
                "error": {
                    "message": "The gateway could not check this request. Try again; tell the operator if it stays so.",
                    "type": "server_error",
                    "param": None,
                    "code": "plugin_failed",
                }
            }
        ),
        {"Content-Type": "application/json; charset=utf-8"},
    ),
}


class Work(greenlet):  # type: ignore[misc]  # greenlet's types are not read
    """A request of Kong's. ``connection`` is where its answer is due (None: nobody waits), ``since`` since when."""

    def __init__(self, engine: Engine, connection: Connection, msgid: int, plugin_name: str) -> None:
        super().__init__(parent=engine.hub)
        self.engine = engine
        self.connection: Connection | None = connection
        self.msgid = msgid
        self.plugin_name = plugin_name
        self.since = 0.0
        self.abandoned = False

    def __str__(self) -> str:
        return self.plugin_name


class Call(Work):
    """StartInstance or CloseInstance: runs ``function`` and answers with what it returns or with why it failed."""

    def __init__(
        self,
        engine: Engine,
        connection: Connection,
        msgid: int,
        *,
        plugin_name: str,
        function: Callable[[], object],
        secrets: Callable[[], tuple[str, ...]],
    ) -> None:
        super().__init__(engine, connection, msgid, plugin_name)
        self._function = function
        self._secrets = secrets

    def run(self) -> None:
        try:
            result = self._function()
        except EventAbandoned:
            return
        except BaseException as error:  # noqa: BLE001  # a plugin's SystemExit must not end the others
            secrets = self._secrets()
            log.error("%s: %s", self.plugin_name, story_of(error, secrets))
            self.engine.refuse(self, f"{self.plugin_name}: {message_of(error, secrets)}")
        else:
            self.engine.answer(self, result)


class Event(Work):
    """One phase of one request in one plugin. Kong knows it by ``id`` once it has made a PDK call."""

    def __init__(
        self, engine: Engine, connection: Connection, msgid: int, *, event_id: int, instance: Instance, phase: str
    ) -> None:
        super().__init__(engine, connection, msgid, instance.plugin.name)
        self.id = event_id
        self.instance = instance
        self.phase = phase
        self._exit: dict[str, Any] | None = None

    def __str__(self) -> str:
        return f"{self.plugin_name} in {self.phase}"

    def run(self) -> None:
        try:
            self._run()
        except EventAbandoned:
            pass  # while Kong was told about a failure
        finally:
            self.instance.leave()

    def call(self, method: str, args: tuple[Any, ...]) -> Any:
        """What Kong answers to a PDK call; None for nothing, which is also all Kong tells of an error.

        Raises:
            PDKException: an argument cannot be sent.
            EventExit: the method ends the request.
            EventAbandoned: Kong waits for this event no longer.
        """
        if self._exit is not None:
            raise EventExit
        request = {"Method": method, "Args": args}
        if method in TERMINAL_METHODS:
            self._exit = request
            raise EventExit
        return self._ask(request)

    def _ask(self, request: dict[str, Any]) -> Any:
        try:
            sent = self.engine.ask(self, request)
        except (TypeError, ValueError, OverflowError) as error:
            raise PDKException(f"{request['Method']}: an argument cannot be sent to Kong: {error}") from None
        if not sent:
            self.abandoned = True
            raise EventAbandoned
        try:
            while True:
                result = self.engine.hub.switch()
                if self.connection is not None:
                    return result
                # Something else woke this greenlet; the Step is still to come.
        except BaseException:
            # gevent.Timeout, a kill: the Step's answer can no longer be told from the next one's.
            self.abandoned = True
            self.engine.forget(self)
            raise

    def _run(self) -> None:
        failure: BaseException | None = None
        try:
            self.instance.methods[self.phase](self.engine.pdk)
        except (EventExit, EventAbandoned):
            pass
        except BaseException as error:  # noqa: BLE001  # a plugin's SystemExit or Timeout must not end the others
            failure = error
        if self._exit is not None and not self.abandoned:
            try:
                self.engine.answer(self, {"EventId": self.id, "Data": self._exit})
            except (TypeError, ValueError, OverflowError) as error:
                self._exit = None
                failure = error
            else:
                self._report(failure)
                return
        self._report(failure)
        if self.abandoned:
            return
        if failure is None:
            self.engine.answer(self, {"EventId": self.id, "Data": RETURNED})
        else:
            self._fail(failure)

    def _report(self, failure: BaseException | None) -> None:
        if failure is not None:
            log.error("%s: %s", self, story_of(failure, self.instance.secrets))

    def _fail(self, failure: BaseException) -> None:
        # Only kind and place: a message may quote the request.
        text = f"{self}: {type(failure).__name__} at {place_of(failure)}"
        if self.phase == "log" or self.instance.plugin.fails_open:
            self.engine.refuse(self, text)  # Kong logs it at error and goes on without the plugin
            return
        self._ask({"Method": "kong.log.err", "Args": (text,)})
        self.engine.answer(self, {"EventId": self.id, "Data": FAILED_CLOSED})


def call_kong(method: str, args: tuple[Any, ...]) -> Any:
    """The PDK's way to Kong: through the event whose greenlet is running."""
    event = getcurrent()
    if not isinstance(event, Event):
        raise PDKException(f"{method}: PDK calls work in an event's own greenlet only, not in one it spawned")
    return event.call(method, args)

"""Instances: one Plugin object for each configured row.

An instance's id is its plugin's name and a hash of its config without ``__seq__``: the number Kong gives to each load
of its configuration, different in every load and every worker. So an id means the same row and the same config in
every process and after every restart, and can never be taken for another row's; a configuration that did not change
keeps its instance. Each StartInstance counts one user of it and each CloseInstance one less, because Kong starts the
new load's instance (here: the same) before it closes the old one, and every worker does so by itself. Workers that go
away close nothing: what nobody used for a while is dropped, and Kong starts it again if it was wrong.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from typing import Any

import gevent
from gevent.event import Event as Signal

from kong_plugins.plugin_server.logs import log
from kong_plugins.plugin_server.plugins import LoadedPlugin
from kong_plugins.plugin_server.redaction import secrets_of, story_of

_VOLATILE = "__seq__"


class NoSuchInstance(Exception):  # noqa: N818  # reads as what it tells
    """Kong starts the instance again when it reads this text."""

    def __init__(self, instance_id: object) -> None:
        super().__init__(f"no plugin instance {instance_id!r:.80}")


def instance_id_of(name: str, config: dict[str, Any]) -> str:
    """``token-quota-<32 hex digits>``. Kong passes an id through as it got it."""
    stable = {key: value for key, value in config.items() if key != _VOLATILE}
    text = json.dumps(stable, sort_keys=True, separators=(",", ":"))
    return f"{name}-{blake2b(text.encode(), digest_size=16).hexdigest()}"


class Instance:
    """A running Plugin object. ``users`` are the starts not yet closed, ``active`` the events now in it."""

    __slots__ = ("_retired", "active", "handler", "id", "methods", "plugin", "secrets", "used", "users")

    def __init__(self, instance_id: str, plugin: LoadedPlugin, config: dict[str, Any]) -> None:
        self.id = instance_id
        self.plugin = plugin
        self.secrets = tuple(secrets_of(plugin.schema, config))
        self.handler = plugin.new(config).cls
        self.methods: dict[str, Callable[[Any], object]] = {p: getattr(self.handler, p) for p in plugin.phases}
        self.users = 0
        self.active = 0
        self.used = 0.0
        self._retired = False

    def enter(self, now: float) -> None:
        self.active += 1
        self.used = now

    def leave(self) -> None:
        self.active -= 1
        if self._retired and not self.active:
            gevent.spawn(self._close)

    def retire(self) -> None:
        """No new event will come: call ``close()`` after the last one."""
        self._retired = True
        if not self.active:
            gevent.spawn(self._close)

    def close_now(self) -> None:
        """``close()`` here and now, events or not: the process ends."""
        self._close()

    def _close(self) -> None:
        close = getattr(self.handler, "close", None)
        if close is None:
            return
        try:
            close()
        except BaseException as error:  # noqa: BLE001  # a plugin's SystemExit must not end the others
            log.error("%s: close failed: %s", self.plugin.name, story_of(error, self.secrets))


class Instances:
    """Every live instance, bounded: beyond ``limit`` the one unused for longest goes, after ``idle_s`` any does."""

    def __init__(self, plugins: Iterable[LoadedPlugin], limit: int, idle_s: float) -> None:
        self._plugins = {plugin.name: plugin for plugin in plugins}
        self._limit = limit
        self._idle_s = idle_s
        self._live: dict[str, Instance] = {}
        self._starting: dict[str, Signal] = {}

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Instance]:
        return iter(self._live.values())

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._plugins)

    def secrets_in(self, name: str, config_json: str) -> tuple[str, ...]:
        """The secret values of a config, for redaction; none if it is no JSON object."""
        try:
            return tuple(secrets_of(self._plugins[name].schema, json.loads(config_json)))
        except ValueError:
            return ()

    def get(self, instance_id: object) -> Instance:
        """Raises NoSuchInstance."""
        instance = self._live.get(instance_id) if isinstance(instance_id, str) else None
        if instance is None:
            raise NoSuchInstance(instance_id)
        return instance

    def start(self, name: str, config_json: str, now: Callable[[], float]) -> Instance:
        """The row's instance, made if there is none. May wait as long as the plugin's ``__init__`` does.

        Raises:
            KeyError: this server does not serve the plugin.
            ValueError: the config is no JSON object.
            BaseException: whatever the plugin's ``__init__`` raised.
        """
        plugin = self._plugins[name]
        config = json.loads(config_json)
        if not isinstance(config, dict):
            raise ValueError("config is not a JSON object")
        instance_id = instance_id_of(name, config)
        while (starting := self._starting.get(instance_id)) is not None:
            starting.wait()  # another worker's StartInstance of the same row is at it
        instance = self._live.get(instance_id)
        if instance is None:
            self._starting[instance_id] = Signal()
            try:
                instance = Instance(instance_id, plugin, config)
            finally:
                self._starting.pop(instance_id).set()
            self._live[instance_id] = instance
            log.info("instance %s started", instance_id)
        instance.users += 1
        instance.used = now()
        if len(self._live) > self._limit:
            self._drop(min((i for i in self._live.values() if i is not instance), key=lambda i: i.used), "too many")
        return instance

    def close(self, instance_id: object) -> Instance:
        """One user less. Raises NoSuchInstance."""
        instance = self.get(instance_id)
        instance.users -= 1
        if instance.users <= 0:
            self._drop(instance, "closed")
        return instance

    def expire(self, now: float) -> None:
        """Drop what no event has used for the idle time."""
        for instance in [i for i in self._live.values() if not i.active and i.used + self._idle_s < now]:
            self._drop(instance, "idle")

    def close_all(self) -> None:
        """The process ends."""
        while self._live:
            self._live.popitem()[1].close_now()

    def _drop(self, instance: Instance, why: str) -> None:
        del self._live[instance.id]
        instance.retire()
        log.info("instance %s dropped: %s", instance.id, why)

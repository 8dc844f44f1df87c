"""usage-gate's leave_last: Kong's worker 0 waits for the others. With a real Kong: tests/e2e/test_orderly_stop.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lua_replays import PLUGINS
from lupa import luajit21

OWN, SIBLING, NEXT_SIBLING = 100, 101, 201
STARTED, RELOADED = 1_000.5, 2_000.5
SOCKET = "/run/kong/token-quota.sock"


class Node:
    """What nginx's workers share: memory, processes, and the plugin server's socket by the time it was made."""

    def __init__(self) -> None:
        self.memory: dict[str, Any] = {}
        self.alive = {SIBLING}
        self.sockets = {SOCKET: STARTED + 1}

    def set(self, _: object, name: str, value: object) -> bool:
        self.memory[name] = value
        return True

    def delete(self, _: object, name: str) -> None:
        self.memory.pop(name, None)


class Worker:
    """One of two workers, begun when nginx's master was started or reloaded; ``looks``: what happens while it waits."""

    def __init__(self, node: Node, number: int | None, pid: int = OWN, began: float = STARTED) -> None:
        self.timers: list[Any] = []
        self.looks: list[Callable[[], object]] = []
        self.slept = 0
        lua = luajit21.LuaRuntime()
        lua.globals().ngx = lua.table_from(
            {
                "now": lambda: began,
                "shared": {
                    "kong": {"get": lambda _, name: node.memory.get(name), "set": node.set, "delete": node.delete}
                },
                "worker": {"id": lambda: number, "pid": lambda: pid, "count": lambda: 2},
                "timer": {"at": self._at},
                "sleep": self._sleep,
            },
            recursive=True,
        )
        servers = [{"socket": SOCKET, "start_command": "python"}]
        lua.globals().kong = lua.table_from({"configuration": {"pluginservers": servers}}, recursive=True)
        loaded = lua.globals().package.loaded
        loaded["resty.signal"] = lua.table_from({"kill": lambda pid, _: pid in node.alive or None})
        loaded["lfs"] = lua.table_from({"attributes": lambda path, _: node.sockets.get(path)})
        lua.execute((Path(PLUGINS) / "usage-gate" / "leave_last.lua").read_text())()

    def _at(self, delay_s: int, run: Any) -> bool:
        self.timers.append(run)
        return True

    def _sleep(self, seconds: float) -> None:
        self.slept += 1
        if self.looks:
            self.looks.pop(0)()

    def told_to_end(self) -> None:
        """nginx fires what waits, early."""
        self.timers.pop()(True)


def begun() -> tuple[Node, Worker]:
    """A node of two workers, and its first."""
    node = Node()
    first = Worker(node, 0)
    assert Worker(node, 1, SIBLING).timers == []
    return node, first


def reloaded() -> tuple[Node, Worker]:
    """The same behind a reload: two more, whose plugin server is not there yet."""
    node, first = begun()
    Worker(node, 0, OWN + 100, RELOADED)
    Worker(node, 1, NEXT_SIBLING, RELOADED)
    node.alive |= {NEXT_SIBLING}
    return node, first


def test_worker_0_stays_until_the_others_have_left() -> None:
    """And then it leaves at once, with nothing left behind in their memory but the time of its beginning."""
    node, first = begun()
    first.looks = [lambda: None, node.alive.clear]
    first.told_to_end()
    assert first.slept == 2
    assert list(node.memory.values()) == [STARTED]


def test_after_a_reload_it_stays_until_the_next_server_has_the_socket() -> None:
    """It does not wait for the next workers, who stay."""
    node, first = reloaded()
    node.alive.remove(SIBLING)
    first.looks = [lambda: None, lambda: None, lambda: node.sockets.update({SOCKET: RELOADED + 3})]
    first.told_to_end()
    assert first.slept == 3
    assert NEXT_SIBLING in node.memory.values()


def test_after_a_reload_it_stays_with_those_that_began_with_it() -> None:
    """Their requests are with its plugin servers."""
    node, first = reloaded()
    node.sockets[SOCKET] = RELOADED + 3
    first.looks = [lambda: None, lambda: node.alive.remove(SIBLING)]
    first.told_to_end()
    assert first.slept == 2


def test_it_does_not_wait_for_ever_for_a_server_that_never_comes() -> None:
    """A minute."""
    node, first = reloaded()
    node.alive.remove(SIBLING)
    first.told_to_end()
    assert first.slept == 300


def test_a_day_is_not_the_end() -> None:
    _, first = begun()
    first.timers.pop()(False)
    assert len(first.timers) == 1
    assert first.slept == 0


def test_the_privileged_agent_is_nobodys_companion() -> None:
    """It has no number and no requests."""
    node = Node()
    assert Worker(node, None).timers == []
    assert list(node.memory.values()) == [STARTED]

"""usage-gate's leave_last: Kong's worker 0 waits for the others. With a real Kong: tests/e2e/test_orderly_stop.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lua_replays import PLUGINS
from lupa import luajit21

OWN, SIBLING = 100, 101
# (They share memory: a worker's number stands in it under the moment at which nginx's master began their generation.)
STARTED, RELOADED = 1_000.5, 2_000.5


class Worker:
    """One of two workers: nginx's part of it, and what others do at each look of its (``looks``)."""

    def __init__(self, number: int | None, memory: dict[str, int], began: float = STARTED) -> None:
        self.memory, self.alive = memory, {SIBLING}
        self.timers: list[Any] = []
        self.slept = 0
        self.looks: list[Any] = []
        lua = luajit21.LuaRuntime()
        lua.globals().ngx = lua.table_from(
            {
                "now": lambda: began,
                "shared": {"kong": {"get": lambda _, name: memory.get(name), "set": self._set, "delete": self._delete}},
                "worker": {"id": lambda: number, "pid": lambda: OWN, "count": lambda: 2},
                "timer": {"at": self._at},
                "sleep": self._sleep,
            },
            recursive=True,
        )
        lua.globals().package.loaded["resty.signal"] = lua.table_from(
            {"kill": lambda pid, _: pid in self.alive or None}
        )
        lua.execute((Path(PLUGINS) / "usage-gate" / "leave_last.lua").read_text())()

    def _set(self, _: object, name: str, value: int) -> bool:
        self.memory[name] = value
        return True

    def _delete(self, _: object, name: str) -> None:
        del self.memory[name]

    def _at(self, delay_s: int, run: Any) -> bool:
        self.timers.append(run)
        return True

    def _sleep(self, seconds: float) -> None:
        self.slept += 1
        self.looks.pop(0)()

    def told_to_end(self) -> None:
        """nginx fires what waits, early."""
        self.timers.pop()(True)


def generation(began: float = STARTED, pid: int = SIBLING) -> dict[str, int]:
    """What worker 1 leaves in their memory."""
    worker = Worker(1, {}, began)
    assert worker.timers == []
    (name,) = worker.memory
    return {name: pid}


def test_worker_0_stays_until_the_others_have_left() -> None:
    worker = Worker(0, generation())
    worker.looks = [lambda: None, worker.alive.clear]
    worker.told_to_end()
    assert worker.slept == 2
    assert worker.timers == []
    assert worker.memory == {}


def test_after_a_reload_it_waits_for_those_that_began_with_it_alone() -> None:
    """Their requests are with its plugin servers; the next generation has others."""
    worker = Worker(0, generation() | generation(RELOADED, pid=SIBLING + 1))
    worker.alive |= {SIBLING + 1}
    worker.looks = [lambda: worker.alive.discard(SIBLING)]
    worker.told_to_end()
    assert worker.slept == 1
    assert worker.memory == generation(RELOADED, pid=SIBLING + 1)


def test_a_day_is_not_the_end() -> None:
    worker = Worker(0, generation())
    worker.timers.pop()(False)
    assert len(worker.timers) == 1
    assert worker.slept == 0


def test_the_privileged_agent_is_nobodys_companion() -> None:
    """It has no number and no requests."""
    worker = Worker(None, {})
    assert (worker.timers, worker.memory) == ([], {})

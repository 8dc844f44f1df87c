"""usage-gate's leave_last: Kong's worker 0 waits for the others. With a real Kong: tests/e2e/test_orderly_stop.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lua_replays import PLUGINS
from lupa import luajit21

PREFIX = "usage-gate:worker:"
OWN, SIBLING, SUCCESSOR = 100, 101, 200


class Worker:
    """One of two workers: nginx's part of it, and what others do at each look of its (``looks``)."""

    def __init__(self, number: int | None, memory: dict[str, int]) -> None:
        self.memory, self.alive = memory, {SIBLING}
        self.timers: list[Any] = []
        self.slept = 0
        self.looks: list[Any] = []
        lua = luajit21.LuaRuntime()
        lua.globals().ngx = lua.table_from(
            {
                "shared": {"kong": {"get": lambda _, name: memory.get(name), "set": self._set}},
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

    def _at(self, delay_s: int, run: Any) -> bool:
        self.timers.append(run)
        return True

    def _sleep(self, seconds: float) -> None:
        self.slept += 1
        self.looks.pop(0)()

    def told_to_end(self) -> None:
        """nginx fires what waits, early."""
        self.timers.pop()(True)


def test_worker_0_stays_until_the_others_have_left() -> None:
    worker = Worker(0, {f"{PREFIX}1": SIBLING})
    assert worker.memory[f"{PREFIX}0"] == OWN
    worker.looks = [lambda: None, worker.alive.clear]
    worker.told_to_end()
    assert worker.slept == 2
    assert worker.timers == []


def test_after_a_reload_the_next_worker_0_serves_the_others() -> None:
    worker = Worker(0, {f"{PREFIX}1": SIBLING})
    worker.looks = [lambda: worker.memory.update({f"{PREFIX}0": SUCCESSOR})]
    worker.told_to_end()
    assert worker.slept == 1


def test_a_day_is_not_the_end() -> None:
    worker = Worker(0, {f"{PREFIX}1": SIBLING})
    worker.timers.pop()(False)
    assert len(worker.timers) == 1
    assert worker.slept == 0


@pytest.mark.parametrize("number", [1, None])
def test_nobody_else_waits(number: int | None) -> None:
    """None: the privileged agent, which has no requests."""
    worker = Worker(number, {})
    assert worker.timers == []
    assert worker.memory == ({f"{PREFIX}1": OWN} if number else {})

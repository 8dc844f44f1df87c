"""Where this process stands below Kong, and how it outlives the process that Kong kills.

A Kong worker that ends sends the plugin servers it started SIGTERM and, with its Lua state, SIGKILL: no time to finish
anything. After a reload the next worker still talks to them meanwhile, over connections that it opened before its own
servers were up. So the process that Kong starts only waits; a child of it, which Kong does not know, serves, and goes
when nobody needs it any more. It holds Kong's pipe: Kong starts another pair only when it has ended too.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_NGINX = "nginx"
_ZOMBIE = "Z"
# A worker that ends has killed what it started, and is gone, in less. Past this somebody else has killed it.
_WORKER_ENDS_S = 2.0


@dataclass(frozen=True, slots=True)
class Process:
    """A process, not the next one of its number."""

    pid: int
    _since: str | None

    @classmethod
    def of(cls, pid: int) -> Process:
        return cls(pid, _started(pid))

    @property
    def is_gone(self) -> bool:
        return self._since is None or _started(self.pid) != self._since

    @property
    def is_nginx(self) -> bool:
        with suppress(OSError):
            return Path(f"/proc/{self.pid}/comm").read_text().strip() == _NGINX
        return False

    @property
    def parent(self) -> Process:
        stat = _stat(self.pid)
        return Process.of(int(stat[1])) if stat else Process(0, None)


class Parent:
    """The process that started us. ``watch``: ``auto`` (end when it ends if it is Kong's nginx), ``always``, ``never``.

    By hand, under systemd or as a container's first process nothing follows from the parent: its end, or its being
    PID 1, means nothing.
    """

    def __init__(self, watch: str) -> None:
        self._starter = Process.of(os.getppid())
        self.is_kong = watch != "never" and self._starter.is_nginx
        self.watched = watch == "always" or self.is_kong
        # Without a master the one process is both.
        master = self._starter.parent
        self._master = master if master.is_nginx else self._starter
        self._between: Process | None = None
        self._killed_at: float | None = None

    def step_aside(self) -> int | None:
        """Fork. In the child: None, and the parent that it watches stays Kong's worker. In the process that Kong knows,
        once the child has ended: its exit status. Call it before there is a thread or a socket."""
        between = Process.of(os.getpid())
        child = os.fork()
        if child:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            _, status = os.waitpid(child, 0)
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        self._between = between
        return None

    def is_gone(self) -> bool:
        return self.watched and self._starter.is_gone

    @property
    def kong_is_gone(self) -> bool:
        """No worker comes after the one that started us."""
        return self._master.is_gone

    def is_unwanted(self, clock: Callable[[], float] = time.monotonic) -> bool:
        """Kong's worker is there and the process that it started is not: somebody ended that one, and means us."""
        if self._between is None or not self._between.is_gone or self.is_gone():
            return False
        if self._killed_at is None:
            self._killed_at = clock()
        return clock() - self._killed_at > _WORKER_ENDS_S


def _started(pid: int) -> str | None:
    stat = _stat(pid)
    return stat[19] if stat and stat[0] != _ZOMBIE else None


def _stat(pid: int) -> list[str]:
    """/proc/PID/stat from the third field on: state, parent, …, start time (20th of these)."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []

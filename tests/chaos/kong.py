"""A native Kong's processes: it starts its plugin servers and its worker again by itself."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

from kong_plugins.cli.processes import unix_socket_answers
from tests.chaos.parts import wait_for, wait_until_gone


class KongServer:
    """A plugin server, known by its command line: its socket may be gone."""

    def __init__(self, name: str, prefix: Path) -> None:
        self.name = name
        self._answers = unix_socket_answers(prefix / f"{name}.sock")
        self._marks = {f"{prefix}".encode(), f"{name}.sock".encode()}

    def pid(self) -> int:
        return next((pid for pid, argv in _command_lines() if self._marks <= argv), 0)

    def send(self, number: signal.Signals) -> None:
        _send(self.pid(), number, self.name)

    def restore(self) -> None:
        wait_for(lambda: bool(self.pid()) and self._answers(), f"Kong starts {self.name} again")


class KongWorker:
    """nginx's one worker."""

    name = "gateway"

    def __init__(self, prefix: Path, answers: Callable[[], bool]) -> None:
        self._pid_file = prefix / "pids" / "nginx.pid"
        self._answers = answers

    def pid(self) -> int:
        master = int(self._pid_file.read_text())
        for pid, argv in _command_lines():
            if b"nginx: worker process" in b" ".join(argv) and _parent(pid) == master:
                return pid
        return 0

    def send(self, number: signal.Signals) -> None:
        # SIGTERM is nginx's fast end, which cuts streams without their log phase; `kong quit` sends SIGQUIT.
        _send(self.pid(), signal.SIGQUIT if number is signal.SIGTERM else number, self.name)

    def restore(self) -> None:
        wait_for(lambda: bool(self.pid()) and self._answers(), "nginx starts its worker again")


def _send(pid: int, number: signal.Signals, name: str) -> None:
    if pid:
        os.kill(pid, number)
        if number is signal.SIGKILL:
            wait_until_gone(pid, name)


def _command_lines() -> Iterator[tuple[int, set[bytes]]]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                yield int(name), set(Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0"))
            except OSError:
                continue  # ended meanwhile


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0

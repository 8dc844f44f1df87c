"""A process of the stack: it can be sent signals, and started again as it was when it is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

BACK_S = 30.0
POLL_S = 0.02

Ready = Callable[[], bool]


class Part(Protocol):
    name: str

    def pid(self) -> int:
        """0: it does not run."""

    def send(self, number: signal.Signals) -> None:
        """To this process only. SIGKILL returns when it is gone."""

    def restore(self) -> None:
        """Start it again where it is gone; returns when it answers.

        Raises:
            AssertionError: it does not, in ``BACK_S``.
        """


class Process:
    """One that we start. ``ready`` says whether it answers."""

    def __init__(self, name: str, argv: Sequence[str], log: Path, ready: Ready, env: Mapping[str, str]) -> None:
        self.name = name
        self.argv = list(argv)
        self.log = log
        self._ready = ready
        self._env = env
        self.process: subprocess.Popen[bytes] | None = None

    def pid(self) -> int:
        return self.process.pid if self.process is not None and self.process.poll() is None else 0

    def send(self, number: signal.Signals) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(number)
        if number is signal.SIGKILL:
            self.process.wait()

    def restore(self) -> None:
        if self.pid():
            return
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self._env},
                start_new_session=True,
            )
        # One that is killed while it starts breaks nothing: it is to be at work before the next fault.
        wait_for(self._ready, self.name)

    def stop(self, within_s: float = BACK_S) -> None:
        """SIGTERM, and SIGKILL for one that does not end by it."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        try:
            self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def wait_for(condition: Callable[[], bool], what: str, within_s: float = BACK_S) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s:.0f} s: {what}"
        time.sleep(POLL_S)  # nobody announces what we wait for


def wait_until_gone(pid: int, what: str, within_s: float = BACK_S) -> None:
    """Of a process that may be nobody's child."""

    def gone() -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return True

    wait_for(gone, f"{what} ends", within_s)

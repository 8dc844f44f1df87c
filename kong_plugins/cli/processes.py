"""Child processes of the local stack: started in order, waited for until they answer, ended in reverse."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Ready = Callable[[], bool]

STOP_GRACE_S = 10.0  # A plugin server drains its events and a gateway its streams; past this they are killed.
POLL_S = 0.05
START_S_MAX = 30.0


class StackError(Exception):
    """A part could not be started, or ended by itself. The message says what to look at."""


def unix_socket_answers(path: Path) -> Ready:
    def answers() -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1)
            try:
                probe.connect(str(path))
            except OSError:
                return False
        return True

    return answers


def tcp_port_answers(port: int, host: str = "127.0.0.1") -> Ready:
    def answers() -> bool:
        try:
            with socket.create_connection((host, port), timeout=1):
                return True
        except OSError:
            return False

    return answers


def check_port(port: int) -> None:
    """
    Raises:
        StackError: somebody listens there; the readiness check would take them for us.
    """
    if tcp_port_answers(port)():
        raise StackError(f"port {port} is in use: choose another with --port (0: any free one)")


def free_port() -> int:
    """A port of 127.0.0.1 nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(ready: Ready, what: str, log: Path, timeout_s: float = START_S_MAX) -> None:
    """Wait for something that is not our own child.

    Raises:
        StackError: not ready within ``timeout_s``; with the end of the log.
    """
    deadline = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > deadline:
            raise StackError(f"{what} did not answer within {timeout_s:.0f} s. End of {log}:\n{tail(log)}")
        time.sleep(POLL_S)


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log file."""
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return "(no log)"
    return "\n".join(text.splitlines()[-lines:])


@dataclass
class Child:
    """One process of the stack, its output in a log file."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def ended(self) -> bool:
        return self.process.poll() is not None

    def log_tail(self) -> str:
        return tail(self.log)

    def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """SIGTERM, wait, SIGKILL: to this process only."""
        if self.ended():
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass
class Processes:
    """The children of one stack. A context manager: leaving it ends them, last started first."""

    logs: Path
    children: list[Child] = field(default_factory=list)

    def __enter__(self) -> Processes:
        self.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(
        self, name: str, argv: Sequence[str], env: Mapping[str, str], ready: Ready, timeout_s: float = START_S_MAX
    ) -> Child:
        """Start one process and wait until ``ready()``.

        Raises:
            StackError: it ended, or did not answer in ``timeout_s``; with the end of its log.
        """
        log = self.logs / f"{name}.log"
        with log.open("wb") as output:  # an earlier run's errors would be read as this one's
            process = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **env},
                # A Ctrl-C in the terminal goes to the whole foreground group; the parts are to end in order instead.
                start_new_session=True,
            )
        child = Child(name, process, log)
        self.children.append(child)
        deadline = time.monotonic() + timeout_s
        while not ready():
            if child.ended():
                raise StackError(
                    f"{name} ended with status {process.returncode} at its start. End of {log}:\n{child.log_tail()}"
                )
            if time.monotonic() > deadline:
                raise StackError(f"{name} did not answer within {timeout_s:.0f} s. End of {log}:\n{child.log_tail()}")
            time.sleep(POLL_S)
        return child

    def first_ended(self) -> Child | None:
        """A child that ended although nobody asked it to."""
        return next((child for child in self.children if child.ended()), None)

    def stop(self) -> None:
        """End all, last started first."""
        while self.children:
            with contextlib.suppress(ProcessLookupError):
                self.children.pop().stop()

"""Starting and ending the servers under test. Each runs in a process group of its own, which is ended as a whole."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

STOP_S = 25.0
SAY_EVERY_S = 15.0
POLL_S = 0.25


class ServerError(Exception):
    """A server did not start. The message ends with the end of its log."""


def answers(url: str) -> bool:
    """Whether a GET is answered with a 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310 our own 127.0.0.1 addresses
            return bool(response.status == 200)
    except OSError:
        return False


@contextlib.contextmanager
def server(
    name: str,
    argv: Sequence[str],
    ready: Callable[[], bool],
    log: Path,
    say: Callable[[str], None],
    *,
    timeout_s: float = 420.0,
    env: Mapping[str, str] | None = None,
) -> Iterator[float]:
    """Run a server; yields the seconds it took to be ready.

    Raises:
        ServerError: it ended or was not ready in time.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    started = said = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
    try:
        while not ready():
            now = time.monotonic()
            if process.poll() is not None:
                raise ServerError(f"{name} ended with status {process.returncode} at its start:\n{tail(log)}")
            if now - started > timeout_s:
                raise ServerError(f"{name} was not ready after {timeout_s:.0f} s:\n{tail(log)}")
            if now - said > SAY_EVERY_S:
                said = now
                say(f"{name}: starting for {now - started:.0f} s")
            time.sleep(POLL_S)
        yield time.monotonic() - started
    finally:
        end_group(process)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the first process, then whatever of its group is left is killed: engine workers hold the cards."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def tail(log: Path, lines: int = 25) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])

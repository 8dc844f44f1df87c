"""Plugin servers as processes: this package's and stock kong-pdk's, under the same probe."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

HERE = Path(__file__).parent
OURS = [sys.executable, "-m", "kong_plugins.plugin_server", "--plugin", "plugin_server_probe"]
STOCK = [sys.executable, str(HERE / "plugin_server_stock.py"), "--no-lua-style"]
STOCK_GEVENT = [*STOCK, "-g"]


class Pipe:
    """A named pipe for one process to tell another, in time, that it got somewhere."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)
        self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)  # so that no open blocks

    def wait(self, timeout_s: float = 5.0) -> str:
        """What was written, waited for."""
        if not select.select([self._descriptor], [], [], timeout_s)[0]:
            raise AssertionError(f"nothing was written to {self.path} in {timeout_s} s")
        return os.read(self._descriptor, 100).decode()

    def wait_for(self, count: int, timeout_s: float = 60.0) -> str:
        """This many characters, waited for, and what else was written by then."""
        text = ""
        while len(text) < count:
            text += self.wait(timeout_s)
        return text

    def is_empty(self) -> bool:
        return not select.select([self._descriptor], [], [], 0)[0]


_PARENT = """
import os, subprocess, sys
open("/proc/self/comm", "w").write(sys.argv[1])
child = subprocess.Popen(sys.argv[2:], stderr=subprocess.STDOUT)
print("child", child.pid, flush=True)
sys.stdin.read()
if sys.argv[1] == "nginx":  # as Kong's worker ends: told, and killed in the same breath
    child.terminate()
    child.kill()
os._exit(0)
"""


class Launched:
    """A process started by another, which ends when ``launcher.stdin`` is closed, and named nginx kills it first; both
    write to ``launcher.stdout``."""

    def __init__(self, parent: str, command: list[str]) -> None:
        """``parent`` is the launcher's name as the system shows it: Kong's workers are named nginx."""
        self.launcher = subprocess.Popen(
            [sys.executable, "-c", _PARENT, parent, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(HERE)},
        )
        self.pid = int(self.wait_line("child ").split()[1])
        self._descriptor = os.pidfd_open(self.pid)

    def wait_line(self, text: str) -> str:
        """The next line with ``text`` in it, waited for."""
        assert self.launcher.stdout
        for line in self.launcher.stdout:
            if text in line:
                return line
        raise AssertionError(f"ended without a line with {text!r}")

    def ends(self, timeout_s: float) -> bool:
        """The process (not its launcher) ends in this time."""
        return bool(select.select([self._descriptor], [], [], timeout_s)[0])

    def parent_pid(self) -> int:
        return int(Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[1])

    def stop(self) -> None:
        """Kill both."""
        self.launcher.kill()
        self.launcher.wait()
        with suppress(ProcessLookupError):  # ended
            signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)
        assert self.ends(5)
        os.close(self._descriptor)
        for pipe in (self.launcher.stdin, self.launcher.stdout):
            assert pipe
            pipe.close()


class ServerProcess:
    """A running server. ``lines`` is what it has written to stdout and stderr."""

    def __init__(self, command: list[str], prefix: Path, *options: str, socket_name: str = "probe.sock") -> None:
        self.path = prefix / socket_name
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._ended = False
        self.process = subprocess.Popen(
            [*command, "-p", str(prefix), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(HERE), "PYTHONUNBUFFERED": "1"},
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_ready(self) -> ServerProcess:
        self.wait_line("serving " if "kong_plugins.plugin_server" in self.process.args else "started at path")
        if "kong_plugins.plugin_server" not in self.process.args and "-g" not in self.process.args:
            while not self.path.exists():  # stock's thread server says so before it binds
                os.sched_yield()
        return self

    def wait_line(self, text: str, timeout_s: float = 15.0) -> str:
        """The first line with ``text`` in it, waited for."""
        with self._news:
            found = self._news.wait_for(
                lambda: self._ended or any(text in line for line in self.lines), timeout=timeout_s
            )
            for line in self.lines:
                if text in line:
                    return line
        raise AssertionError(f"no line with {text!r} ({'ended' if found else 'timeout'}):\n" + "\n".join(self.lines))

    def stop(self, how: int = signal.SIGTERM) -> int:
        """Signal it, wait for its end; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            return self.process.wait(15)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self._reader.join(5)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

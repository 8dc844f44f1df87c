"""The socket's place in the file system. It appears in one step, already listening, and replaces a stale one or a
predecessor's in one step; it is removed only by the process it belongs to."""

from __future__ import annotations

import _socket
import fcntl
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from kong_plugins.plugin_server.predecessor import Predecessor

_PATH_MAX = 107  # sun_path, less its NUL


class SocketFile:
    """A listening unix socket that is not at its path yet (see :meth:`publish`). It does not block.

    Raises:
        OSError: the directory is not there or not writable, or the path is too long for a socket.
    """

    def __init__(self, path: Path, mode: int, backlog: int) -> None:
        self.path = path
        self._mode, self._backlog = mode, backlog
        staging = path.with_name(f".{os.getpid()}.{path.name}")
        if len(os.fsencode(staging)) > _PATH_MAX:
            raise OSError(f"the socket's path {path} is too long: use a shorter --kong-prefix or --socket-name")
        self._staging = staging
        self.socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        self.socket.setblocking(False)
        with suppress(FileNotFoundError):
            staging.unlink()
        self.socket.bind(os.fspath(staging))
        staging.chmod(mode)
        self.socket.listen(backlog)
        self._identity = _identity(staging)
        self.predecessor = Predecessor(None)  # whose place publish() takes

    def is_free(self) -> bool:
        """Nobody answers at the path now."""
        with closing(_socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)) as probe:
            probe.setblocking(False)
            try:
                probe.connect(os.fspath(self.path))
            except BlockingIOError:  # its backlog is full
                return False
            except OSError:
                return True
            return False

    def publish(self) -> None:
        """Put it at its path. Connections wait in its backlog until someone accepts them."""
        if self._identity != _identity(self.path):
            with self._locked():
                self.predecessor = Predecessor.of(self.path)
                self._staging.rename(self.path)

    def is_gone(self) -> bool:
        """Nothing is at its path, although it was published: nobody can reach us any more."""
        return _identity(self.path) is None

    def renewed(self) -> SocketFile:
        """Another one, listening too, for the same path.

        Raises:
            OSError: as when it was made.
        """
        return SocketFile(self.path, self._mode, self._backlog)

    def is_replaced(self) -> bool:
        """A successor's is at its path."""
        return _identity(self.path) not in (None, self._identity)

    def withdraw(self) -> None:
        """Stop listening and remove the file, unless it is a successor's by now, or its directory is gone."""
        with suppress(FileNotFoundError), self._locked():
            for path in (self.path, self._staging):
                if _identity(path) == self._identity:
                    path.unlink()
        self.socket.close()
        self.predecessor.close()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # So that a successor cannot publish between our look and our unlink.
        directory = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            yield
        finally:
            fcntl.flock(directory, fcntl.LOCK_UN)  # in gevent's loop itself, close() takes effect a moment later
            os.close(directory)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.lstat()
    except FileNotFoundError:
        return None
    return stat.st_dev, stat.st_ino

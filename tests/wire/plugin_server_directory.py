"""What happens in a directory, told by the kernel in order and without a gap (inotify): no poll can miss it."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path
from types import TracebackType

_NAMES = {0x40: "moved away", 0x80: "moved here", 0x100: "created", 0x200: "deleted"}
_HEAD = struct.Struct("iIII")  # watch, mask, cookie, length of the name


class DirectoryWatch:
    """``with DirectoryWatch(directory) as watch``: what changed since."""

    def __init__(self, directory: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0 or libc.inotify_add_watch(self._descriptor, os.fsencode(directory), sum(_NAMES)) < 0:
            raise OSError(ctypes.get_errno(), f"cannot watch {directory}")

    def __enter__(self) -> DirectoryWatch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._descriptor)

    def changes_of(self, name: str) -> list[str]:
        """What happened to this entry since the last call, in order: created, deleted, moved here, moved away."""
        changes = []
        while True:
            try:
                data = os.read(self._descriptor, 65536)
            except BlockingIOError:
                return changes
            while data:
                _, mask, _, length = _HEAD.unpack_from(data)
                entry = data[_HEAD.size : _HEAD.size + length].rstrip(b"\0")
                data = data[_HEAD.size + length :]
                if entry == os.fsencode(name):
                    changes.append(_NAMES[mask & sum(_NAMES)])

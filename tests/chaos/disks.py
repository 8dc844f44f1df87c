"""Small disks of their own (tmpfs), which can be filled to the last byte and freed again. Needs root."""

from __future__ import annotations

import os
import subprocess
import threading
from contextlib import ExitStack, suppress
from pathlib import Path

PAGE = 4096
FILL_EVERY_S = 0.02


class Disk:
    """A tmpfs at ``path`` from its making until ``resources`` ends."""

    def __init__(self, path: Path, megabytes: int, resources: ExitStack) -> None:
        """
        Raises:
            OSError: this user may not mount, or there is no tmpfs.
        """
        self.path = path
        self._fill = path / "filler"
        self._freed = threading.Event()
        self._filler: threading.Thread | None = None
        path.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "chaos", str(path)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise OSError(done.stderr.strip())
        resources.callback(subprocess.run, ["umount", "-l", str(path)], check=False)

    def fill(self) -> None:
        """Full when it returns, and kept full: what others free is taken too."""
        self._freed.clear()
        self._fill_up()
        self._filler = threading.Thread(target=self._keep_full, name=f"filler of {self.path.name}", daemon=True)
        self._filler.start()

    def free(self) -> None:
        self._freed.set()
        if self._filler is not None:
            self._filler.join()
        self._fill.unlink(missing_ok=True)

    def _keep_full(self) -> None:
        while not self._freed.wait(FILL_EVERY_S):
            self._fill_up()

    def _fill_up(self) -> None:
        file = os.open(self._fill, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for size in (64 * PAGE, PAGE, 1):  # to the last byte
            with suppress(OSError):
                while os.write(file, bytes(size)):
                    pass
        os.close(file)


def why_no_disks(directory: Path) -> str:
    """Why none can be mounted here; empty when they can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "only root may mount a small disk"
    with ExitStack() as resources:
        try:
            Disk(directory / "probe", 1, resources)
        except OSError as error:
            return f"no small disk can be mounted: {error}"
    return ""

"""Who waits for the books says so, beside the file: then its holder need not give it up for nobody.

Each time DuckDB gives up a file that has grown it writes its index anew, half a second at a million events.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def _beside(path: Path) -> Path:
    # Not the file itself: closing any descriptor of it would drop the lock that DuckDB has on it.
    return path.with_name(f"{path.name}.waiting")


@contextmanager
def waiting_for(path: Path) -> Iterator[None]:
    """Within the block whoever holds ``path`` can see that somebody waits. A directory where nothing can be written is
    no error: then one waits unseen."""
    try:
        announced = os.open(_beside(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError:
        yield
        return
    try:
        fcntl.flock(announced, fcntl.LOCK_SH)
        yield
    finally:
        os.close(announced)


def somebody_waits_for(path: Path) -> bool:
    """Whether anybody is within :func:`waiting_for` now."""
    try:
        announced = os.open(_beside(path), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False  # nobody ever waited
    try:
        fcntl.flock(announced, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(announced)

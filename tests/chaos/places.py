"""Where a process runs: on this host, or on another of a :mod:`tests.chaos.hosts` network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from kong_plugins.cli.processes import free_port


class Place(Protocol):
    """``address`` is what others call it by."""

    @property
    def address(self) -> str: ...

    def command(self, argv: Sequence[str]) -> list[str]:
        """Runs ``argv`` there, under the pid of whoever runs it."""

    def free_port(self) -> int: ...


class Here:
    address = "127.0.0.1"

    def command(self, argv: Sequence[str]) -> list[str]:
        return list(argv)

    def free_port(self) -> int:
        return free_port()

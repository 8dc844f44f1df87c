"""Hosts of their own (network namespaces) on one switch, and their cables: pulled, silent or slow. Needs root and
iproute2.

The first host is the harness's: whoever enters it starts processes there. The switch and every other host's cable end
there too. Nothing of it is to be seen from outside.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import count

NET = "10.77.0"
CLONE_NEWNET = 0x40000000
SIOCETHTOOL, ETHTOOL_STXCSUM = 0x8946, 0x17
_FIRST_PORT = 7000
_numbers = count(1)


class Host:
    """One host and its cable."""

    def __init__(self, name: str, namespace: str, address: str) -> None:
        self.name = name
        self.namespace = namespace
        self.address = address
        self._ports = count(_FIRST_PORT)

    def command(self, argv: Sequence[str]) -> list[str]:
        return ["ip", "netns", "exec", self.namespace, *argv]

    def free_port(self) -> int:
        return next(self._ports)


class Network:
    """``hosts`` by name, from its making until ``resources`` ends."""

    def __init__(self, names: Sequence[str], resources: ExitStack) -> None:
        """
        Raises:
            OSError: this user or this machine may not make it.
        """
        stem = f"chaos-{os.getpid()}-{next(_numbers)}"
        self._home = f"{stem}-home"
        self.hosts: dict[str, Host] = {}
        self._make(self._home, resources)
        for switch in ("whole", "part"):
            _ip("-n", self._home, "link", "add", switch, "type", "bridge")
            _ip("-n", self._home, "link", "set", switch, "up")
        _ip("-n", self._home, "addr", "add", f"{NET}.1/24", "dev", "whole")
        for number, name in enumerate(names, start=2):
            host = self.hosts[name] = Host(name, f"{stem}-{name}", f"{NET}.{number}")
            self._make(host.namespace, resources)
            _ip(
                "-n",
                self._home,
                "link",
                "add",
                "name",
                name,
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                host.namespace,
            )
            _ip("-n", self._home, "link", "set", "dev", name, "master", "whole", "up")
            _ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", "eth0")
            _ip("-n", host.namespace, "link", "set", "eth0", "up")
            with _inside(host.namespace):
                _write_whole_checksums("eth0")

    def entered(self) -> AbstractContextManager[None]:
        """This thread, and what it starts, is on the first host."""
        return _inside(self._home)

    @contextmanager
    def pulled(self, name: str) -> Iterator[None]:
        """The cable is out, and its host knows."""
        namespace = self.hosts[name].namespace
        _ip("-n", namespace, "link", "set", "eth0", "down")
        try:
            yield
        finally:
            _ip("-n", namespace, "link", "set", "eth0", "up")

    @contextmanager
    def silent(self, *names: str) -> Iterator[None]:
        """What is sent to and from them is lost, and nobody says so."""
        for name in names:
            _ip("-n", self._home, "link", "set", "dev", name, "nomaster")
        try:
            yield
        finally:
            self._back(names)

    @contextmanager
    def apart(self, *names: str) -> Iterator[None]:
        """They reach one another, and nobody else does."""
        for name in names:
            _ip("-n", self._home, "link", "set", "dev", name, "master", "part")
        try:
            yield
        finally:
            self._back(names)

    @contextmanager
    def slow(self, name: str, milliseconds: int) -> Iterator[None]:
        """Each way takes so long."""
        _ip("-n", self._home, "link", "set", "dev", name, "nomaster")
        argv = ["ip", "netns", "exec", self._home, sys.executable, "-m", "tests.chaos.slow_cable"]
        relay = subprocess.Popen([*argv, name, "whole", str(milliseconds)], start_new_session=True)
        try:
            yield
        finally:
            relay.terminate()
            relay.wait()
            self._back((name,))

    def _back(self, names: Sequence[str]) -> None:
        for name in names:
            _ip("-n", self._home, "link", "set", "dev", name, "master", "whole")

    def _make(self, namespace: str, resources: ExitStack) -> None:
        _ip("netns", "add", namespace)
        resources.callback(_ip, "netns", "del", namespace)
        _ip("-n", namespace, "link", "set", "lo", "up")


def why_no_hosts() -> str:
    """Why there can be none here; empty when there can."""
    if not shutil.which("ip"):
        return "no `ip` on PATH (Debian: iproute2)"
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    with ExitStack() as resources:
        try:
            network = Network(["probe"], resources)
            with network.entered():
                pass
        except OSError as error:
            return f"no network namespaces here: {error}"
    return ""


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


@contextmanager
def _inside(namespace: str) -> Iterator[None]:
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        _enter(there)
        yield
    finally:
        _enter(before)
        os.close(before)
        os.close(there)


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _write_whole_checksums(interface: str) -> None:
    """A slow cable is no kernel that would complete them (``ethtool -K eth0 tx off``)."""
    wanted = ctypes.create_string_buffer(struct.pack("II", ETHTOOL_STXCSUM, 0))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCETHTOOL, struct.pack("16sP", interface.encode(), ctypes.addressof(wanted)))

"""What is done to whom and when: decided by a seed before anything begins, and the same for every run of it."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import StrEnum

from tests.chaos import limits
from tests.chaos.hosts import Network
from tests.chaos.ledgers import SentinelLedger
from tests.chaos.parts import wait_for
from tests.chaos.world import World


class Kind(StrEnum):
    KILL = "kill"
    RESTART = "restart"
    STOP = "stop"
    SOCKET = "socket"
    DISK = "disk"
    DESCRIPTORS = "descriptors"
    MEMORY = "memory"
    NETWORK = "network"
    FAILOVER = "failover"


# These need the ledger as three nodes with Sentinels; network needs hosts of their own for it, too.
OF_NODES = (Kind.NETWORK, Kind.FAILOVER)

_EACH = ("token-quota", "billing-events", "gateway", "engine", "collector", "sink", "ledger")
_BOTH = "token-quota+billing-events"
TARGETS: dict[Kind, tuple[str, ...]] = {
    Kind.KILL: (*_EACH, _BOTH, "collector+ledger", "gateway+ledger"),
    Kind.RESTART: _EACH,
    Kind.STOP: (*_EACH, _BOTH),
    Kind.SOCKET: ("token-quota", "billing-events", _BOTH),
    Kind.DISK: (
        *("ledger", "spool, ledger stopped", "books", "ledger+spool", "ledger+spool+books"),
        "ledger, killed while full",
    ),
    Kind.DESCRIPTORS: ("token-quota", "billing-events", "gateway", "collector", "ledger"),
    Kind.MEMORY: ("token-quota", "billing-events", "collector", "ledger"),
    Kind.NETWORK: (
        *("primary pulled", "primary silent", "replica silent", "all ledgers silent", "engine pulled", "engine silent"),
        *("engine slow", "primary slow", "primary alone with us", "replicas apart"),
    ),
    Kind.FAILOVER: (
        *("primary killed", "primary stopped", "primary leaves", "primary and its Sentinel killed", "replica killed"),
    ),
}  # fmt: skip
_SHORT, _MIDDLE, _LONG = (
    (0.1, 0.4),
    (0.7, 2.5),
    (3.5, 6.5),
)  # against the ledger's 0.5 s, a gateway's 3 s, a client's 6 s
_SECONDS: dict[Kind, tuple[tuple[float, float], ...]] = {
    Kind.KILL: ((0.0, 0.0), (0.0, 0.0), (0.0, 0.5), _MIDDLE),
    Kind.RESTART: ((0.0, 0.0), _SHORT),
    Kind.STOP: (_SHORT, _MIDDLE, _LONG),
    Kind.SOCKET: (_MIDDLE,),
    Kind.DISK: (_MIDDLE, _LONG),
    Kind.DESCRIPTORS: (_MIDDLE, _LONG),
    Kind.MEMORY: (_MIDDLE, _LONG),
    Kind.NETWORK: (_SHORT, _MIDDLE, _LONG),
    Kind.FAILOVER: (_MIDDLE, _LONG),
}
CROWD = 20
_SECOND = ("token-quota", "billing-events", "collector")
_SECOND_FAULT = 0.2  # of all faults: another process is killed while it lasts


@dataclass(frozen=True)
class Fault:
    """``pause_s``: before it begins. ``also``: killed in its midst. ``rest``: all is well again before the next."""

    number: int
    kind: Kind
    target: str
    pause_s: float
    seconds: float
    also: str | None
    rest: bool

    def __str__(self) -> str:
        lasts = f" for {self.seconds:.2f} s" if self.seconds else ""
        return f"{self.kind} {self.target}{lasts}" + (f", {self.also} killed meanwhile" if self.also else "")


def plan(seed: int, runs: int, kinds: Sequence[Kind], targets: Sequence[str] = ()) -> list[Fault]:
    """``targets``: only these, where any are given."""
    choose = random.Random(seed)
    faults = []
    for number in range(1, runs + 1):
        kind = choose.choice(kinds)
        target = choose.choice([each for each in TARGETS[kind] if not targets or each in targets])
        seconds = choose.uniform(*choose.choice(_SECONDS[kind]))
        also = choose.choice(_SECOND) if choose.random() < _SECOND_FAULT else None
        if also is not None and (seconds < _MIDDLE[0] or also in target):
            also = None
        pause_s, rest = choose.uniform(0.05, 0.6), choose.random() < 0.7
        faults.append(Fault(number, kind, target, pause_s, seconds, also, rest))
    return faults


def inflict(world: World, fault: Fault, network: Network | None) -> None:
    """From its beginning to its end; what ended of it is still gone then."""
    with _OF[fault.kind](world, fault, network):
        if fault.also is None:
            time.sleep(fault.seconds)
        else:
            time.sleep(fault.seconds / 2)
            world.parts[fault.also].send(signal.SIGKILL)
            world.parts[fault.also].restore()
            time.sleep(fault.seconds / 2)


@contextmanager
def _killed(world: World, fault: Fault, _network: Network | None) -> Iterator[None]:
    for name in fault.target.split("+"):
        world.parts[name].send(signal.SIGKILL)
    yield


@contextmanager
def _restarted(world: World, fault: Fault, _network: Network | None) -> Iterator[None]:
    """As an operator, systemd or a deployment does it."""
    pid = world.parts[fault.target].pid()
    world.parts[fault.target].send(signal.SIGTERM)
    # A gateway waits for streams, a plugin server for its events.
    wait_for(lambda: world.parts[fault.target].pid() != pid, f"{fault.target} ends", 45)
    yield


@contextmanager
def _stopped(world: World, fault: Fault, _network: Network | None) -> Iterator[None]:
    with _standing_still(world, fault.target.split("+")):
        yield


@contextmanager
def _standing_still(world: World, names: Sequence[str]) -> Iterator[None]:
    for name in names:
        world.parts[name].send(signal.SIGSTOP)
    try:
        yield
    finally:
        for name in names:
            world.parts[name].send(signal.SIGCONT)


@contextmanager
def _without_socket(world: World, fault: Fault, _network: Network | None) -> Iterator[None]:
    for name in fault.target.split("+"):
        world.socket_of(name).unlink(missing_ok=True)
    yield


@contextmanager
def _disk_full(world: World, fault: Fault, _network: Network | None) -> Iterator[None]:
    names, _, how = fault.target.partition(", ")
    disks = [world.disks[name] for name in names.split("+")]
    for disk in disks:
        disk.fill()
    try:
        if how == "ledger stopped":  # else nothing is written there
            with _standing_still(world, ["ledger"]):
                yield
        elif how == "killed while full":
            yield
            world.parts["ledger"].send(signal.SIGKILL)
        else:
            yield
    finally:
        for disk in disks:
            disk.free()


@contextmanager
def _few_descriptors(world: World, fault: Fault, _network: Network | None) -> Iterator[None]:
    # Sometimes a few are left: room for some of what it does, and none for the rest.
    with limits.few_descriptors(world.parts[fault.target].pid(), fault.number % 3), crowd(world):
        yield


@contextmanager
def _little_memory(world: World, fault: Fault, _network: Network | None) -> Iterator[None]:
    if fault.target == "ledger":
        with limits.full_ledger(world.ledger.client()):
            yield
    else:
        with limits.little_memory(world.parts[fault.target].pid()), crowd(world, words=100_000):
            yield


@contextmanager
def crowd(world: World, words: int = 1) -> Iterator[None]:
    """More clients at once than there are connections, with prompts of so many words."""
    enough = threading.Event()

    def ask() -> None:
        while not enough.is_set():
            world.serves("many " * words)
            enough.wait(0.02)

    threads = [threading.Thread(target=ask, name=f"crowd-{number}") for number in range(CROWD)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        enough.set()
        for thread in threads:
            thread.join()


@contextmanager
def _cut(world: World, fault: Fault, network: Network | None) -> Iterator[None]:
    assert network is not None
    assert isinstance(world.ledger, SentinelLedger)
    primary = world.ledger.nodes.primary() or 0
    names = [f"node{node}" for node in range(3)]
    others = [name for name in names if name != names[primary]]
    cuts: dict[str, Callable[[], AbstractContextManager[None]]] = {
        "primary pulled": lambda: network.pulled(names[primary]),
        "primary silent": lambda: network.silent(names[primary]),
        "replica silent": lambda: network.silent(others[0]),
        "all ledgers silent": lambda: network.silent(*names),
        "engine pulled": lambda: network.pulled("engine"),
        "engine silent": lambda: network.silent("engine"),
        "engine slow": lambda: network.slow("engine", 40),
        "primary slow": lambda: network.slow(names[primary], 40),
        "primary alone with us": lambda: network.silent(*others),
        "replicas apart": lambda: network.apart(*others),  # and elect one of them, whom we do not reach
    }
    with cuts[fault.target]():
        yield


@contextmanager
def _failing_over(world: World, fault: Fault, _network: Network | None) -> Iterator[None]:
    assert isinstance(world.ledger, SentinelLedger)
    nodes = world.ledger.nodes
    primary = nodes.primary() or 0
    match fault.target:
        case "primary killed":
            world.parts[f"ledger-{primary}"].send(signal.SIGKILL)
        case "primary and its Sentinel killed":
            world.parts[f"ledger-{primary}"].send(signal.SIGKILL)
            world.parts[f"sentinel-{primary}"].send(signal.SIGKILL)
        case "replica killed":
            world.parts[f"ledger-{(primary + 1) % 3}"].send(signal.SIGKILL)
        case "primary leaves":  # as a pod does that is replaced
            nodes.ask(primary, "leave")
            world.parts[f"ledger-{primary}"].send(signal.SIGTERM)
        case _:
            with _standing_still(world, [f"ledger-{primary}"]):
                yield
            return
    yield


_OF: dict[Kind, Callable[[World, Fault, Network | None], AbstractContextManager[None]]] = {
    Kind.KILL: _killed,
    Kind.RESTART: _restarted,
    Kind.STOP: _stopped,
    Kind.SOCKET: _without_socket,
    Kind.DISK: _disk_full,
    Kind.DESCRIPTORS: _few_descriptors,
    Kind.MEMORY: _little_memory,
    Kind.NETWORK: _cut,
    Kind.FAILOVER: _failing_over,
}

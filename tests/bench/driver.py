"""Kong's side of the wire as a load: many connections, one frame in flight on each, answers to PDK calls from tables.

One epoll loop and no framework, so that the driver stays cheaper than what it measures (it reports its own CPU).
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack

Answers = dict[str, Any]  # ctx.shared key → what Kong's table holds
Request = tuple[Answers, Answers | None]  # in access, in log (None: no log phase)


@dataclass
class Report:
    """What a run showed. Seconds; ``calls`` are PDK calls by phase."""

    requests: int = 0
    admitted: int = 0
    denied: int = 0
    wall_s: float = 0.0
    driver_cpu_s: float = 0.0
    access_s: list[float] = field(default_factory=list)
    log_s: list[float] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=lambda: {"access": 0, "log": 0})
    errors: list[str] = field(default_factory=list)

    def percentile_ms(self, which: list[float], share: float) -> float:
        ordered = sorted(which)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


class _Connection:
    """One connection working through requests, a phase at a time."""

    def __init__(self, path: Path, instance: int | str, requests: Iterator[Request], report: Report) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(str(path))
        self.unpacker = msgpack.Unpacker(strict_map_key=False, unicode_errors="surrogateescape", max_buffer_size=0)
        self.instance = instance
        self.requests = requests
        self.report = report
        self.msgid = 0
        self.phase = ""
        self.began = 0.0
        self.answers: Answers = {}
        self.later: Answers | None = None

    def call(self, method: str, argument: Any) -> None:
        self.msgid += 1
        self.socket.sendall(msgpack.packb([0, self.msgid, method, [argument]], unicode_errors="surrogateescape"))

    def begin(self) -> bool:
        """Start the next request; False when there is none."""
        following = next(self.requests, None)
        if following is None:
            return False
        self.answers, self.later = following
        self._event("access")
        return True

    def _event(self, phase: str) -> None:
        self.phase, self.began = phase, time.perf_counter()
        self.call("plugin.HandleEvent", {"InstanceId": self.instance, "EventName": phase})

    def readable(self) -> bool:
        """Take what arrived; False when this connection is done."""
        data = self.socket.recv(65536)
        if not data:
            self.report.errors.append(f"connection closed in {self.phase}")
            return False
        self.unpacker.feed(data)
        return all(self._frame(frame) for frame in self.unpacker)

    def _frame(self, frame: list[Any]) -> bool:
        if frame[0] == 2:  # a notification
            return True
        _, _, error, result = frame
        if error is not None:
            self.report.errors.append(f"{self.phase}: {error}")
            return self.begin()
        data = result["Data"]
        if isinstance(data, dict):
            self.report.calls[self.phase] += 1
            method, arguments = data["Method"], data["Args"]
            if method == "kong.response.exit":
                return self._ended(denied=True)
            step: dict[str, Any] = {"EventId": result["EventId"]}
            if method == "kong.ctx.shared.get" and arguments[0] in self.answers:
                step["Data"] = self.answers[arguments[0]]
            self.call("plugin.Step", step)
            return True
        return self._ended(denied=False)

    def _ended(self, *, denied: bool) -> bool:
        report = self.report
        took = time.perf_counter() - self.began
        if self.phase == "access":
            report.access_s.append(took)
            report.denied += denied
            report.admitted += not denied
            if self.later is not None and not denied:
                self.answers = self.later
                self._event("log")
                return True
        else:
            report.log_s.append(took)
        report.requests += 1
        return self.begin()


def start_instance(path: Path, name: str, config: str) -> int | str:
    """StartInstance; returns the id.

    Raises:
        RuntimeError: the server refused.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
        control.connect(str(path))
        control.sendall(msgpack.packb([0, 1, "plugin.StartInstance", [{"Name": name, "Config": config}]]))
        unpacker = msgpack.Unpacker(strict_map_key=False)
        while True:
            unpacker.feed(control.recv(65536))
            for frame in unpacker:
                if frame[0] == 1:
                    if frame[2] is not None:
                        raise RuntimeError(f"StartInstance: {frame[2]}")
                    started: int | str = frame[3]["Id"]
                    return started


def run(path: Path, instance: int | str, count: int, connections: int, make: Callable[[int], Request]) -> Report:
    """Send ``count`` requests over ``connections``; ``make(i)`` gives the tables Kong would hold for request i."""
    report = Report()
    requests = (make(number) for number in range(count))
    poll = select.epoll()
    live: dict[int, _Connection] = {}
    began, cpu = time.perf_counter(), time.process_time()
    for _ in range(connections):
        connection = _Connection(path, instance, requests, report)
        if connection.begin():
            live[connection.socket.fileno()] = connection
            poll.register(connection.socket.fileno(), select.EPOLLIN)
    while live:
        for number, _ in poll.poll():
            if not live[number].readable():
                poll.unregister(number)
                live.pop(number).socket.close()
    report.wall_s, report.driver_cpu_s = time.perf_counter() - began, time.process_time() - cpu
    return report

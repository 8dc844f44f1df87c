"""Where the first token's time goes: the kernel's timestamps of a request's packets on the loopback, hop by hop.

Nothing stands between the parts to measure them. Needs root (a raw socket) and Linux; one request at a time.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import re
import socket
import struct
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from typing import Any

from vllm_bench.figures import Row, spread
from vllm_bench.wire import Reply

SO_RCVBUFFORCE = 33  # root's way past net.core.rmem_max
SO_TIMESTAMPNS = 35
BUFFER_BYTES = 64 << 20
STARTED_S = 30.0
POLL_S = 0.2
SYN, ACK = 0x02, 0x10
TEXT = re.compile(rb'"(?:content|reasoning|reasoning_content)":\s?"[^"]')


@dataclass(frozen=True, slots=True)
class Packet:
    """A TCP segment that arrived. ``at_ns``: since the epoch."""

    at_ns: int
    source: int  # ports
    target: int
    flags: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Ports:
    engine: int
    gateway: int


@contextlib.contextmanager
def recorded(ports: Collection[int]) -> Iterator[list[Packet]]:
    """Record packets from and to ``ports``; the list is filled when the context ends.

    Raises:
        PermissionError: not root.
    """
    packets: list[Packet] = []
    _socket().close()
    context = multiprocessing.get_context("spawn")
    ready, stop = context.Event(), context.Event()
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_record, args=(frozenset(ports), ready, stop, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ready.wait(STARTED_S):
            raise TimeoutError("the recorder of packets did not start")
        yield packets
    finally:
        stop.set()
        packets += ours.recv()
        process.join()


def _socket() -> socket.socket:
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
    raw.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
    raw.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    raw.settimeout(POLL_S)
    return raw


def _record(ports: Collection[int], ready: Event, stop: Event, out: Connection) -> None:
    """In a process of its own: the load client's interpreter must not wait for it."""
    packets = []
    with _socket() as raw:
        ready.set()
        while not stop.is_set():
            try:
                data, notes, _, _ = raw.recvmsg(1 << 17, 256)
            except TimeoutError:
                continue
            packet = _packet(data, notes)
            if packet.source in ports or packet.target in ports:
                packets.append(packet)
    out.send(packets)


def _packet(data: bytes, notes: Sequence[tuple[int, int, bytes]]) -> Packet:
    seconds, nanoseconds = struct.unpack("qq", next(note for _, kind, note in notes if kind == SO_TIMESTAMPNS)[:16])
    start = 4 * (data[0] & 15)
    source, target = struct.unpack_from("!HH", data, start)
    payload = start + 4 * (data[start + 12] >> 4)
    return Packet(seconds * 1_000_000_000 + nanoseconds, source, target, data[start + 13], data[payload:])


def _first(packets: Sequence[Packet], *, source: int = 0, target: int = 0, text: bool = False) -> int | None:
    return next(
        (
            packet.at_ns
            for packet in packets
            if packet.payload
            and (not source or packet.source == source)
            and (not target or packet.target == target)
            and (not text or TEXT.search(packet.payload))
        ),
        None,
    )


def _legs(marks: Sequence[tuple[str, int | None]]) -> dict[str, float] | None:
    """Seconds from each mark to the next, under the later one's name; None when a mark was not seen."""
    times = [at for _, at in marks]
    if None in times:
        return None
    pairs = zip(marks[1:], times, strict=False)
    return {name: (at - before) / 1e9 for (name, at), before in pairs if at is not None and before is not None}


def legs(packets: Sequence[Packet], reply: Reply, ports: Ports, *, through: bool) -> dict[str, float] | None:
    """One answered request's legs in seconds; None when not all of its packets were seen.

    ``packets``: those from its sending to its end, in order.
    """
    if reply.first_s is None:
        return None
    began, heard = ("sent", reply.sent_ns), ("to the client", reply.sent_ns + int(reply.first_s * 1e9))
    text = _first(packets, source=ports.engine, text=True)
    before = [packet for packet in packets if text is not None and packet.at_ns < text]
    asked = _first(before[::-1], target=ports.engine)  # the last piece of the request
    engine = ("engine", text)
    if not through:
        return _legs([began, ("to the engine", asked), engine, heard])
    until = [packet for packet in before if asked is not None and packet.at_ns < asked]
    arrived = _first(until[::-1], target=ports.gateway)
    marks = [
        began,
        ("to the gateway", arrived),
        ("gateway until it asks the engine", asked),
        engine,
        ("gateway with the first token", _first(packets, source=ports.gateway, text=True)),
        heard,
    ]
    return _legs(marks)


def hops_row(packets: Sequence[Packet], replies: Sequence[Sequence[Reply]], ports: Ports) -> Row:
    """Percentiles of each leg in milliseconds, direct and through. ``replies``: of direct, then of the gateway."""
    ordered = sorted(packets, key=lambda packet: packet.at_ns)
    row: dict[str, Any] = {"requests": len(replies[0])}
    for way, answers in (("direct", replies[0]), ("through", replies[1])):
        seen, opened = [], 0
        for reply in answers:
            ends = reply.sent_ns + int(reply.total_s * 1e9)
            mine = [packet for packet in ordered if reply.sent_ns <= packet.at_ns <= ends]
            opened += sum(packet.flags & (SYN | ACK) == SYN and packet.target == ports.engine for packet in mine)
            found = legs(mine, reply, ports, through=way == "through")
            if found is not None and reply.good:
                seen.append(found)
        names = seen[0] if seen else ()
        row[f"{way}_ms"] = {name: spread((one[name] for one in seen), 1000) for name in names}
        row[f"{way}_seen"], row[f"{way}_opened_to_engine"] = len(seen), opened
    return row

"""Where a first token's time goes, told from packets."""

from __future__ import annotations

import socket
import threading
import time

import pytest
from vllm_bench.hops import ACK, SYN, Packet, Ports, hops_row, recorded
from vllm_bench.wire import Reply

PORTS = Ports(engine=8000, gateway=9000)
CLIENT, WORKER = 40000, 40001
EMPTY = b'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}'
TEXT = b'data: {"choices": [{"delta": {"reasoning": " the"}}]}'


def packet(at_ms: float, source: int, target: int, payload: bytes = b"", flags: int = ACK) -> Packet:
    return Packet(int(at_ms * 1e6), source, target, flags, payload)


def reply(sent_ms: float, first_ms: float, total_ms: float) -> Reply:
    return Reply(200, first_ms / 1e3, total_s=total_ms / 1e3, prompt=1, completion=1, sent_ns=int(sent_ms * 1e6))


DIRECT = [
    packet(1.0, CLIENT, PORTS.engine, b"POST"),
    packet(11.0, PORTS.engine, CLIENT, EMPTY),
    packet(12.0, PORTS.engine, CLIENT, TEXT),
]
THROUGH = [
    packet(101.0, CLIENT, PORTS.gateway, b"POST, a head"),
    packet(101.5, CLIENT, PORTS.gateway, b"a body"),
    packet(103.0, WORKER, PORTS.engine, flags=SYN),
    packet(103.5, WORKER, PORTS.engine, b"POST"),
    packet(114.0, PORTS.engine, WORKER, EMPTY),
    packet(114.5, PORTS.gateway, CLIENT, EMPTY),
    packet(115.0, PORTS.engine, WORKER, TEXT),
    packet(115.5, PORTS.gateway, CLIENT, TEXT),
    packet(120.0, PORTS.gateway, CLIENT, b"data: [DONE]"),
]


def test_each_leg_is_from_one_packet_to_the_next() -> None:
    """An empty delta is no token; a request is there with its last piece; a new connection is told."""
    row = hops_row([*THROUGH, *DIRECT], [[reply(0, 12.5, 20)], [reply(100, 16.5, 25)]], PORTS)
    assert {name: leg["p50"] for name, leg in row["direct_ms"].items()} == {
        "to the engine": 1.0,
        "engine": 11.0,
        "to the client": 0.5,
    }
    assert {name: leg["p50"] for name, leg in row["through_ms"].items()} == {
        "to the gateway": 1.5,
        "gateway until it asks the engine": 2.0,
        "engine": 11.5,
        "gateway with the first token": 0.5,
        "to the client": 1.0,
    }
    assert (row["direct_opened_to_engine"], row["through_opened_to_engine"]) == (0, 1)


def test_a_request_of_which_a_packet_is_missing_is_not_counted() -> None:
    row = hops_row(DIRECT[:-1], [[reply(0, 12.5, 20)], []], PORTS)
    assert (row["requests"], row["direct_seen"], row["direct_ms"]) == (1, 0, {})


def test_packets_of_the_loopback_are_recorded_as_they_come() -> None:
    """A real socket: what was sent, between the moments before and after it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        answering = threading.Thread(target=lambda: server.accept()[0].sendall(TEXT))
        answering.start()
        try:
            with recorded([port]) as packets:
                before = time.time_ns()
                with socket.create_connection(("127.0.0.1", port)) as client:
                    assert client.recv(1000) == TEXT
                answering.join()
                after = time.time_ns()
                time.sleep(0.3)  # past the recorder's poll
        except PermissionError:
            pytest.skip("a raw socket needs root")
    said = [one for one in packets if one.payload == TEXT]
    assert [(one.source, before < one.at_ns < after) for one in said] == [(port, True)]
    assert sum(one.flags & (SYN | ACK) == SYN for one in packets) == 1

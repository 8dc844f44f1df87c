"""Servers that sinks write to over a network: an HTTP receiver of CloudEvents, and librdkafka's mock cluster."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kong_plugins.application.ports import OutboxEntry
from tests.contract.sink_events import Booked
from tests.contract.sink_stores import booked, held_open

Answer = Callable[[list[dict]], Response | None]


class Receiver:
    """Counts each source and id once, as CloudEvents has it. ``answer`` may refuse a request before it is counted."""

    def __init__(self) -> None:
        self.events: dict[tuple[str, str], dict] = {}
        self.requests: list[tuple[str | None, str | None, int]] = []  # content type, authorization, events
        self.connections: set[object] = set()
        self.answer: Answer = lambda events: None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    async def _receive(self, request: Request) -> Response:
        body = json.loads(await request.body())
        events = body if isinstance(body, list) else [body]
        headers = request.headers
        self.requests.append((headers.get("content-type"), headers.get("authorization"), len(events)))
        self.connections.add(request.client)
        if (refusal := self.answer(events)) is not None:
            return refusal
        for event in events:
            self.events.setdefault((event["source"], event["id"]), event)
        return Response(status_code=204)

    def start(self) -> None:
        app = Starlette(routes=[Route("/api/v1/events", self._receive, methods=["POST"])])
        config = uvicorn.Config(app, host="127.0.0.1", port=self.port, log_level="critical", lifespan="off")
        self._server = uvicorn.Server(config)
        listener = config.bind_socket()
        listener.listen()  # who asks before uvicorn runs waits a moment
        self._thread = threading.Thread(target=self._server.run, args=([listener],), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        assert self._server is not None
        assert self._thread is not None
        self._server.force_exit = self._server.should_exit = True
        self._thread.join()


class HttpStore:
    def __init__(self, receiver: Receiver, **options: object) -> None:
        self.receiver = receiver
        text = "".join(f"&{name}={value}" for name, value in options.items())
        self.url = f"cloudevents+http://127.0.0.1:{receiver.port}/api/v1/events?timeout_s=30{text}"
        self.impatient_url = self.url.replace("timeout_s=30", "timeout_s=1")

    def read_back(self) -> list[Booked]:
        events = self.receiver.events.values()
        return booked(OutboxEntry("", event["id"], json.dumps(event).encode(), ()) for event in events)

    @contextmanager
    def away(self) -> Iterator[None]:
        self.receiver.stop()
        try:
            yield
        finally:
            self.receiver.start()


_CLUSTER = """
import sys
from confluent_kafka import Producer
cluster = Producer({"test.mock.num.brokers": 1})
(broker,) = cluster.list_topics(timeout=30).brokers.values()
print(f"{broker.host}:{broker.port}", flush=True)
sys.stdin.read()
"""


class MockCluster:
    """A Kafka cluster in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], address: str) -> None:
        self.process = process
        self.address = address


@contextmanager
def mock_cluster() -> Iterator[MockCluster]:
    with held_open([sys.executable, "-c", _CLUSTER]) as (process, said):
        yield MockCluster(process, said)


class KafkaStore:
    def __init__(self, cluster: MockCluster) -> None:
        self.cluster = cluster
        self.topic = f"events-{uuid.uuid4().hex}"
        self.url = f"kafka://{cluster.address}/{self.topic}?timeout_s=30"
        self.impatient_url = self.url.replace("timeout_s=30", "timeout_s=1.5")

    def messages(self) -> list:
        """Everything in the topic, duplicates and all."""
        from confluent_kafka import Consumer, KafkaError, TopicPartition

        consumer = Consumer(
            {
                "bootstrap.servers": self.cluster.address,
                "group.id": uuid.uuid4().hex,
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 10,
                "enable.auto.commit": False,
            }
        )
        try:
            partitions = consumer.list_topics(self.topic, timeout=30).topics[self.topic].partitions
            consumer.assign([TopicPartition(self.topic, number, 0) for number in partitions])
            messages, open_ends = [], len(partitions)
            while open_ends:
                message = consumer.poll(30)
                assert message is not None
                if message.error() is None:
                    messages.append(message)
                else:
                    assert message.error().code() == KafkaError._PARTITION_EOF, message.error()
                    open_ends -= 1
            return messages
        finally:
            consumer.close()

    def read_back(self) -> list[Booked]:
        """As its consumers count: each ``ce_id`` once."""
        seen: dict[str, OutboxEntry] = {}
        for message in self.messages():
            attributes = {name[3:]: value.decode() for name, value in message.headers() if name.startswith("ce_")}
            event = json.dumps({**attributes, "data": json.loads(message.value())})
            seen.setdefault(attributes["id"], OutboxEntry("", attributes["id"], event.encode(), ()))
        return booked(seen.values())

    @contextmanager
    def away(self) -> Iterator[None]:
        """The broker is silent: whether it took anything is not known."""
        os.kill(self.cluster.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.cluster.process.pid, signal.SIGCONT)

"""CloudEvents into a Kafka topic, in Kafka's binary content mode: attributes are headers, the value is ``data``.

At least once: a batch whose outcome got lost is written again, so whoever reads takes each ``ce_id`` once. A tenant's
events are on one partition, in the order they were written.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec

from kong_plugins.adapters.event_records import NotAnEvent, read_entry
from kong_plugins.adapters.sinks.secrets import Secret
from kong_plugins.application.ports import OutboxEntry, Rejected, SinkUnavailable

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Message, Producer

TIMEOUT_S = 30.0
_POLL_S = 0.1
_LOG = logging.getLogger(__name__)
_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_text = msgspec.json.Decoder(str).decode
_CONTENT_TYPE = "datacontenttype"


class KafkaSink:
    """Events of the outbox as messages keyed by tenant. Its threads write in turns."""

    def __init__(
        self,
        servers: str,
        topic: str,
        *,
        user: str | None = None,
        password: Secret,
        settings: Mapping[str, str | int] | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """``servers``: HOST:PORT, several with commas. ``settings``: of librdkafka, for encryption and compression.
        ``timeout_s``: for a batch to be acknowledged by all replicas that are in sync. Connects when first written to.

        Raises:
            ValueError: librdkafka does not take a setting.
            SinkUnavailable: the password's file cannot be read.
        """
        from confluent_kafka import KafkaException

        self._servers = servers
        self._topic = topic
        self._user = user
        self._password = password
        self._settings = dict(settings or {})
        self._timeout_s = timeout_s
        self._turn = threading.Lock()
        self._producer: Producer | None = None
        self._last_error = ""
        try:
            self._connect()
        except KafkaException as error:
            raise ValueError(f"Kafka: {error.args[0].str()}") from None
        self._drop_producer()

    def __repr__(self) -> str:
        return f"KafkaSink({self._servers!r}, {self._topic!r})"

    def write(self, entries: Sequence[OutboxEntry]) -> tuple[Rejected, ...]:
        """Acknowledged by the topic's replicas when this returns. A message that is too large or that the broker finds
        invalid is rejected; any other failure is about the whole batch."""
        rejected: list[Rejected] = []
        messages: dict[str, tuple[OutboxEntry, dict[str, Any]]] = {}
        for entry in entries:
            try:
                event, _ = read_entry(entry)
            except NotAnEvent as reason:
                rejected.append(Rejected(entry, str(reason)))
            else:
                messages.setdefault(event.id, (entry, _message(entry.event, event.data.tenant)))
        if messages:
            with self._turn:
                rejected += self._produce(messages.values())
        return tuple(rejected)

    def close(self) -> None:
        with self._turn:
            self._drop_producer()

    def _produce(self, messages: Collection[tuple[OutboxEntry, dict[str, Any]]]) -> list[Rejected]:
        from confluent_kafka import KafkaException

        delivery = _Delivery()
        deadline = time.monotonic() + self._timeout_s
        try:
            producer = self._connect()
            for entry, message in messages:
                report = delivery.expect(entry)
                while True:
                    try:
                        producer.produce(self._topic, **message, on_delivery=report)
                        break
                    except KafkaException as error:
                        report(error.args[0], None)
                        break
                    except BufferError:  # librdkafka's queue is full: let it send some
                        producer.poll(_POLL_S)
                        if time.monotonic() > deadline:
                            raise SinkUnavailable(self._why(f"its queue is full for {self._timeout_s} s")) from None
            while delivery.missing and time.monotonic() < deadline + _POLL_S:
                producer.poll(_POLL_S)
        except KafkaException as error:  # a file that the settings name is gone
            raise SinkUnavailable(self._why(error.args[0].str())) from None
        finally:
            if delivery.missing or delivery.failure is not None:
                self._drop_producer()
        if delivery.failure is not None:
            raise SinkUnavailable(self._why(delivery.failure))
        if delivery.missing:
            raise SinkUnavailable(self._why(f"{delivery.missing} messages without an answer in {self._timeout_s} s"))
        return delivery.rejected

    def _connect(self) -> Producer:
        if self._producer is None:
            from confluent_kafka import Producer

            self._last_error = ""
            secrets: dict[str, str] = {}
            if self._user is not None:
                secrets = {"sasl.username": self._user, "sasl.password": self._password.read() or ""}
            self._producer = Producer(
                {
                    "bootstrap.servers": self._servers,
                    "client.id": "token-quota",
                    "enable.idempotence": True,  # a retry by librdkafka itself is no second message
                    "acks": "all",
                    "partitioner": "murmur2_random",  # as every other client of Kafka spreads keys
                    "linger.ms": 5,
                    "message.timeout.ms": int(self._timeout_s * 1000),
                    "error_cb": self._remember,
                    **self._settings,
                    **secrets,
                },
                logger=_LOG,
            )
        return self._producer

    def _drop_producer(self) -> None:
        """With what is still in its queues: those messages are written again, by another."""
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.purge()
            producer.flush(0)

    def _remember(self, error: KafkaError) -> None:
        self._last_error = error.str()

    def _why(self, reason: str) -> str:
        last = f" (the last error: {self._last_error})" if self._last_error else ""
        return f"cannot write to topic {self._topic!r} at {self._servers}: {reason}{last}"


class _Delivery:
    """What became of the messages of a batch."""

    def __init__(self) -> None:
        self.missing = 0
        self.failure: str | None = None
        self.rejected: list[Rejected] = []

    def expect(self, entry: OutboxEntry) -> Callable[[KafkaError | None, Message | None], None]:
        self.missing += 1

        def report(error: KafkaError | None, _message: Message | None) -> None:
            self.missing -= 1
            if error is None:
                return
            if error.code() in _refusals():
                self.rejected.append(Rejected(entry, error.str()))
            else:
                self.failure = error.str()

        return report


@cache
def _refusals() -> frozenset[int]:
    from confluent_kafka import KafkaError

    return frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_RECORD, KafkaError.INVALID_MSG})


def _message(event: bytes, tenant: str) -> dict[str, Any]:
    """Of an event that was found good: what ``produce`` takes."""
    attributes = _decode(event)
    data = bytes(attributes.pop("data"))
    kind = attributes.pop(_CONTENT_TYPE, None)
    headers = [("content-type", b"application/json" if kind is None else _header(kind))]
    headers += [(f"ce_{name}", _header(value)) for name, value in attributes.items() if bytes(value) != b"null"]
    return {"key": tenant.encode(), "value": data, "headers": headers}


def _header(value: msgspec.Raw) -> bytes:
    """An attribute that is no string, a number or a truth value, as it is in JSON."""
    raw = bytes(value)
    return _text(raw).encode() if raw.startswith(b'"') else raw

"""CloudEvents over HTTP, as OpenMeter's ``POST /api/v1/events`` takes them: events as they are, one or a batch.

The other side is to count each source and id once, as CloudEvents says: a batch whose answer got lost is sent again.
"""

from __future__ import annotations

import email.utils
import http.client
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from urllib.parse import SplitResult

from kong_plugins.adapters.event_records import NotAnEvent, read_entry
from kong_plugins.adapters.sinks.secrets import Secret
from kong_plugins.application.ports import OutboxEntry, Rejected, SinkUnavailable

TIMEOUT_S = 10.0
BATCH = 500
RETRY_AFTER_S_MAX = 300.0
_REFUSED = {400, 413, 422}  # this body, now and for ever
_SHOWN = 200
_READ_MAX = 1 << 16


class HttpSink:
    """Posts events to one address over one connection, its threads in turns."""

    def __init__(
        self,
        url: SplitResult,
        *,
        token: Secret,
        batch: int = BATCH,
        timeout_s: float = TIMEOUT_S,
        ca_file: str | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """``url``: http or https, with host and path. ``batch``: events in one request; 1 sends each by itself, as
        ``application/cloudevents+json``. ``ca_file``: who signs the other side's certificate, if not a public one.

        Raises:
            ValueError: ``ca_file`` cannot be read.
        """
        self._url = url
        self._token = token
        self._batch = batch
        self._timeout_s = timeout_s
        self._now = now
        self._turn = threading.Lock()
        self._connection: http.client.HTTPConnection | None = None
        self._not_before = 0.0
        try:
            self._tls = ssl.create_default_context(cafile=ca_file) if url.scheme == "https" else None
        except (OSError, ssl.SSLError) as error:
            raise ValueError(f"cannot read ca_file {ca_file}: {error}") from None

    def __repr__(self) -> str:
        return f"HttpSink({self._url.geturl()!r})"

    def write(self, entries: Sequence[OutboxEntry]) -> tuple[Rejected, ...]:
        """Durable there as far as its 2xx says so. 400, 413 and 422 are about the body, so it is halved until the
        event is found that is at fault; any other answer is about the whole, and waits (``Retry-After``)."""
        rejected: list[Rejected] = []
        events: dict[str, OutboxEntry] = {}
        for entry in entries:
            try:
                event, _ = read_entry(entry)
            except NotAnEvent as reason:
                rejected.append(Rejected(entry, str(reason)))
            else:
                events.setdefault(event.id, entry)
        good = list(events.values())
        with self._turn:
            for first in range(0, len(good), self._batch):
                rejected += self._post_or_halve(good[first : first + self._batch])
        return tuple(rejected)

    def close(self) -> None:
        with self._turn:
            self._disconnect()

    def _post_or_halve(self, entries: list[OutboxEntry]) -> list[Rejected]:
        refusal = self._post(entries)
        if refusal is None:
            return []
        if len(entries) == 1:
            return [Rejected(entries[0], refusal)]
        half = len(entries) // 2
        return self._post_or_halve(entries[:half]) + self._post_or_halve(entries[half:])

    def _post(self, entries: list[OutboxEntry]) -> str | None:
        """None: taken. Else why this body never will be."""
        if (left := self._not_before - self._now()) > 0:
            raise SinkUnavailable(f"{self._url.geturl()} asked to be left alone for another {left:.0f} s")
        if self._batch == 1:
            kind, body = "application/cloudevents+json", entries[0].event
        else:
            kind, body = "application/cloudevents-batch+json", b"[" + b",".join(e.event for e in entries) + b"]"
        headers = {"Content-Type": kind, "Accept": "application/json"}
        if token := self._token.read():
            headers["Authorization"] = f"Bearer {token}"
        answer, said = self._exchange(body, headers)
        if 200 <= answer.status < 300:
            return None
        shown = said[:_SHOWN].decode(errors="replace").strip()
        text = f"{self._url.geturl()} answered {answer.status} {answer.reason}" + (f": {shown}" if shown else "")
        if answer.status in _REFUSED:
            return text
        self._not_before = self._now() + _retry_after_s(answer.getheader("Retry-After"))
        if answer.status in {401, 403}:
            text += f" (the token is from {self._token!r})"
        raise SinkUnavailable(text)

    def _exchange(self, body: bytes, headers: dict[str, str]) -> tuple[http.client.HTTPResponse, bytes]:
        """A connection that was kept may have been closed by the other side meanwhile: then once more, on a new one."""
        for is_kept in (True, False) if self._connection is not None else (False,):
            connection = self._connect()
            try:
                connection.request("POST", self._url.path, body, headers)
                answer = connection.getresponse()
                said = answer.read(_READ_MAX)
            except (OSError, http.client.HTTPException, ValueError) as error:
                self._disconnect()
                if is_kept and isinstance(error, (http.client.RemoteDisconnected, BrokenPipeError, ConnectionError)):
                    continue
                raise SinkUnavailable(f"no answer from {self._url.geturl()}: {_without(headers, error)}") from None
            if not answer.isclosed():  # there is more than we want to read
                self._disconnect()
            return answer, said
        raise AssertionError("the last try returns or raises")

    def _connect(self) -> http.client.HTTPConnection:
        if self._connection is None:
            host, port = self._url.hostname or "", self._url.port
            if self._tls is not None:
                self._connection = http.client.HTTPSConnection(host, port, timeout=self._timeout_s, context=self._tls)
            else:
                self._connection = http.client.HTTPConnection(host, port, timeout=self._timeout_s)
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _without(headers: dict[str, str], error: Exception) -> str:
    """http.client quotes a header that it refuses to send, and that can be the token."""
    said = f"{type(error).__name__}: {error}"
    token = headers.get("Authorization")
    if isinstance(error, ValueError) and token is not None:
        return "the token has characters that no header can have"
    return said


def _retry_after_s(header: str | None) -> float:
    """Seconds, bounded: a wrong clock on the other side must not stop us for a day."""
    if header is None:
        return 0.0
    if header.strip().isdigit():
        return min(float(header), RETRY_AFTER_S_MAX)
    try:
        at = email.utils.parsedate_to_datetime(header).timestamp()
    except ValueError:
        return 0.0
    return min(max(at - time.time(), 0.0), RETRY_AFTER_S_MAX)

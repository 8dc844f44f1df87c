"""CloudEvents 1.0 over HTTP: one structured event, a batch, or one in headers and body (binary mode)."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import unquote

import msgspec

STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
EVENTS_MAX = 10_000


class NotCloudEvents(ValueError):  # noqa: N818 - what it is, not an accident
    """The body as a whole cannot be read. The message says how it should be."""


def read_body(content_type: str, headers: Iterable[tuple[str, str]], body: bytes) -> list[bytes]:
    """Each event as one line of JSON. Whether it is one of ours is not looked at.

    Raises:
        NotCloudEvents: no JSON, or not in one of the three modes.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == BATCH:
        events = _json(body)
        if not isinstance(events, list):
            raise NotCloudEvents(f"{BATCH} is a JSON array of events")
        if len(events) > EVENTS_MAX:
            raise NotCloudEvents(f"a batch has at most {EVENTS_MAX} events, not {len(events)}")
        return [msgspec.json.encode(event) for event in events]
    if media_type == STRUCTURED:
        return [msgspec.json.encode(_json(body))]
    # Values are percent-encoded in headers (CloudEvents' HTTP binding, 3.1.3.2).
    attributes = {name[3:]: unquote(value) for name, value in headers if name.startswith("ce-")}
    if "specversion" not in attributes:
        raise NotCloudEvents(
            f"send an event as {STRUCTURED}, several as {BATCH}, or attributes as ce-… headers and data as the body"
        )
    return [msgspec.json.encode({**attributes, "datacontenttype": content_type, "data": _json(body)})]


def _json(body: bytes) -> object:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NotCloudEvents(f"the body is no JSON: {error}") from None

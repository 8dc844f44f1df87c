"""What is posted to the collector by somebody who has its token and means harm, or by a Kong that is odd."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kong_plugins.adapters.event_records import read_event
from kong_plugins.adapters.ledger.memory_ledger import MemoryLedger
from kong_plugins.application.books import read_events
from kong_plugins.collector.cloud_events import NotCloudEvents, read_body
from kong_plugins.collector.intake import EVENT_BYTES_MAX, NAME_CHARS_MAX, Intake

RECORDS = [
    json.loads(path.read_text())
    for path in sorted((Path(__file__).parents[1] / "data" / "kong" / "serialize").glob("*.json"))
]
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=400),
    st.sampled_from(["\ud800", "\x00", "x" * 100_000, [], {}, [[]], {"": {}}, 2**53 + 1, -1, 1e308]),
)


def paths(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [here] if here else []
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        found += paths(inner, (*here, key))
    return found


@st.composite
def records(draw: st.DrawFn) -> Any:
    """A real record of Kong's with some of its values replaced."""
    record = json.loads(json.dumps(draw(st.sampled_from(RECORDS))))
    for path in draw(st.lists(st.sampled_from(paths(record)), min_size=1, max_size=4)):
        inner = record
        try:
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = draw(ODD)
        except (TypeError, KeyError, IndexError):
            continue  # replaced above
    return record


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(records(), max_size=4))
def test_any_record_is_booked_well_or_left(posted: list[Any]) -> None:
    """Never an exception, for Kong would send the same batch again and again; and every reader reads what was booked,
    with bounded names and sizes."""
    ledger = MemoryLedger(lambda: 1_800_000_000_000_000)
    counts = Intake(ledger).records(posted)
    assert sum(counts.values()) == len(posted)
    for entry in read_events(ledger):
        event = read_event(entry.event)
        assert len(entry.event) <= EVENT_BYTES_MAX
        assert len(event.id) <= NAME_CHARS_MAX


@pytest.mark.parametrize("started_at", [10**17, 2**63, 8_900_000_000_000])
def test_a_time_that_cannot_be_holds_up_no_batch(started_at: int) -> None:
    """Beyond every calendar, or beyond what sinks take: that record is left, those around it are booked."""
    good = next(record for record in RECORDS if Intake(MemoryLedger(lambda: 1)).records([record])["new"])
    bad = {**good, "started_at": started_at, "request": {**good["request"], "id": "bad"}}
    ledger = MemoryLedger(lambda: 1_800_000_000_000_000)
    assert Intake(ledger).records([bad, good]) == {"malformed": 1, "new": 1}


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=300) | ODD.map(repr).map(lambda text: text.encode("utf-8", "replace")),
    st.sampled_from(
        ["application/json", "application/cloudevents+json", "application/cloudevents-batch+json", "", "\xff"]
    ),
    st.lists(st.tuples(st.sampled_from(["ce-id", "ce-type", "ce-source", "x"]), st.text(max_size=20)), max_size=4),
)
def test_any_body_is_events_or_told_why_not(body: bytes, content_type: str, headers: list[tuple[str, str]]) -> None:
    """The reader of posted events raises nothing but its own error, and what it lets through is judged one by one."""
    ledger = MemoryLedger(lambda: 1_800_000_000_000_000)
    try:
        found = read_body(content_type, headers, body)
    except NotCloudEvents:
        return
    assert len(Intake(ledger).events(found)) == len(found)

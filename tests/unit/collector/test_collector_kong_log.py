"""Kong's log records, as Kong 3.9.1 really wrote them (tests/data/kong/serialize), read for what they bill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kong_plugins.adapters.kong_log import Seen, Skipped, read_record
from kong_plugins.adapters.kong_request import read_gate
from kong_plugins.domain.holds import Outcome
from kong_plugins.domain.usage import NO_USAGE, Evidence, Usage

RECORDS = Path(__file__).parents[2] / "data" / "kong" / "serialize"


def recorded(name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((RECORDS / f"{name}.json").read_text())
    return record


@pytest.mark.parametrize(
    ("name", "outcome", "evidence"),
    [
        ("200-json", Outcome.COMPLETED, Evidence.HELD),  # nobody told us what it used
        ("200-sse", Outcome.COMPLETED, Evidence.HELD),
        ("429-exit", Outcome.DENIED, Evidence.EXACT),  # ours: nothing was generated
        ("429-upstream", Outcome.FAILED, Evidence.EXACT),
        ("500-upstream", Outcome.FAILED, Evidence.EXACT),
        ("502-refused", Outcome.FAILED, Evidence.EXACT),
        ("499-abort-before-headers", Outcome.ABORTED, Evidence.HELD),  # the engine may have run
    ],
)
def test_a_record_says_how_a_request_ended(name: str, outcome: Outcome, evidence: Evidence) -> None:
    """Without usage it is zero, and the evidence tells whether that is known."""
    record = recorded(name)
    said = read_record(record)
    assert isinstance(said, Seen)
    assert (said.admitted.hold_id, said.admitted.tenant) == (record["request"]["id"], record["consumer"]["username"])
    assert (said.usage, said.evidence, said.outcome) == (NO_USAGE, evidence, outcome)
    assert said.ending.started_ms == record["started_at"]
    assert said.ending.status == record["response"]["status"]


@pytest.mark.parametrize("name", ["401-bad-key", "401-no-key", "log-consumer-none"])
def test_a_request_of_nobody_is_nobodys(name: str) -> None:
    assert read_record(recorded(name)) is Skipped.NO_CONSUMER


@pytest.mark.parametrize(
    "consumer",
    [
        {"id": "c1", "username": "tenant_a", "custom_id": "7"},
        {"id": "c1", "custom_id": "7"},
        {"id": "c1"},
    ],
)
def test_the_tenant_is_whom_the_plugins_charge(consumer: dict[str, str]) -> None:
    """Or a record would be booked beside the request's own hold, under another name."""
    gate = read_gate({"v": 1, "id": "r", "method": "POST", "path": "/v1", "consumer": consumer})
    assert gate is not None
    assert gate.consumer is not None
    said = read_record({**recorded("200-json"), "consumer": consumer})
    assert isinstance(said, Seen)
    assert said.admitted.tenant == gate.consumer.name


def test_a_tap_without_a_decision_tells_the_usage() -> None:
    """A route that is only billed: usage-tap without its guard, no token-quota."""
    tap = {"v": 1, "usage": {"prompt": 9, "completion": 4}, "evidence": "exact", "status": 200, "source": "service"}
    said = read_record({**recorded("200-json"), "usage_tap": {**tap, "started_ms": 5, "ended": True}})
    assert isinstance(said, Seen)
    assert (said.usage.prompt, said.usage.completion, said.evidence) == (9, 4, Evidence.EXACT)


def test_a_stream_cut_behind_its_last_usage_is_booked_at_what_was_known() -> None:
    """As billing-events books it, which has the same id: a record at zero could come first and stand."""
    tap = {"v": 1, "usage": {"prompt": 135, "completion": 10}, "text_bytes": 40, "status": 200, "source": "service"}
    said = read_record({**recorded("200-json"), "usage_tap": {**tap, "upstream_status": "200", "started_ms": 5}})
    assert isinstance(said, Seen)
    assert (said.usage, said.evidence) == (Usage(135, 10), Evidence.CONTINUOUS)


@pytest.mark.parametrize("record", [None, [], "x", 5, {}, {"request": []}, {"request": {"id": 5}, "started_at": "now"}])
def test_what_is_no_record_is_skipped(record: object) -> None:
    assert read_record(record) is Skipped.MALFORMED

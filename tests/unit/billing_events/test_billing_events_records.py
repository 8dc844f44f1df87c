"""billing-events alone: routes without token-quota, denials, who is left out, attributes; one PDK call each."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from scripted_kong import Bench, ScriptedKong, budget, tap_table

from kong_plugins.adapters.event_schemas import schemas
from kong_plugins.application.ports import LedgerUnavailable
from kong_plugins.billing_events import plugin
from kong_plugins.billing_events.schema import SCHEMA
from kong_plugins.domain.partitions import partition_of

USAGE = {"usage": {"prompt": 12, "completion": 40}, "evidence": "exact"}
CONSUMER = {"id": "5f6c", "username": "tenant_a"}
ABOUT = {
    "v": 1,
    "consumer": CONSUMER,
    "credential": "0123456789abcdef",
    "service": {"id": "s1", "name": "llm"},
    "route": {"id": "r-1", "name": "free"},
    "headers": {"x-team": "red", "org": "header"},
    "claims": {"org": "claim", "plan": "gold"},
    "model": "deepseek-r1",
}
DENIED = {"source": "exit", "upstream_status": None, "about": {"v": 1, "consumer": CONSUMER}}


def seen(**more: Any) -> dict[str, Any]:
    """The tap's table of a request that token-quota did not let through."""
    table = {
        "v": 1,
        "request_id": "req-1",
        "endpoint": "chat",
        "stream": False,
        "ended": True,
        "status": 200,
        "upstream_status": "200",
        "source": "service",
        "started_ms": 1_763_812_800_000,
        "last_ms": 1_763_812_801_500,
        "text_bytes": 0,
        "about": ABOUT,
        **more,
    }
    return {key: value for key, value in table.items() if value is not None}


def run(bench: Bench, *tables: dict[str, Any], **config: Any) -> list[dict[str, Any]]:
    """The events after the log phase of each, by a row of this configuration."""
    billing = plugin.Plugin({"ledger_url": "redis://127.0.0.1/0", "event_source": "/kong/test", **config}, bench.parts)
    for table in tables:
        kong = ScriptedKong(usage_tap=table).run(billing.log)
        assert kong.calls == ["ctx.shared.get usage_tap"]
    assert bench.parts.records.join(timeout_s=5)
    events = bench.events()
    for event in events:
        Draft202012Validator(schemas()[event["dataschema"]]).validate(event)
    return events


def test_a_route_without_budgets_is_billed_by_what_the_tap_saw() -> None:
    """Tenant, model, credential, names and usage; once, however often Kong runs the log phase."""
    (event,) = run(Bench(), seen(**USAGE, finish="stop"), seen(**USAGE, finish="stop"))
    data = event["data"]
    assert (event["id"], event["source"], event["subject"]) == ("req-1", "/kong/test", "tenant_a")
    assert (data["prompt"], data["completion"], data["evidence"], data["outcome"]) == (12, 40, "exact", "completed")
    assert (data["model"], data["service"], data["route"]) == ("deepseek-r1", "llm", "free")
    assert (data["consumer"], data["credential"]) == ("tenant_a", "0123456789abcdef")
    assert "prompt_bound" not in data


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"ended": False, "stream": True, "usage": {"prompt": 9, "completion": 5}, "evidence": "continuous"},
         (14, "continuous", "aborted")),
        ({"usage": {"prompt": 9, "completion": 5}, "text": "more", "text_bytes": 4}, (14, "continuous", "completed")),
        ({"status": 499, "ended": False, "source": "error", "upstream_status": "-"}, (0, "held", "aborted")),
        ({"status": 502, "source": "error", "upstream_status": "502"}, (0, "exact", "failed")),
        ({"status": 400, "upstream_status": "400"}, (0, "exact", "failed")),
    ],
)  # fmt: skip
def test_each_ending_is_booked_by_its_evidence(table: dict[str, Any], expected: tuple[int, str, str]) -> None:
    """Never more than the engine said, and never nothing where an engine was asked."""
    (event,) = run(Bench(), seen(**table))
    data = event["data"]
    assert (data["prompt"] + data["completion"], data["evidence"], data["outcome"]) == expected


@pytest.mark.parametrize(
    "table",
    [
        {"source": "exit", "upstream_status": None},  # a plugin answered: a cache, a replay
        {"status": 499, "source": "error", "upstream_status": None},  # its client left before an engine was asked
        {"about": None},  # token-quota let it through unmetered, or no metered path
        {"about": []},
        {"status": 401, **DENIED},  # denials are not asked for
        {"status": 429, **DENIED},
    ],
)
def test_what_no_engine_saw_has_no_event(table: dict[str, Any]) -> None:
    """Unless denials are wanted."""
    assert run(Bench(), seen(**table)) == []


DENIALS = {429: "over_budget", 401: "unauthenticated", 403: "unauthenticated", 413: "refused", 503: "refused"}


@pytest.mark.parametrize("wanted", ["over_budget", "unauthenticated", "refused"])
def test_denials_are_recorded_as_asked(wanted: str) -> None:
    """Zero usage, outcome denied, exact: nothing was generated."""
    tables = [seen(status=status, request_id=str(status), **DENIED) for status in DENIALS]
    events = run(Bench(), *tables, record_denials=[wanted])
    assert {int(event["id"]) for event in events} == {status for status, kind in DENIALS.items() if kind == wanted}
    for event in events:
        data = event["data"]
        assert (data["prompt"], data["completion"], data["outcome"], data["evidence"]) == (0, 0, "denied", "exact")
        assert data["status"] == int(event["id"])


def test_nobody_authenticated_is_anonymous() -> None:
    """A 401 of key-auth, before any plugin of ours."""
    table = seen(status=401, source="exit", upstream_status=None, about={"v": 1})
    (event,) = run(Bench(), table, record_denials=["unauthenticated"])
    assert (event["subject"], event["data"]["tenant"], event["data"]["model"]) == ("anonymous", "anonymous", "")


def test_a_flood_of_denials_is_bounded_and_takes_no_settlements_place(caplog: pytest.LogCaptureFixture) -> None:
    """The ledger is away: denials are dropped, said so seldom, and none of them is in the spool."""
    bench = Bench()
    billing = plugin.Plugin({"ledger_url": "redis://127.0.0.1/0", "record_denials": ["unauthenticated"]}, bench.parts)
    for number in range(1_500):
        ScriptedKong(usage_tap=seen(status=401, request_id=str(number), **DENIED)).run(billing.log)
    ScriptedKong(usage_tap=seen(**USAGE)).run(billing.log)
    assert bench.parts.records.join(timeout_s=10)
    ids = {entry.event_id for entry in bench.ledger.outbox(partition_of("tenant_a"), count=5_000)}
    assert len(ids) == 1_001
    assert "req-1" in ids
    dropped = [record for record in caplog.records if "dropped" in record.getMessage()]
    assert 1 <= len(dropped) <= 12


def test_usage_without_a_budget_outlives_an_outage() -> None:
    """It is money: the spool keeps it."""
    bench = Bench()
    billing = plugin.Plugin({"ledger_url": "redis://127.0.0.1/0"}, bench.parts)
    bench.ledger.record, record = _away, bench.ledger.record  # type: ignore[method-assign]
    ScriptedKong(usage_tap=seen(**USAGE)).run(billing.log)
    assert bench.events() == []
    bench.ledger.record = record  # type: ignore[method-assign]
    assert bench.parts.replayed(timeout_s=5)
    (event,) = bench.events()
    assert event["data"]["completion"] == 40


def _away(*_: object) -> bool:
    raise LedgerUnavailable("away")


@pytest.mark.parametrize(
    ("config", "left_out"),
    [
        ({"skip_tenants": ["tenant_*"]}, True),
        ({"skip_tenants": ["TENANT_A", "other"]}, False),
        ({"skip_routes": ["fr?e"]}, True),
        ({"skip_routes": ["r-1"]}, True),
        ({"skip_routes": ["paid"]}, False),
    ],
)
def test_who_is_left_out_has_no_event_of_its_own(config: dict[str, Any], left_out: bool) -> None:
    """By tenant, or by a route's name or id."""
    assert (run(Bench(), seen(**USAGE), **config) == []) == left_out


def test_a_posting_always_has_its_event_also_of_a_tenant_left_out() -> None:
    """And as token-quota writes it: nothing of this row changes an event that either may write."""
    bench = Bench(budgets=[budget()], event_headers=["x-team"], event_claims=["plan"])
    admitted = bench.access(headers={"x-team": "red"}, claims={"plan": "gold", "sub": "secret"})
    (event,) = run(bench, tap_table(admitted, **USAGE), skip_tenants=["*"], event_headers=["other"])
    assert event["data"]["attributes"] == {"x-team": "red", "plan": "gold"}
    assert event["source"] != "/kong/test"
    assert (bench.committed(), bench.held()) == (52, 0)


def test_attributes_come_from_the_headers_and_claims_that_are_named() -> None:
    """None without a name; a header wins over a claim of its name."""
    (event,) = run(Bench(), seen(**USAGE), event_headers=["X-Team", "ORG", "absent"], event_claims=["org", "plan"])
    assert event["data"]["attributes"] == {"x-team": "red", "org": "header", "plan": "gold"}
    (plain,) = run(Bench(), seen(**USAGE))
    assert plain["data"]["attributes"] == {}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"record_denials": ["all"]}, r"config\.record_denials\[1\]: expected one of"),
        ({"skip_tenants": [""]}, r"config\.skip_tenants\[1\]"),
        ({"ledger_timeout_ms": 5}, r"config\.ledger_timeout_ms"),
    ],
)
def test_a_wrong_field_is_named(config: dict[str, Any], message: str) -> None:
    """As Kong names it."""
    with pytest.raises(ValueError, match=message):
        plugin.Plugin({"ledger_url": "redis://127.0.0.1/0", **config})


def test_every_option_says_what_it_means() -> None:
    """The schema is what decK users read, and it can be sent to Kong."""
    assert all(attributes["description"] for entry in SCHEMA for attributes in entry.values())
    json.dumps(SCHEMA)

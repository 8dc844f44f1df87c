"""token-quota while its ledger is away, by mode; what passes is settled by either plugin's log phase, once."""

from __future__ import annotations

from typing import Any

import pytest
from scripted_kong import Bench, ScriptedKong, budget, tap_table

from kong_plugins.adapters.spool_postings import decode, encode
from kong_plugins.application.ports import LedgerUnavailable
from kong_plugins.billing_events import plugin as billing_events
from kong_plugins.domain.holds import HoldRequest, Registration, Settlement
from kong_plugins.domain.leases import LeaseOutcome, LeaseRequest

USAGE = {"usage": {"prompt": 12, "completion": 40}, "evidence": "exact"}
ADMITTED_BY = "X-Token-Quota-Admitted-By"


def cut_too(bench: Bench) -> Bench:
    """The line is cut for leases and registrations as for everything else."""
    ledger, lease, register = bench.ledger, bench.ledger.lease, bench.ledger.register

    def line() -> None:
        if ledger.cut:
            raise LedgerUnavailable("the line is cut")

    def cut_lease(request: LeaseRequest) -> LeaseOutcome:
        line()
        return lease(request)

    def cut_register(registration: Registration) -> bool:
        line()
        return register(registration)

    ledger.lease, ledger.register = cut_lease, cut_register  # type: ignore[method-assign]
    return bench


def bench_of(mode: str, **config: Any) -> Bench:
    return cut_too(Bench(budgets=[budget(limit=100_000)], store_outage=mode, lease_percent=50, **config))


def billing(bench: Bench, admitted: ScriptedKong) -> None:
    plugin = billing_events.Plugin({"ledger_url": "redis://127.0.0.1/0"}, bench.parts)
    ScriptedKong(usage_tap=tap_table(admitted, **USAGE)).run(plugin.log)
    plugin.close()


def test_closed_is_the_default_and_tells_what_refused() -> None:
    bench = Bench(budgets=[budget()])
    bench.ledger.cut = True
    refused = bench.access()
    assert (refused.status, refused.headers[ADMITTED_BY]) == (503, "closed")


@pytest.mark.parametrize("first", ["token-quota", "billing-events"])
def test_what_open_let_through_is_charged_once_whoever_settles_first(first: str) -> None:
    """The ledger is told and charged in either log phase; the other changes nothing."""
    bench = bench_of("open")
    bench.ledger.cut = True
    admitted = bench.access()
    assert admitted.decision["response"][ADMITTED_BY] == "open"
    bench.ledger.cut = False
    for plugin in [first, *({"token-quota", "billing-events"} - {first})]:
        if plugin == "token-quota":
            bench.log(admitted, **USAGE)
        else:
            billing(bench, admitted)
    assert (bench.committed(), bench.held()) == (52, 0)
    (event,) = bench.events()
    assert event["data"]["admitted_by"] == "open"


def test_what_ended_while_the_ledger_was_away_is_charged_when_it_is_back() -> None:
    """Through the spool, with what the ledger needs to hold it first."""
    bench = bench_of("open")
    bench.ledger.cut = True
    bench.log(bench.access(), **USAGE)
    assert bench.events() == []
    bench.ledger.cut = False
    assert bench.parts.replayed(timeout_s=20)
    assert (bench.committed(), bench.held(), len(bench.events())) == (52, 0, 1)


def test_a_registration_travels_whole() -> None:
    """To the log phase and through the spool: budgets, windows, weights, attempt, and bytes that were no UTF-8."""
    bench = Bench(
        store_outage="open",
        budgets=[
            budget(limit=100_000, time_zone="Asia/Kolkata"),
            budget("hour", 9_000, window="minute", window_kind="rolling", window_count=60),
            budget("flow", 9_000, window="minute", window_kind="bucket", counts="cached_weighted", mode="soft"),
        ],
    )
    requests: list[HoldRequest] = []
    hold = bench.ledger.hold
    bench.ledger.hold = lambda request: requests.append(request) or hold(request)  # type: ignore[func-returns-value,method-assign]
    bench.ledger.cut = True
    admitted = bench.access(consumer={"id": "5f6c", "username": "t\udcff"}, retry_count="0")
    settlements: list[Settlement] = []
    bench.ledger.settle = lambda settlement: settlements.append(settlement) or _away()  # type: ignore[func-returns-value,method-assign]
    bench.log(admitted, **USAGE)
    (asked,), told = requests, settlements[0].registration
    assert told is not None
    assert asked.attempt is not None
    assert (told.request.lines, told.request.attempt) == (asked.lines, asked.attempt)
    assert (told.request.tenant, told.request.hold_id, told.request.ttl_us) == (
        asked.tenant,
        asked.hold_id,
        asked.ttl_us,
    )
    assert told.request.event == settlements[0].event
    assert decode(encode(settlements[0])) == settlements[0]


def _away() -> Any:
    raise LedgerUnavailable("the line is cut")


@pytest.mark.parametrize("broken", ["", "no base64", "AAAA"])
def test_one_that_cannot_be_read_costs_no_event(broken: str, caplog: pytest.LogCaptureFixture) -> None:
    """The request is settled as one that the ledger has forgotten: billed, and no budget charged."""
    bench = bench_of("open")
    bench.ledger.cut = True
    admitted = bench.access()
    bench.ledger.cut = False
    admitted.decision["log"]["registration"] = broken
    bench.log(admitted, **USAGE)
    assert len(bench.events()) == 1
    assert bench.committed() == 0
    assert "charged to no budget" in caplog.text or "no budget is charged" in caplog.text

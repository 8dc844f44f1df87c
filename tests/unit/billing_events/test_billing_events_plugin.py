"""billing-events: the same event as token-quota's, whichever comes first."""

from __future__ import annotations

import pytest
from scripted_kong import Bench, ScriptedKong, budget, tap_table

from kong_plugins.billing_events import plugin

USAGE = {"usage": {"prompt": 12, "completion": 40}, "evidence": "exact"}


def test_it_has_a_log_phase_only() -> None:
    """It can neither delay nor refuse a request."""
    assert not hasattr(plugin.Plugin, "access")
    assert not hasattr(plugin.Plugin, "response")
    assert plugin.PRIORITY == 13


@pytest.mark.parametrize("first", ["token-quota", "billing-events"])
def test_whoever_comes_first_the_event_is_the_same_and_there_is_one(first: str) -> None:
    """Both log phases run for each request, in no promised order."""
    bench = Bench(budgets=[budget()])
    billing = plugin.Plugin({"ledger_url": "redis://127.0.0.1/0", "__seq__": 3}, bench.parts)
    admitted = bench.access()
    phases = [bench.plugin.log, billing.log]
    for phase in phases if first == "token-quota" else reversed(phases):
        kong = ScriptedKong(usage_tap=tap_table(admitted, **USAGE)).run(phase)
        assert kong.calls == ["ctx.shared.get usage_tap"]
    assert (bench.committed(), bench.held()) == (52, 0)
    (event,) = bench.events()

    alone = Bench(budgets=[budget()])
    alone.log(alone.access(), **USAGE)
    assert [event] == alone.events()


def test_usage_nobody_saw_is_left_to_token_quota() -> None:
    """It has no policy for it, and must not end the hold at nothing before token-quota counted."""
    bench = Bench(budgets=[budget()])
    billing = plugin.Plugin({"ledger_url": "redis://127.0.0.1/0"}, bench.parts)
    admitted = bench.access()
    held = bench.held()
    ScriptedKong(usage_tap=tap_table(admitted, ended=False)).run(billing.log)
    assert bench.held() == held > 0
    assert bench.events() == []


def test_refused_requests_are_none_of_its_business() -> None:
    """A tap's table without our log, or none."""
    bench = Bench()
    billing = plugin.Plugin({"ledger_url": "redis://127.0.0.1/0"}, bench.parts)
    for table in (None, {"v": 1, "status": 401, "source": "exit"}):
        ScriptedKong(usage_tap=table).run(billing.log)
    assert bench.events() == []


def test_without_a_ledger_it_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in the row nor in the environment."""
    monkeypatch.delenv("TOKEN_QUOTA_LEDGER_URL", raising=False)
    with pytest.raises(ValueError, match=r"config\.ledger_url: set it, or TOKEN_QUOTA_LEDGER_URL"):
        plugin.Plugin({})

"""What every ledger promises, in memory and in the real server."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kong_plugins.domain.budgets import COMPLETION, TOTAL, UNITS_MAX, Mode, Weights
from kong_plugins.domain.holds import HoldRequest, Line, Settlement, SettleOutcome, SettleStatus
from kong_plugins.domain.partitions import partition_of
from kong_plugins.domain.usage import NO_USAGE, Evidence, Usage
from kong_plugins.domain.windows import SLICES, FixedWindow, RollingWindow, TokenBucket, Unit
from tests.contract.conftest import GRACE_US, Bench

LONG_US = 60_000_000
MONTH = FixedWindow(Unit.MONTH, "Europe/Berlin", 15)
KINDS = [MONTH, RollingWindow(3600), TokenBucket(86_400)]
kinds = pytest.mark.parametrize("window", KINDS, ids=["fixed", "rolling", "bucket"])


def line(amount: int = 0, *, limit: int = 100, key: str = "daily", window=MONTH, weights=TOTAL, mode=Mode.HARD) -> Line:
    return Line(key, window, weights, limit, amount, mode)


def hold(bench: Bench, hold_id: str, *lines: Line, ttl_us: int = LONG_US, tenant: str = "acme"):
    return bench.ledger.hold(HoldRequest(tenant, hold_id, lines, ttl_us))


def settle(bench: Bench, hold_id: str, usage: Usage = NO_USAGE, tenant: str = "acme") -> SettleOutcome:
    return bench.ledger.settle(
        Settlement(tenant, hold_id, usage, Evidence.EXACT, b'{"settled":"%b"}' % hold_id.encode(errors="replace"))
    )


def counts(bench: Bench, probe: Line, tenant: str = "acme") -> tuple[int, int]:
    (state,) = bench.ledger.peek(tenant, [probe])
    return state.committed, state.held


def events(bench: Bench, tenant: str = "acme"):
    return [(e.event_id, e.event, e.posted) for e in bench.ledger.outbox(partition_of(tenant))]


@kinds
def test_holds_fill_a_budget_to_its_limit_and_not_one_unit_more(bench: Bench, window) -> None:
    """60 and 40 fit into 100, a further 1 does not; the refusal says so and holds nothing."""
    assert hold(bench, "a", line(60, window=window)).admitted
    assert hold(bench, "b", line(40, window=window)).admitted
    refused = hold(bench, "c", line(1, window=window))
    assert not refused.admitted
    assert refused.states[0].short
    assert refused.states[0].remaining == 0
    assert counts(bench, line(window=window)) == (0, 100)


@kinds
def test_settling_replaces_the_hold_by_the_real_usage(bench: Bench, window) -> None:
    """Also where the real usage is above what was held."""
    hold(bench, "a", line(60, window=window))
    hold(bench, "b", line(10, window=window))
    assert settle(bench, "a", Usage(7, 5)) == SettleOutcome(SettleStatus.POSTED, (("daily", 12),))
    assert settle(bench, "b", Usage(30, 20)).posted == (("daily", 50),)
    assert counts(bench, line(window=window)) == (62, 0)
    assert events(bench) == [
        ("a", b'{"settled":"a"}', (("daily", 12),)),
        ("b", b'{"settled":"b"}', (("daily", 50),)),
    ]


def test_all_lines_are_held_or_none(bench: Bench) -> None:
    """A second budget that refuses leaves the first untouched."""
    assert not hold(bench, "a", line(10), line(11, key="small", limit=10)).admitted
    assert counts(bench, line()) == (0, 0)


@pytest.mark.parametrize("mode", [Mode.SOFT, Mode.SHADOW])
def test_soft_and_shadow_lines_count_and_report_but_never_refuse(bench: Bench, mode: Mode) -> None:
    outcome = hold(bench, "a", line(150, mode=mode))
    assert outcome.admitted
    assert outcome.states[0].short
    assert outcome.states[0].held == 150


def test_asking_again_answers_as_the_first_time_did(bench: Bench) -> None:
    """Same states, same time, nothing held twice: while the hold is open and after its end."""
    first = hold(bench, "a", line(60))
    hold(bench, "b", line(10))
    again = hold(bench, "a", line(60))
    assert again == replace(first, repeated=True)
    settle(bench, "a", Usage(5, 5))
    assert hold(bench, "a", line(60)) == replace(first, repeated=True)
    assert counts(bench, line()) == (10, 10)


def test_a_refused_request_may_be_admitted_when_it_asks_again(bench: Bench) -> None:
    """It left no hold behind to repeat."""
    hold(bench, "a", line(100))
    assert not hold(bench, "b", line(50)).admitted
    settle(bench, "a", Usage(10))
    assert hold(bench, "b", line(50)).admitted


def test_the_second_settle_changes_nothing(bench: Bench) -> None:
    hold(bench, "a", line(60))
    first = settle(bench, "a", Usage(7, 5))
    assert settle(bench, "a", Usage(50, 50)) == SettleOutcome(SettleStatus.REPEATED, first.posted)
    assert counts(bench, line()) == (12, 0)
    assert len(events(bench)) == 1


def test_settling_what_was_never_held_changes_nothing(bench: Bench) -> None:
    assert settle(bench, "nobody", Usage(5)) == SettleOutcome(SettleStatus.UNKNOWN)
    assert events(bench) == []


def test_usage_is_weighed_as_it_was_when_held(bench: Bench) -> None:
    """Uncached 3, cached 1, completion 5 per 2 tokens and 4 a request: ceil((6*3 + 4*1 + 3*5)/2) + 4 = 23."""
    hold(
        bench, "a", line(60, weights=Weights(3, 1, 5, request=4, denominator=2)), line(9, key="out", weights=COMPLETION)
    )
    assert settle(bench, "a", Usage(10, 3, cached=4)).posted == (("daily", 23), ("out", 3))


def test_large_amounts_are_counted_to_the_unit(bench: Bench) -> None:
    """Where doubles would round: products above 2^53, counts near 2^50."""
    weights = Weights(260_000_000_003, 1, 0, denominator=1_000_000)
    tokens = 2**32 - 8  # doubles would count one unit less
    probe = line(limit=UNITS_MAX, weights=weights)
    assert hold(bench, "a", replace(probe, amount=UNITS_MAX)).admitted
    expected = -(-260_000_000_003 * tokens // 1_000_000)
    assert settle(bench, "a", Usage(tokens)).posted == (("daily", expected),)
    assert (
        not hold(bench, "b", replace(probe, amount=UNITS_MAX - expected + 1)).admitted
        if expected <= UNITS_MAX
        else True
    )
    (state,) = bench.ledger.peek("acme", [probe])
    assert state.committed == expected


def test_an_edited_limit_keeps_the_count(bench: Bench) -> None:
    hold(bench, "a", line(60))
    settle(bench, "a", Usage(60))
    assert not hold(bench, "b", line(1, limit=50)).admitted
    assert hold(bench, "b", line(100, limit=200)).states[0].committed == 60


def test_a_late_posting_goes_to_the_window_it_was_held_in(bench: Bench) -> None:
    """The next second has its full budget."""
    window = FixedWindow(Unit.SECOND)
    first = hold(bench, "a", line(100, window=window))
    bench.wait_until(first.states[0].reset_us)
    assert settle(bench, "a", Usage(90)).status is SettleStatus.POSTED
    fresh = hold(bench, "b", line(100, window=window))
    assert fresh.admitted
    assert fresh.states[0].committed == 0


@kinds
def test_a_lapsed_hold_frees_its_budget_yet_posts_once_when_it_is_settled(bench: Bench, window) -> None:
    first = hold(bench, "a", line(100, window=window), ttl_us=20_000)
    assert not hold(bench, "b", line(100, window=window)).admitted
    bench.wait_until(first.now_us + 20_000)
    assert hold(bench, "b", line(90, window=window)).admitted
    assert settle(bench, "a", Usage(30)).status is SettleStatus.POSTED
    assert settle(bench, "a", Usage(30)).status is SettleStatus.REPEATED
    assert counts(bench, line(window=window)) == (30, 90)
    assert len(events(bench)) == 1


def test_a_hold_nobody_settles_ends_with_its_own_event_and_no_charge(bench: Bench) -> None:
    """After the grace; a settle that comes later still changes nothing."""
    request = HoldRequest("acme", "a", (line(100),), 10_000, event=b'{"outcome":"expired"}')
    first = bench.ledger.hold(request)
    bench.wait_until(first.now_us + 10_000)
    assert bench.ledger.expire() == 0
    assert events(bench) == []
    bench.wait_until(first.now_us + 10_000 + GRACE_US)
    assert bench.ledger.expire() == 1
    assert bench.ledger.expire() == 0
    assert settle(bench, "a", Usage(30)) == SettleOutcome(SettleStatus.REPEATED)
    assert events(bench) == [("a", b'{"outcome":"expired"}', ())]
    assert counts(bench, line()) == (0, 0)


def test_the_grace_ends_by_the_clock_not_by_a_sweep(bench: Bench) -> None:
    """A settle after it is too late also when nobody swept."""
    first = hold(bench, "a", line(100), ttl_us=10_000)
    bench.wait_until(first.now_us + 10_000 + GRACE_US)
    assert settle(bench, "a", Usage(30)) == SettleOutcome(SettleStatus.REPEATED)
    assert events(bench) == [("a", b'{"id":"a","tenant":"acme","outcome":"expired","evidence":"held"}', ())]


def test_tightening_lowers_and_never_raises(bench: Bench) -> None:
    hold(bench, "a", line(60), line(60, key="other"))
    assert bench.ledger.tighten("acme", "a", [("daily", 20), ("other", 80), ("none", 1)])
    assert counts(bench, line()) == (0, 20)
    assert counts(bench, line(key="other")) == (0, 60)
    assert bench.ledger.tighten("acme", "a", [("daily", 50)])
    assert counts(bench, line()) == (0, 20)
    settle(bench, "a", Usage(5))
    assert counts(bench, line()) == (5, 0)
    assert not bench.ledger.tighten("acme", "a", [("daily", 1)])
    assert not bench.ledger.tighten("acme", "nobody", [("daily", 1)])
    assert counts(bench, line()) == (5, 0)


@kinds
def test_a_grant_is_a_posting_with_a_reason_made_once(bench: Bench, window) -> None:
    probe = line(window=window)
    bench.ledger.grant("acme", probe, 50, "launch week", "g1")
    state = bench.ledger.grant("acme", probe, 50, "launch week", "g1")
    assert state.remaining == 150
    bench.ledger.grant("acme", probe, -30, "too generous", "g2")
    assert not hold(bench, "a", line(121, window=window)).admitted
    assert hold(bench, "b", line(120, window=window)).admitted
    assert [(g.grant_id, g.line, g.amount, g.reason) for g in bench.ledger.grants("acme")] == [
        ("g2", "daily", -30, "too generous"),
        ("g1", "daily", 50, "launch week"),
    ]


@kinds
def test_a_reset_grants_exactly_what_was_committed(bench: Bench, window) -> None:
    """Open holds stay, and settle into the fresh count."""
    probe = line(window=window)
    hold(bench, "a", line(60, window=window))
    hold(bench, "b", line(30, window=window))
    settle(bench, "a", Usage(60))
    state = bench.ledger.reset("acme", probe, "goodwill", "r1")
    assert (state.committed, state.held) == (0, 30)
    settle(bench, "b", Usage(20))
    assert bench.ledger.reset("acme", probe, "goodwill", "r1").committed == 20
    assert bench.ledger.grants("acme")[0].amount in (60, 59)  # a bucket may have refilled by a unit meanwhile


def test_an_event_without_a_hold_is_recorded_once(bench: Bench) -> None:
    assert bench.ledger.record("acme", "denied-1", b"{}")
    assert not bench.ledger.record("acme", "denied-1", b"{}")
    assert settle(bench, "denied-1", Usage(5)).status is SettleStatus.REPEATED
    hold(bench, "a", line(1))
    assert not bench.ledger.record("acme", "a", b"{}")
    assert events(bench) == [("denied-1", b"{}", ())]


def test_the_outbox_is_read_in_order_from_any_position(bench: Bench) -> None:
    for number in range(5):
        bench.ledger.record("acme", f"e{number}", b"{}")
    partition = partition_of("acme")
    first = bench.ledger.outbox(partition, count=2)
    rest = bench.ledger.outbox(partition, after=first[-1].position)
    assert [e.event_id for e in (*first, *rest)] == ["e0", "e1", "e2", "e3", "e4"]
    assert bench.ledger.outbox((partition + 1) % 64) == ()


def test_balances_show_every_live_counter(bench: Bench) -> None:
    """With the limit and mode of the last request; other tenants' are not among them."""
    hold(bench, "a", line(10), line(20, key="burst", window=RollingWindow(60), limit=500, mode=Mode.SOFT))
    hold(bench, "b", line(5), tenant="other")
    settle(bench, "a", Usage(4))
    seen = [
        (b.state.key, b.state.limit, b.state.committed, b.state.held, b.window, b.mode)
        for b in bench.ledger.balances("acme")
    ]
    assert seen == [
        ("burst", 500, 4, 0, "rolling 60", "soft"),
        ("daily", 100, 4, 0, "fixed month Europe/Berlin 15", "hard"),
    ]
    assert bench.ledger.tenants() == ("acme", "other")


def test_an_ended_window_is_no_longer_shown(bench: Bench) -> None:
    outcome = hold(bench, "a", line(10, window=FixedWindow(Unit.SECOND)))
    bench.wait_until(outcome.states[0].reset_us)
    assert bench.ledger.balances("acme") == ()
    assert bench.ledger.tenants() == ()


def test_peeking_says_whether_an_amount_would_fit_and_changes_nothing(bench: Bench) -> None:
    assert bench.ledger.peek("acme", []) == ()
    hold(bench, "a", line(60))
    fits, lacks = bench.ledger.peek("acme", [line(40), line(41)])
    assert (fits.short, lacks.short) == (False, True)
    assert counts(bench, line()) == (0, 60)


def test_names_are_kept_apart_whatever_is_in_them(bench: Bench) -> None:
    """Separators, braces, other scripts and bytes that were no text, in tenant, hold id and line key."""
    names = ["a", "a/b", "a%2Fb", "{p1}", "团队", "\udcff", " ", "a:b"]
    for index, name in enumerate(names):
        assert hold(bench, f"b/{name}", line(index + 1, key=f"{name}|x"), tenant=name).admitted
    for index, name in enumerate(names):
        assert counts(bench, line(key=f"{name}|x"), tenant=name) == (0, index + 1)
        assert settle(bench, f"b/{name}", Usage(1), tenant=name).posted == ((f"{name}|x", 1),)
    assert bench.ledger.tenants() == tuple(sorted(names))


def test_no_tenant_can_name_anothers_hold(bench: Bench) -> None:
    """Tenant ``a`` with hold ``7/x`` and tenant ``a/7`` with hold ``x`` are two, in the same partition too."""
    part = next(str(n) for n in range(1000) if partition_of(f"a/{n}") == partition_of("a"))
    assert hold(bench, f"{part}/x", line(1), tenant="a").admitted
    assert not hold(bench, "x", line(2), tenant=f"a/{part}").repeated
    assert counts(bench, line(), tenant="a") == (0, 1)
    assert counts(bench, line(), tenant=f"a/{part}") == (0, 2)


def test_what_is_settled_after_its_hold_lapsed_counts_from_when_it_lapsed(bench: Bench) -> None:
    """In a rolling window; else an outage's late postings would throttle those who come after it."""
    window = RollingWindow(1)
    first = hold(bench, "a", line(100, window=window), ttl_us=1_000)
    lapsed_us = first.now_us + 1_000
    bench.wait_until(lapsed_us + 3 * window.slice_us)
    settle(bench, "a", Usage(100))
    refused = hold(bench, "b", line(1, window=window))
    assert refused.states[0].short
    assert refused.states[0].reset_us == (lapsed_us // window.slice_us + SLICES + 1) * window.slice_us


def test_a_bucket_of_a_month_is_exact_where_products_pass_2_to_the_53rd(bench: Bench) -> None:
    """Refilled and foretold to the microsecond: compared with whole numbers of any size."""
    window, limit = TokenBucket(2_678_400), 10**12 + 39
    probe = line(window=window, limit=limit)
    start = bench.ledger.grant("acme", probe, -limit, "empty it", "g1")
    assert start.committed == limit
    emptied_us = bench.ledger.grants("acme")[0].at_us
    bench.wait_until(emptied_us + 12_345)
    (state,) = bench.ledger.peek("acme", [probe])
    full_us = -(-limit * window.refill_us // limit)
    assert state.reset_us == emptied_us + full_us
    low, high = (
        limit - (at_us - emptied_us) * limit // window.refill_us for at_us in (bench.now(), emptied_us + 12_345)
    )
    assert low <= state.committed <= high


def test_a_rolling_amount_never_leaves_early_and_at_most_a_slice_late(bench: Bench) -> None:
    window = RollingWindow(1)
    hold(bench, "a", line(100, window=window))
    before = bench.now()
    settle(bench, "a", Usage(100))
    after = bench.now()
    refused = hold(bench, "b", line(1, window=window))
    assert not refused.admitted
    assert before + 1_000_000 <= refused.states[0].reset_us <= after + 1_000_000 + 2 * window.slice_us
    while not (outcome := hold(bench, "c", line(100, window=window))).admitted:
        bench.wait_until(outcome.now_us + window.slice_us // 4)
    assert outcome.now_us >= before + 1_000_000
    assert outcome.now_us >= refused.states[0].reset_us
    assert window.slice_us * SLICES >= 1_000_000


def test_a_bucket_refills_evenly(bench: Bench) -> None:
    """At 1,000 a second from empty, 100 units fit after a tenth of a second, as the refusal said."""
    window = TokenBucket(1)
    hold(bench, "a", line(1000, limit=1000, window=window))
    settle(bench, "a", Usage(1000))
    refused = hold(bench, "b", line(100, limit=1000, window=window))
    assert not refused.admitted
    assert 0 < refused.states[0].reset_us - refused.now_us <= 100_000
    bench.wait_until(refused.states[0].reset_us)
    assert hold(bench, "c", line(100, limit=1000, window=window)).admitted

"""Reconciliation over a real ledger, the engine stand-in and books: what happens is explained, each fault is found."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from reconcile_parts import HOUR_MS, MODEL, MONTH, Engine, World, changed
from typer.testing import CliRunner

from kong_plugins.adapters.ledger import EmbeddedValkey
from kong_plugins.adapters.ledger.audit import connect_audit
from kong_plugins.adapters.outbox import GroupQueue, connect_outbox
from kong_plugins.application.ports import Rejected
from kong_plugins.application.reconcile import Compared, EngineReport, named
from kong_plugins.application.reconcile_events import Kind
from kong_plugins.application.reconcile_scrapes import Tokens
from kong_plugins.cli.main import app
from kong_plugins.cli.reconcile_run import Result
from kong_plugins.domain.attempts import Attempt
from kong_plugins.domain.budgets import TOTAL
from kong_plugins.domain.holds import Line
from kong_plugins.domain.windows import window_at


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(tmp_path_factory.mktemp("reconcile")) as server:
        yield server


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    running = Engine("--token-delay-ms", "1", "--answer", "12")
    yield running
    running.stop()
    running.http.close()


@pytest.fixture
def unscraped(valkey: EmbeddedValkey, engine: Engine, tmp_path: Path) -> Iterator[World]:
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
    built = World(valkey.url, engine, tmp_path / "books.duckdb")
    yield built
    built.ledger.close()


@pytest.fixture
def world(unscraped: World) -> World:
    unscraped.scrape()
    return unscraped


def report(result: Result) -> EngineReport:
    (only,) = result.engines
    return only


def compared(result: Result) -> Compared:
    return report(result).compared


def test_what_happens_every_day_is_explained_by_event_ids(world: World) -> None:
    """Whole answers, several choices, a client that left, a retry, an event on its way: nothing is left over."""
    world.ask("whole")
    world.ask("two", choices=2)
    world.ask("left", leave_after=4)
    once = Attempt("key", "print", derived=False, retry=True, ttl_us=HOUR_MS * 1000)
    world.ask("first", leave_after=2, attempt=once)
    world.ask("second", attempt=once)
    world.ask("late")
    world.scrape()
    world.deliver(lambda entries: [each for each in entries if each.event_id != "late"])
    result = world.reconcile()
    assert result.status == 0, result
    found = compared(result)
    assert {each.kind for each in found.explanations} == {
        Kind.CHOICES, Kind.ABORTED, Kind.REVERSED, Kind.UNDELIVERED,
    }  # fmt: skip
    assert named(found.explanations, Kind.REVERSED) == ["reversal:first"]
    assert named(found.explanations, Kind.CHOICES) == ["two"]
    assert set(named(found.explanations, Kind.ABORTED)) == {"left", "first"}
    assert [each[:2] for each in result.undelivered] == [("late", "outbox")]
    (counter,) = result.counters
    assert [each.event_id for each in counter.explanations] == ["late"]
    assert counter.difference == counter.explanations[0].amount.low > 0


def test_a_dropped_event_is_missing_on_both_sides(world: World) -> None:
    """The engine counted it, the counter has it, the outbox has forgotten it."""
    for number in range(3):
        world.ask(f"r{number}")
    world.scrape()
    (dropped,) = (each for each in world.entries() if each.event_id == "r1")
    world.deliver(lambda entries: [each for each in entries if each.event_id != "r1"])
    with redis.Redis.from_url(world.ledger_url) as client:
        for key in client.scan_iter("*:outbox"):
            client.delete(key)
    result = world.reconcile()
    lost = json.loads(dropped.event)["data"]
    assert result.status == 1
    assert compared(result).unexplained == Tokens(lost["prompt"], lost["completion"])
    assert [each.unexplained for each in result.counters] == [lost["prompt"] + lost["completion"]]


def test_an_event_that_is_there_twice_is_named_with_its_twin(world: World) -> None:
    """Under another id it is another event to everybody but the engine."""
    world.ask("one")
    world.ask("other")
    world.scrape()
    world.deliver(lambda entries: [*entries, changed(entries[0], "copy")])
    result = world.reconcile()
    assert result.status == 1
    assert compared(result).unexplained.completion < 0
    assert result.counters[0].unexplained < 0
    (twins,) = result.suspects.twins
    assert "copy" in twins


def test_an_altered_count_is_named(world: World) -> None:
    """Its postings do not follow from it."""
    for number in range(12):
        world.ask(f"r{number}")
    world.scrape()
    world.deliver(lambda entries: [changed(each, completion=4) if each.event_id == "r7" else each for each in entries])
    result = world.reconcile()
    assert compared(result).unexplained == Tokens(0, 8)
    assert result.suspects.misposted == ("r7",)


def test_traffic_past_the_gateway_is_told_between_its_scrapes(world: World) -> None:
    """By how much, and when."""
    world.ask("before")
    world.scrape()
    usage = world.past_the_gateway()
    world.scrape()
    world.ask("after")
    world.scrape()
    world.deliver()
    result = world.reconcile()
    (leak,) = report(result).leaks
    assert result.status == 1
    assert leak.unexplained == compared(result).unexplained == Tokens(usage.prompt, usage.completion)
    assert all(each.unexplained == 0 for each in result.counters)
    before, after = (json.loads(each.event)["data"] for each in world.entries())
    assert before["last_ms"] * 1000 < leak.from_us < leak.to_us < after["started_ms"] * 1000


def test_an_engine_that_was_restarted_is_counted_from_both_its_lives(world: World) -> None:
    """Its counters began again at zero."""
    world.ask("before")
    world.ask("before too")
    world.scrape()
    world.engine.restart()
    world.ask("after")
    world.scrape()
    world.deliver()
    result = world.reconcile()
    assert result.status == 0, result
    assert compared(result).events == 3
    assert not compared(result).difference


def test_requests_that_nobody_settled_are_explained_by_their_holds(world: World) -> None:
    """While they are held by the hold, once it expired by its event; for no more than was held."""
    world.ask("lost", settle=False)
    world.ask("expired", ttl_us=1000, settle=False)
    assert world.ledger.expire() == 1
    world.scrape()
    world.deliver()
    result = world.reconcile()
    assert result.status == 0, result
    kinds = {each.event_id: each.kind for each in compared(result).explanations}
    assert kinds == {"lost": Kind.OPEN, "expired": Kind.EXPIRED}
    assert [each.hold_id for each in result.holds] == ["lost"]
    assert compared(result).explained[1].high == 2 * 64


def test_a_dead_letter_is_listed_with_its_reason(world: World) -> None:
    """It is in no outbox any more and in no books."""
    world.ask("refused")
    outbox = connect_outbox(world.ledger_url)
    outbox.register(["books"])
    queue = GroupQueue(outbox.calls, "books", "here")
    (entry,) = queue.take(10).entries
    queue.bury([Rejected(entry, "no such column")])
    outbox.trim()
    outbox.close()
    world.scrape()
    result = world.reconcile()
    assert result.status == 0, result
    assert result.undelivered == [("refused", "dead letter of books", "no such column")]


def test_a_counter_that_the_ledger_lost_is_found(world: World) -> None:
    """The books have what was posted to it; others of its window are still there."""
    world.ask("mine")
    world.ask("other", tenant="other")
    world.scrape()
    world.deliver()
    with redis.Redis.from_url(world.ledger_url) as client:
        (key,) = client.scan_iter("*count:tenant/*")
        client.delete(key)
    result = world.reconcile()
    unexplained = {each.counter.tenant: each.unexplained for each in result.counters}
    assert unexplained["other"] == 0
    assert unexplained["tenant"] < 0


def test_a_charge_that_was_posted_nowhere_is_listed(world: World) -> None:
    """It is billed; no counter has it, and none should."""
    world.ask("posted")
    world.scrape()
    world.deliver(lambda entries: [replace(each, posted=()) for each in entries])
    result = world.reconcile(ledger_url=world.ledger_url)
    assert [each[:2] for each in result.unposted] == [("posted", "tenant")]
    assert result.counters[0].unexplained > 0


def test_a_counter_can_be_read_after_its_window(world: World) -> None:
    """By its name: the current one here, and none of the month before."""
    world.ask("posted")
    (balance,) = world.ledger.balances("tenant")
    span = window_at(MONTH, world.started_ms * 1000)
    before = window_at(MONTH, span.start_us - 1)
    audit = connect_audit(world.ledger_url)
    found = audit.committed([("tenant", "monthly", MONTH, each.start_us) for each in (span, before)])
    audit.close()
    assert found == [balance.state.committed, None]


def test_grants_are_no_usage(world: World) -> None:
    """A counter goes down by what an operator gives; the events add up all the same."""
    world.ask("posted")
    world.ledger.grant("tenant", Line("monthly", MONTH, TOTAL, 10**9, 0), 500, "goodwill", "g1")
    world.scrape()
    world.deliver()
    result = world.reconcile()
    assert result.status == 0, result
    assert result.counters[0].difference == 0


def run(world: World, *arguments: str) -> tuple[int, str]:
    outcome = CliRunner().invoke(
        app, ["reconcile", "--books", str(world.books), "--ledger", world.ledger_url, *arguments]
    )
    return outcome.exit_code, outcome.output


def test_the_command_says_what_it_found(unscraped: World) -> None:
    """0 and the tables; as JSON the same; 1 with the amount, the scrapes and what it may be."""
    unscraped.engine.restart()  # a day's comparison begins with the engine's birth
    unscraped.ask("two", choices=2)
    unscraped.deliver()
    status, text = run(unscraped, "--engine", unscraped.engine.root, "--clock-slack-ms", "0")
    assert status == 0, text
    assert "n > 1" in text
    assert "the books balance" in text
    usage = unscraped.past_the_gateway()
    status, text = run(unscraped, "--engine", f"{unscraped.engine.root}/v1", "--clock-slack-ms", "0")
    assert status == 1, text
    assert f"unexplained: +{usage.prompt} prompt, +{usage.completion} completion tokens between the scrapes of" in text
    assert "past the gateway" in text
    status, text = run(unscraped, "--engine", unscraped.engine.root, "--clock-slack-ms", "0", "--format", "json")
    (told,) = json.loads(text)["engines"]
    assert (status, told["model"], told["unexplained"]["prompt"]) == (1, MODEL, usage.prompt)
    assert [(each["kind"], each["id"]) for each in told["explanations"]] == [("choices", "two")]


def test_the_command_says_what_is_missing(unscraped: World, tmp_path: Path) -> None:
    """2, with what to do, where it cannot compare."""
    unscraped.ask("one")
    unscraped.deliver()
    for arguments, fix in (
        ((), "start the collector with --engine"),
        (("--ledger", "unix:///nowhere.sock"), "--ledger"),
        (("--books", str(tmp_path / "none.duckdb")), "start the collector"),
        (("--engine", "http://127.0.0.1:9"), "127.0.0.1:9"),
        (("--alias", "nonsense"), "NAME=MODEL"),
        (("--day", "2999-01-01"), "not begun"),
        (("--time-zone", "Mars/North"), "IANA"),
    ):
        status, text = run(unscraped, *arguments)
        assert status == 2, text
        assert fix in text


def test_a_model_under_another_name_is_compared_when_told(world: World) -> None:
    """Its engine counts it under the name that it serves."""
    world.ask("named")
    world.scrape()
    world.deliver(lambda entries: [changed(each, model="r1-alias") for each in entries])
    assert any("--alias" in each for each in world.reconcile().missing)
    result = world.reconcile(aliases={"r1-alias": MODEL})
    assert result.status == 0, result

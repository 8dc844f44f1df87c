"""What attempts leave in the store: nothing where nobody tries again, nothing for ever, nothing outside its slot."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from kong_plugins.adapters.ledger import EmbeddedValkey, RedisLedger, connect_ledger
from kong_plugins.domain.attempts import AnswerKept, Attempt, Earlier, Standing
from kong_plugins.domain.budgets import TOTAL
from kong_plugins.domain.holds import HoldOutcome, HoldRequest, Line, Outcome, Settlement, SettleOutcome
from kong_plugins.domain.usage import Evidence, Usage
from kong_plugins.domain.windows import FixedWindow, RollingWindow, TokenBucket, Unit

HOUR_US = 3_600_000_000
LINES = (
    Line("daily", FixedWindow(Unit.DAY, "Europe/Berlin"), TOTAL, 1000, 10),
    Line("rolling", RollingWindow(60), TOTAL, 1000, 10),
    Line("bucket", TokenBucket(86_400), TOTAL, 1000, 10),
)
CLIENT = Attempt("key", "asked", derived=False, retry=False, ttl_us=10 * 60_000_000)
DERIVED = Attempt("key", "asked", derived=True, retry=True, ttl_us=10 * 60_000_000)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(tmp_path / "data") as server:
        yield server


@pytest.fixture
def ledger(server: EmbeddedValkey) -> Iterator[RedisLedger]:
    ledger = connect_ledger(server.url, timeout_s=5)
    yield ledger
    ledger.close()


def hold(ledger: RedisLedger, hold_id: str, attempt: Attempt | None = CLIENT, tenant: str = "acme") -> HoldOutcome:
    return ledger.hold(HoldRequest(tenant, hold_id, LINES, HOUR_US, attempt=attempt))


def settle(ledger: RedisLedger, hold_id: str, tokens: int, answer: bytes = b"", tenant: str = "acme") -> SettleOutcome:
    outcome, kept = (Outcome.COMPLETED, AnswerKept.KEPT) if answer else (Outcome.ABORTED, AnswerKept.NONE)
    usage = Usage(tokens)
    return ledger.settle(Settlement(tenant, hold_id, usage, Evidence.EXACT, b"{}", outcome, b"[]", answer, kept))


def test_a_hold_that_is_no_attempt_takes_no_command_for_attempts(server: EmbeddedValkey, ledger: RedisLedger) -> None:
    """Also when its settlement brings along what a retry would need."""
    of_attempts = ("tries:", "charged:", "answer:", "answers:", "answer_bytes:")
    with redis.Redis.from_url(server.url) as client, client.monitor() as monitor:
        for attempt in (None, CLIENT):
            client.echo(b"begin")
            hold(ledger, f"a{attempt}", attempt)
            settle(ledger, f"a{attempt}", 5, b"whole")
            client.echo(b"end")
            seen: Counter[str] = Counter()
            while not (command := monitor.next_command())["command"].startswith("ECHO end"):
                seen.update(
                    part for part in of_attempts if command["client_type"] == "lua" and part in command["command"]
                )
            assert bool(seen) == (attempt is not None), seen


def test_every_key_of_an_attempt_ends_when_it_is_forgotten(server: EmbeddedValkey, ledger: RedisLedger) -> None:
    """Not before it settled, so that its retry and its reversal find it; then no later than it was promised to be
    remembered, whatever else there was under its key."""
    with redis.Redis.from_url(server.url, decode_responses=True) as client:

        def longest_s() -> dict[str, float]:
            kinds = ("tries", "charged", "answer", "answers", "answer_bytes")
            found: dict[str, float] = {}
            for key in client.scan_iter():
                kind = key.partition(":")[2].partition(":")[0]
                if kind in kinds:
                    left_ms = client.pttl(key)
                    assert left_ms > 0, key
                    found[kind] = max(found.get(kind, 0), left_ms / 1000)
            return found

        for number, attempt in enumerate((CLIENT, DERIVED)):
            first, second, third = (f"{number}-{n}" for n in range(3))
            hold(ledger, first, attempt)
            assert longest_s()["tries"] > 24 * 3600
            settle(ledger, first, 5)
            assert max(longest_s().values()) < 601
            hold(ledger, second, attempt)
            left = longest_s()
            assert min(left["tries"], left["charged"]) > 24 * 3600
            settle(ledger, second, 7, b"whole")
            assert max(longest_s().values()) < 601
            assert set(longest_s()) == {"tries", "charged", "answer", "answers", "answer_bytes"}
            hold(ledger, third, attempt)
            assert max(longest_s().values()) < 601  # one that was not admitted changes nothing


def test_what_runs_beside_keeps_a_derived_key_and_only_that(server: EmbeddedValkey, ledger: RedisLedger) -> None:
    """Logical requests of one derived key share a record: it lasts as long as one of them runs."""
    first = Attempt("key", "asked", derived=True, retry=False, ttl_us=10 * 60_000_000)
    with redis.Redis.from_url(server.url) as client:
        for hold_id in "abc":
            hold(ledger, hold_id, first)
        (key,) = client.scan_iter("*tries:*")
        for hold_id in "ab":
            settle(ledger, hold_id, 5)
            assert client.ttl(key) > 24 * 3600
        settle(ledger, "c", 5)
        assert client.ttl(key) <= 601


def test_a_counter_that_is_gone_is_not_brought_back_by_a_reversal(server: EmbeddedValkey, ledger: RedisLedger) -> None:
    """Neither is it made anew with less than nothing on it."""
    with redis.Redis.from_url(server.url) as client:
        hold(ledger, "a")
        settle(ledger, "a", 5)
        counters = set(client.scan_iter("*count:*"))
        assert len(counters) == len(LINES)
        ledger.hold(HoldRequest("acme", "b", (), HOUR_US, attempt=CLIENT))
        client.delete(*counters)
        assert settle(ledger, "b", 9).reversed_id == "a"
        assert set(client.scan_iter("*count:*")) == set()
    partition = next(p for p in range(64) if ledger.outbox(p))
    assert ledger.outbox(partition)[-1].posted == (("daily", -5), ("rolling", -5), ("bucket", -5))


def test_answers_take_a_bounded_part_of_the_store(server: EmbeddedValkey) -> None:
    """Whatever a tenant asks, in bytes of the store itself."""
    bound = 200_000
    ledger = connect_ledger(server.url, timeout_s=5, answers_bytes=bound)
    with redis.Redis.from_url(server.url) as client:
        for number in range(300):
            attempt = Attempt(f"key-{number}", "asked", derived=False, retry=False, ttl_us=HOUR_US)
            hold(ledger, str(number), attempt)
            settle(ledger, str(number), 1, b"x" * (number * 37 % 4_000 + 1))
        keys = list(client.scan_iter("*answer*"))
        assert sum(client.memory_usage(key) or 0 for key in keys) < 1.5 * bound
        assert hold(ledger, "again", attempt).earlier == Earlier(
            Standing.FINISHED, "299", b"x" * (299 * 37 % 4_000 + 1)
        )
    ledger.close()


def test_a_cluster_serves_attempts(tmp_path: Path) -> None:
    """Every key is in the slot of its partition's hash tag, or the server would refuse it."""
    with socket.socket() as first, socket.socket() as second:
        for probe in (first, second):
            probe.bind(("127.0.0.1", 0))
        port, bus = (int(probe.getsockname()[1]) for probe in (first, second))
    extra = ("--cluster-enabled", "yes", "--cluster-port", str(bus))
    with EmbeddedValkey(tmp_path / "data", port=port, extra=extra):
        with redis.Redis(port=port) as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            while b"cluster_state:ok" not in client.execute_command("CLUSTER", "INFO", NEVER_DECODE=True):
                time.sleep(0.01)
        ledger = connect_ledger(f"redis+cluster://127.0.0.1:{port}", timeout_s=2)
        for tenant in ("acme", "globex", "initech"):
            for attempt in (CLIENT, DERIVED):
                ids = [f"{attempt.derived}-{n}" for n in range(3)]
                assert hold(ledger, ids[0], attempt, tenant).admitted
                settle(ledger, ids[0], 5, tenant=tenant)
                assert hold(ledger, ids[1], attempt, tenant).admitted
                assert settle(ledger, ids[1], 9, b"whole", tenant).reversed_id == ids[0]
                assert hold(ledger, ids[2], attempt, tenant).earlier == Earlier(Standing.FINISHED, ids[1], b"whole")
        ledger.close()

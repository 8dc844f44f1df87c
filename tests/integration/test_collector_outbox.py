"""Sinks' positions in the outbox, on a real Valkey: what each has had, what may go, what is refused."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st
from outbox_parts import Lines, event_of, fill, lines_in

from kong_plugins.adapters.ledger import EmbeddedValkey, connect_ledger
from kong_plugins.adapters.ledger.connect import open_client
from kong_plugins.adapters.outbox import GroupQueue, Outbox, connect_outbox, consumer_name
from kong_plugins.adapters.outbox.calls import Calls
from kong_plugins.application.deliver import Batch, Delivery, Pace, State
from kong_plugins.application.ports import LedgerUnavailable, OutboxEntry, Rejected, SinkUnavailable
from kong_plugins.domain.partitions import partition_of


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(scope="module")
def client(valkey: EmbeddedValkey) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey.url) as found:
        yield found


@pytest.fixture
def outbox(valkey: EmbeddedValkey, client: redis.Redis) -> Iterator[Outbox]:
    client.flushall()
    found = connect_outbox(valkey.url)
    yield found
    found.close()


def queue_of(outbox: Outbox, sink: str, consumer: str | None = None) -> GroupQueue:
    return GroupQueue(outbox.calls, sink, consumer or consumer_name(), claim_every_s=0.0)


def take_all(queue: GroupQueue) -> list[OutboxEntry]:
    taken: list[OutboxEntry] = []
    while batch := queue.take(500).entries:
        taken += batch
        queue.acknowledge(batch)
    return taken


def test_every_sink_gets_every_event_in_the_order_of_its_tenant(valkey: EmbeddedValkey, outbox: Outbox) -> None:
    """Two sinks, each with a position of its own; small batches do not turn a tenant's events around."""
    ids = fill(valkey.url, 200, tenants=3)
    for sink in ("one", "two"):
        queue = queue_of(outbox, sink)
        got = []
        while batch := queue.take(7).entries:
            got += batch
            queue.acknowledge(batch)
        assert sorted(entry.event_id for entry in got) == ids
        for tenant in range(3):
            mine = [entry.event_id for entry in got if f'"tenant":"tenant-{tenant}"'.encode() in entry.event]
            assert mine == sorted(mine)


def test_posted_amounts_come_with_the_entry(client: redis.Redis, outbox: Outbox) -> None:
    fields = {"id": "r1", "event": event_of("r1", "t"), "posted.daily|model=r1": 1580, "posted.cost": -20}
    client.xadd(f"{{p{partition_of('t')}}}:outbox", fields)  # type: ignore[arg-type]
    (entry,) = queue_of(outbox, "one").take(10).entries
    assert entry.event_id == "r1"
    assert entry.posted == (("daily|model=r1", 1580), ("cost", -20))


def test_a_read_is_bounded_however_much_there_is(valkey: EmbeddedValkey, outbox: Outbox) -> None:
    """A batch is about what was asked for, with one busy tenant as with many."""
    fill(valkey.url, 600, tenants=1)
    fill(valkey.url, 600, tenants=40, prefix="many")
    queue = queue_of(outbox, "one")
    for _ in range(5):
        assert 100 <= len(queue.take(200).entries) <= 264
        queue._claim_at = float("inf")


def test_what_is_released_comes_first_and_is_no_suspect(valkey: EmbeddedValkey, outbox: Outbox) -> None:
    """A sink that is away for a hundred tries makes no event a suspect, and its events keep their order."""
    ids = fill(valkey.url, 3, tenants=1)
    first, second = queue_of(outbox, "one"), queue_of(outbox, "one")
    for _ in range(50):
        for queue in (first, second):
            batch = queue.take(640)
            assert [entry.event_id for entry in batch.entries] == ids
            assert not batch.suspected
            queue.release(batch.entries, counted=False)
    (status,) = outbox.status()
    assert (status.pending, status.waiting) == (0, 3)
    ids += fill(valkey.url, 1, tenants=1, prefix="later")
    assert [entry.event_id for entry in take_all(first)] == ids


def test_a_silent_peer_is_relieved_after_a_while_and_a_live_one_is_not(valkey: EmbeddedValkey, outbox: Outbox) -> None:
    """A peer of another host: nobody can ask for its process, so its silence decides."""
    fill(valkey.url, 5, tenants=1)
    peer = queue_of(outbox, "one", "elsewhere-4711-abcd")
    taken = peer.take(10).entries
    assert queue_of(outbox, "one").take(640).entries == ()
    patient = GroupQueue(outbox.calls, "one", consumer_name(), silent_s=0.05, claim_every_s=0.0)
    while not (relieved := patient.take(640)).entries:
        time.sleep(0.01)
    assert relieved.entries == taken
    assert relieved.again
    peer.acknowledge(taken)  # it was only slow: the event is written twice, acknowledged once
    patient.acknowledge(taken)
    (status,) = outbox.status()
    assert (status.behind, status.dead) == (0, 0)


def test_a_consumer_of_this_host_whose_process_is_gone_is_relieved_at_once(
    valkey: EmbeddedValkey, outbox: Outbox
) -> None:
    fill(valkey.url, 5, tenants=1)
    gone = queue_of(outbox, "one", f"{socket.gethostname()}-999999999-abcd")  # no system has such a pid
    assert len(gone.take(10).entries) == 5
    assert len(queue_of(outbox, "one").take(640).entries) == 5


def test_a_refused_event_is_buried_once_with_its_reason_and_can_come_back(
    valkey: EmbeddedValkey, client: redis.Redis, outbox: Outbox, tmp_path: Path
) -> None:
    """Dead letters are exact through repeated burials, retry puts the entry back as it was, drop removes it."""
    ids = fill(valkey.url, 6, tenants=2)
    queue = queue_of(outbox, "one")
    entries = queue.take(10).entries
    bad = [Rejected(entry, f"no tenant {entry.event_id}") for entry in entries if entry.event_id in ids[:2]]
    queue.bury(bad)
    queue.bury(bad)  # the reply of the first was lost
    queue.acknowledge([entry for entry in entries if entry.event_id not in ids[:2]])
    (status,) = outbox.status()
    assert (status.behind, status.dead) == (0, 2)
    outbox.trim()
    letters = {letter.entry.event_id: letter for letter in outbox.dead_letters("one")}
    assert {event_id: letter.reason for event_id, letter in letters.items()} == {
        ids[0]: f"no tenant {ids[0]}",
        ids[1]: f"no tenant {ids[1]}",
    }
    assert list(outbox.dead_letters("two")) == []
    assert outbox.retry([letters[ids[0]].position]) == 1
    assert outbox.retry([letters[ids[0]].position]) == 0  # once
    assert outbox.drop([letters[ids[1]].position]) == 1
    assert list(outbox.dead_letters()) == []
    (back,) = take_all(queue)
    assert (back.event_id, back.event, back.posted) == (
        ids[0],
        letters[ids[0]].entry.event,
        letters[ids[0]].entry.posted,
    )
    (status,) = outbox.status()
    assert (status.behind, status.dead) == (0, 0)


def test_a_sink_that_is_away_holds_no_more_than_a_batch_and_a_probe(
    valkey: EmbeddedValkey, outbox: Outbox, tmp_path: Path
) -> None:
    """Back-pressure: however often it is tried, events stay in the outbox, not in memory; when it is back, all come."""
    ids = fill(valkey.url, 1500)
    away = tmp_path / "away"
    away.touch()
    sink = Lines(tmp_path / "lines", away=away)
    delivery = Delivery("one", queue_of(outbox, "one"), lambda: sink, Pace(128, 0.0))
    pauses = [delivery.step() for _ in range(12)]
    assert delivery.progress.state is State.DOWN
    assert pauses[:4] == [0.25, 0.5, 1.0, 2.0]
    assert max(pauses) == 15.0
    (status,) = outbox.status()
    assert (status.pending, status.waiting, status.dead) == (0, 1500, 0)
    away.unlink()
    while outbox.status()[0].behind:
        delivery.step()
    assert sorted(lines_in(tmp_path / "lines")) == ids  # none twice: nothing was ever half written
    assert sink.largest <= 128 + 64
    assert delivery.progress.state is State.UP
    delivery.close()


def test_a_tenants_order_holds_through_an_outage_under_load(
    valkey: EmbeddedValkey, outbox: Outbox, tmp_path: Path
) -> None:
    """The sink goes away while the next batch has been read already: that one does not go before the failed one."""
    ids = fill(valkey.url, 400, tenants=1)

    class Faltering(Lines):
        writes = 0

        def write(self, entries):  # type: ignore[no-untyped-def]
            self.writes += 1
            while self.writes == 2 and outbox.status()[0].pending < 100:
                time.sleep(0.001)  # until the next 50 have been read
            if self.writes in {2, 5}:
                raise SinkUnavailable("for a moment")
            return super().write(entries)

    sink = Faltering(tmp_path / "lines")
    queue = GroupQueue(outbox.calls, "one", consumer_name(), claim_every_s=3600.0)
    delivery = Delivery("one", queue, lambda: sink, Pace(50, 0.0))
    while outbox.status()[0].behind if outbox.status() else True:
        delivery.step()
    assert lines_in(tmp_path / "lines") == ids
    delivery.close()


def test_what_was_read_and_never_heard_of_is_read_again_at_once(valkey: EmbeddedValkey, outbox: Outbox) -> None:
    """The ledger handed entries out and its answer was lost: they come before any other, not minutes later."""

    class Losing(Calls):
        lose = False

        def scripts(self, calls):  # type: ignore[no-untyped-def]
            answers = super().scripts(calls)
            if self.lose:
                self.lose = False
                raise LedgerUnavailable("the answer was lost")
            return answers

    losing = Losing(open_client(valkey.url, timeout_s=5))
    queue = GroupQueue(losing, "one", consumer_name(), claim_every_s=3600.0)
    assert queue.take(640).entries == ()
    ids = fill(valkey.url, 5, tenants=1)
    losing.lose = True
    with pytest.raises(LedgerUnavailable):
        queue.take(640)
    ids += fill(valkey.url, 5, tenants=1, prefix="later")
    assert [entry.event_id for entry in take_all(queue)] == ids


def test_a_write_that_fails_in_a_way_nobody_foresaw_costs_no_event(
    valkey: EmbeddedValkey, outbox: Outbox, tmp_path: Path
) -> None:
    """One event that the sink chokes on ends in the dead letters, the others are written."""
    ids = fill(valkey.url, 12, tenants=4)

    class Choking(Lines):
        def write(self, entries):  # type: ignore[no-untyped-def]
            if any(entry.event_id == ids[5] for entry in entries):
                raise KeyError("a defect")
            return super().write(entries)

    delivery = Delivery("one", queue_of(outbox, "one"), lambda: Choking(tmp_path / "lines"), Pace(128, 0.0))
    for _ in range(60):
        delivery.step()
    assert set(lines_in(tmp_path / "lines")) == {*ids} - {ids[5]}
    (letter,) = outbox.dead_letters()
    assert letter.entry.event_id == ids[5]
    delivery.close()


def test_a_sink_that_is_gone_keeps_the_outbox_until_it_is_forgotten(
    valkey: EmbeddedValkey, client: redis.Redis, outbox: Outbox
) -> None:
    ids = fill(valkey.url, 20)
    outbox.register(["here", "gone"])
    take_all(queue_of(outbox, "here"))
    assert outbox.trim() == 0
    by_name = {status.sink: status for status in outbox.status()}
    assert (by_name["gone"].behind, by_name["gone"].attended, by_name["gone"].heard_s) == (20, False, None)
    assert by_name["here"].attended
    assert outbox.forget("gone")
    assert not outbox.forget("gone")
    assert outbox.trim() == len(ids)


def test_entries_are_kept_for_as_long_as_asked(valkey: EmbeddedValkey, outbox: Outbox) -> None:
    fill(valkey.url, 5)
    take_all(queue_of(outbox, "one"))
    assert outbox.trim(3600) == 0
    assert outbox.trim(0) == 5


def test_consumers_of_ended_processes_go_unless_they_hold_something(
    valkey: EmbeddedValkey, client: redis.Redis, outbox: Outbox
) -> None:
    """Removing a consumer removes what it holds from the group: it must hold nothing."""
    fill(valkey.url, 1, tenants=1)
    holding = queue_of(outbox, "one", "elsewhere-1-a")
    entries = holding.take(10).entries
    queue_of(outbox, "one", "elsewhere-2-b").take(10)
    key = f"{{p{partition_of('tenant-0')}}}:outbox"
    outbox.tidy("one", "me", after_s=0.0)
    assert [each["name"] for each in client.xinfo_consumers(key, "one")] == [b"elsewhere-1-a"]
    holding.acknowledge(entries)
    outbox.tidy("one", "me", after_s=0.0)
    assert client.xinfo_consumers(key, "one") == []


def test_a_round_of_all_partitions_is_one_round_trip(
    valkey: EmbeddedValkey, client: redis.Redis, outbox: Outbox
) -> None:
    """An idle collector's look at the outbox: 64 scripts, sent together."""
    queue = queue_of(outbox, "one")
    queue.take(100)
    queue._claim_at = float("inf")
    before = client.info("stats")["total_reads_processed"]
    queue.take(100)
    assert client.info("stats")["total_reads_processed"] - before <= 3  # ours, and those of INFO


SINKS = ("a", "b")
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 4)),
        st.tuples(st.just("take"), st.sampled_from((*SINKS, "ab")), st.integers(1, 6)),
        st.tuples(st.just("acknowledge"), st.sampled_from(SINKS), st.integers(0, 5)),
        st.tuples(st.just("release"), st.sampled_from(SINKS)),
        st.tuples(st.just("die"), st.sampled_from(SINKS)),
        st.tuples(st.just("join")),
        st.tuples(st.just("trim")),
    ),
    min_size=5,
    max_size=25,
)


def test_what_is_in_hand_is_not_trimmed(valkey: EmbeddedValkey, outbox: Outbox) -> None:
    """Everything was handed out, some of it acknowledged out of order: the first in hand, and all behind it, stay."""
    ids = fill(valkey.url, 4, tenants=1)
    queue = queue_of(outbox, "one")
    first, second, third, fourth = queue.take(640).entries
    queue.acknowledge([first, third])
    assert outbox.trim() == 1
    queue.release([second, fourth], counted=False)
    assert [entry.event_id for entry in take_all(queue)] == [ids[1], ids[3]]
    assert outbox.trim() == 3


@settings(max_examples=30)
@given(OPERATIONS)
def test_trimming_never_takes_what_a_sink_lacks(
    valkey: EmbeddedValkey, client: redis.Redis, operations: list[tuple[object, ...]]
) -> None:
    """Whatever is read, acknowledged out of order, released, taken over or joined in between: in the end each sink has
    had every event since it joined, and then the outbox is empty."""
    client.flushall()
    outbox, ledger = connect_outbox(valkey.url), connect_ledger(valkey.url)
    outbox.register(SINKS)
    added: list[str] = []
    had: dict[str, set[str]] = {sink: set() for sink in SINKS}
    missed: dict[str, set[str]] = {}
    queues = {sink: queue_of(outbox, sink) for sink in SINKS}
    hands: dict[str, list[OutboxEntry]] = {sink: [] for sink in SINKS}
    for number, operation in enumerate(operations):
        match operation:
            case ("add", int(count)):
                for _ in range(count):
                    event_id = f"e{len(added)}"
                    ledger.record("tenant", event_id, event_of(event_id, "tenant"))
                    added.append(event_id)
            case ("take", str(sinks), int(count)):
                for sink in sinks:
                    if not hands[sink]:
                        batch: Batch = queues[sink].take(64 * count)
                        hands[sink] = list(batch.entries)
            case ("acknowledge", str(sink), int(at)):
                if at < len(hands[sink]):
                    entry = hands[sink].pop(at)
                    queues[sink].acknowledge([entry])
                    had[sink].add(entry.event_id)
            case ("release", str(sink)):
                queues[sink].release(hands[sink], counted=False)
                hands[sink] = []
            case ("die", str(sink)):
                gone = f"{socket.gethostname()}-{999999000 + number}-x"
                queues[sink] = queue_of(outbox, sink, consumer_name())
                for entry in hands[sink]:
                    partition, _, stream_id = entry.position.partition(":")
                    client.xclaim(f"{{p{partition}}}:outbox", sink, gone, 0, [stream_id])
                hands[sink] = []
            case ("join",):
                if "c" not in had:
                    outbox.register(["c"])
                    left = client.xrange(f"{{p{partition_of('tenant')}}}:outbox")
                    missed["c"] = set(added) - {fields[b"id"].decode() for _, fields in left}
                    had["c"], hands["c"], queues["c"] = set(), [], queue_of(outbox, "c")
            case _:
                outbox.trim()
    for sink, queue in queues.items():
        queue.release(hands[sink], counted=False)
        outbox.trim()
        had[sink] |= {entry.event_id for entry in take_all(queue)}
    for sink, ids in had.items():
        assert ids == set(added) - missed.get(sink, set())
    outbox.trim()
    assert client.xlen(f"{{p{partition_of('tenant')}}}:outbox") == 0
    ledger.close()
    outbox.close()


def test_a_cluster_is_collected_like_a_single_server(tmp_path: Path) -> None:
    """Every script and command stays within one partition's hash tag."""
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        port, bus = one.getsockname()[1], two.getsockname()[1]
    extra = ("--cluster-enabled", "yes", "--cluster-port", str(bus))
    with EmbeddedValkey(tmp_path / "valkey", port=port, extra=extra) as server:
        with redis.Redis.from_url(server.url) as node:
            node.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            while b"cluster_state:ok" not in node.execute_command("CLUSTER", "INFO", NEVER_DECODE=True):
                time.sleep(0.01)
        url = f"redis+cluster://127.0.0.1:{port}"
        ids = fill(url, 100)
        outbox = connect_outbox(url)
        outbox.register(["one"])
        queue = queue_of(outbox, "one")
        entries = queue.take(1000).entries
        queue.bury([Rejected(entries[0], "no")])
        queue.release(entries[1:3], counted=True)
        queue.acknowledge(entries[3:])
        again = queue.take(1000)
        assert again.again
        queue.acknowledge(again.entries)
        assert {entry.event_id for entry in entries} == set(ids)
        assert outbox.trim() == len(ids)
        (letter,) = outbox.dead_letters()
        assert outbox.retry([letter.position]) == 1
        (status,) = outbox.status()
        assert (status.behind, status.dead) == (1, 0)
        outbox.tidy("one", "me", after_s=0.0)
        assert outbox.forget("one")
        outbox.close()

"""Which rank a request goes to."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from kong_plugins.domain.affinity import OpenByRank, preferred, prefix_key

HOUR_US = 3_600_000_000


def key(name: str, salt: str = "s") -> bytes:
    return prefix_key(salt, "r1", (name.encode(),), 1_000)


def enter(
    ranks: OpenByRank,
    hold_id: str,
    name: str,
    *,
    of: int = 4,
    percent: int = 125,
    now_us: int = 0,
    engine: str = "engine",
) -> int:
    return ranks.enter(hold_id, engine, key(name), of, overload_percent=percent, now_us=now_us, ttl_us=HOUR_US)


def test_a_key_is_of_salt_model_and_beginning() -> None:
    """Of none else, and the same in every process: a rolling restart must not send everybody elsewhere."""
    assert key("a").hex() == "ed2173268827c8610a802048a59dde84"
    others = [
        key("b"),
        key("a", "t"),
        prefix_key("s", "r2", (b"a",), 1_000),
        prefix_key("sr", "1", (b"a",), 1_000),
        prefix_key("s", "r1", (b"a", b""), 1_000),
    ]
    assert key("a") not in others
    assert len(set(others)) == len(others)


def test_only_the_beginning_counts() -> None:
    """So many bytes of all parts together."""
    parts = (b"system" * 10, b"user")
    assert prefix_key("s", "m", parts, 40) == prefix_key("s", "m", (parts[0] + b"more", parts[1]), 40)
    assert prefix_key("s", "m", parts, 63) == prefix_key("s", "m", (parts[0], b"useful"), 63)
    assert prefix_key("s", "m", parts, 64) != prefix_key("s", "m", (parts[0], b"useful"), 64)


def test_keys_spread_evenly_and_stay_where_they_are_when_a_rank_is_added() -> None:
    """4,000 keys over 4 ranks: each within a tenth of a thousand. A fifth rank takes a fifth of them, from all."""
    names = [str(n) for n in range(4_000)]
    first = {name: preferred(key(name), 4)[0] for name in names}
    assert all(900 < count < 1_100 for count in Counter(first.values()).values())
    after = {name: preferred(key(name), 5)[0] for name in names}
    moved = [name for name in names if after[name] != first[name]]
    assert {after[name] for name in moved} == {4}
    assert 700 < len(moved) < 900


def test_one_beginning_goes_to_one_rank_while_there_is_room() -> None:
    """One after the other: always the same."""
    ranks = OpenByRank()
    chosen = set()
    for n in range(20):
        chosen.add(enter(ranks, str(n), "hot"))
        ranks.leave(str(n))
    assert chosen == {preferred(key("hot"), 4)[0]}


def test_a_beginning_that_everybody_sends_spills_over_in_its_own_order() -> None:
    """The first request to its first rank, and no rank above 1.25 of its share."""
    ranks = OpenByRank()
    load = Counter(enter(ranks, str(n), "hot") for n in range(100))
    order = preferred(key("hot"), 4)
    assert max(load.values()) <= 32
    assert [load[rank] for rank in order] == sorted(load.values(), reverse=True)


@given(
    names=st.lists(st.sampled_from("abcdef"), max_size=60),
    of=st.integers(2, 9),
    percent=st.integers(100, 400),
    leaving=st.randoms(use_true_random=False),
)
def test_no_rank_ever_takes_more_than_its_bound(names: list[str], of: int, percent: int, leaving: object) -> None:
    """At every arrival: at most percent of an even share, rounded up, whoever left before."""
    ranks, under_way = OpenByRank(), []
    for n, name in enumerate(names):
        rank = enter(ranks, str(n), name, of=of, percent=percent)
        under_way.append((str(n), rank))
        there = sum(rank == other for _, other in under_way)
        assert there <= -(-percent * len(under_way) // (100 * of))
        while under_way and leaving.random() < 0.4:  # type: ignore[attr-defined]
            hold_id, _ = under_way.pop(leaving.randrange(len(under_way)))  # type: ignore[attr-defined]
            ranks.leave(hold_id)
    for hold_id, _ in under_way:
        ranks.leave(hold_id)
    emptied = [enter(ranks, f"after {n}", "a", of=of, percent=100) for n in range(of)]
    assert emptied == list(preferred(key("a"), of))  # nothing is left on any of them


def test_what_no_log_phase_told_of_does_not_count_for_ever() -> None:
    """A request whose gateway was killed is gone after its time; one that leaves twice leaves once."""
    ranks = OpenByRank()
    order = preferred(key("hot"), 4)
    enter(ranks, "lost", "hot")
    assert enter(ranks, "next", "hot", now_us=HOUR_US) == order[0]
    ranks.leave("next")
    ranks.leave("next")
    ranks.leave("lost")
    assert [enter(ranks, name, "hot", now_us=HOUR_US) for name in ("one", "two")] == list(order[:2])


def test_engines_do_not_share_their_load() -> None:
    ranks = OpenByRank()
    for n in range(8):
        enter(ranks, str(n), "hot")
    assert enter(ranks, "elsewhere", "hot", engine="another") == preferred(key("hot"), 4)[0]

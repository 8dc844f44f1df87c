"""The prefix cache against the obvious one: a set of all prefixes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kong_plugins.engine_sim.prefix_cache import PrefixCache

PROMPTS = st.lists(st.integers(0, 1), min_size=1, max_size=14)
SALTS = st.sampled_from([None, "a", "b"])


@given(st.lists(st.tuples(PROMPTS, SALTS), max_size=20), st.integers(1, 4))
def test_cached_is_the_longest_run_of_whole_blocks_seen_with_the_same_salt(
    requests: list[tuple[list[int], str | None]], size: int
) -> None:
    """Never the whole prompt; another salt shares nothing; new tokens are those no request had before."""
    cache = PrefixCache(size, 10_000)
    seen: set[tuple[str | None, tuple[int, ...]]] = set()
    for prompt, salt in requests:
        prefixes = [(salt, tuple(prompt[:end])) for end in range(size, len(prompt) + 1, size)]
        usable = [prefix for prefix in prefixes if len(prefix[1]) < len(prompt)]
        cached = 0
        while cached < len(usable) and usable[cached] in seen:
            cached += 1
        assert cache.match(prompt, salt) == cached * size
        assert cache.insert(prompt, salt) == len(set(prefixes) - seen) * size
        seen.update(prefixes)


def test_a_full_cache_forgets_what_was_used_longest_ago() -> None:
    cache = PrefixCache(1, 2)
    cache.insert([1], None)
    cache.insert([2], None)
    assert cache.match([1, 9], None) == 1
    cache.insert([3], None)
    assert cache.match([1, 9], None) == 1
    assert cache.match([2, 9], None) == 0


def test_a_cleared_cache_knows_nothing() -> None:
    cache = PrefixCache(2, 10)
    cache.insert([1, 2], None)
    cache.clear()
    assert cache.match([1, 2, 3], None) == 0

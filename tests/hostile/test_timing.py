"""What `python -m tests.hostile.timing` calls told apart, on times that are made up."""

from __future__ import annotations

import random

from tests.hostile.timing import CHANCE_MIN, DEVIATIONS_MIN, chance_longer, guesses


def times(seed: int, slower_us: float = 0.0) -> list[float]:
    """As a busy machine has them: a millisecond, and now and then ten."""
    chance = random.Random(seed)
    return [slower_us + chance.gauss(1000, 150) + 9000 * (chance.random() < 0.1) for _ in range(4000)]


def test_thirty_microseconds_are_told_and_noise_is_not() -> None:
    """Compared byte by byte, a key of which 26 characters are right takes longer; three hundredths would be seen."""
    chance, deviations = chance_longer(times(1, slower_us=30), times(2))
    assert chance - 0.5 >= CHANCE_MIN
    assert deviations >= DEVIATIONS_MIN
    chance, deviations = chance_longer(times(3), times(4))
    assert abs(chance - 0.5) < CHANCE_MIN or abs(deviations) < DEVIATIONS_MIN


def test_guesses_are_as_long_as_the_key_and_none_is_the_key() -> None:
    key = "sk-victim-" + 32 * "f"
    made = {kind: make() for kind, make in guesses(key, random.Random(1)).items()}
    assert {len(guess) for guess in made.values()} == {len(key)}
    assert [kind for kind, guess in made.items() if guess == key] == ["the tenant's own"]

"""Counting beside the loop: others keep running, and a count that cannot be had in time is said so."""

from __future__ import annotations

import threading

import gevent
import pytest
from gevent import monkey

from kong_plugins.adapters.tokenizers import ModelTokenCounter, OffLoopCounter
from kong_plugins.domain.errors import CountUnavailable

NativeEvent = monkey.get_original("threading", "Event")


class Gate:
    """A counter that stands still in its thread until it is opened."""

    def __init__(self) -> None:
        self.entered = NativeEvent()
        self.opened = NativeEvent()
        self.counted: list[str] = []
        self.threads: set[int] = set()

    def count_text(self, model: str, text: str) -> int:
        self.threads.add(threading.get_ident())
        self.entered.set()
        assert self.opened.wait(10)
        self.counted.append(text)
        return len(text)


@pytest.fixture
def gate() -> Gate:
    return Gate()


def test_it_counts_all_texts_in_another_thread(gate: Gate) -> None:
    gate.opened.set()
    counter = OffLoopCounter(gate)
    assert counter.count("m", ["ab", "c", ""]) == 3
    assert gate.threads
    assert threading.get_ident() not in gate.threads
    counter.close()


def test_other_greenlets_run_while_one_waits(gate: Gate) -> None:
    counter = OffLoopCounter(gate, deadline_s=10)
    waiting = gevent.spawn(counter.count, "m", ["abc"])
    while not gate.entered.is_set():
        gevent.sleep(0)
    assert not waiting.dead
    gate.opened.set()
    assert waiting.get(timeout=10) == 3
    counter.close()


def test_preparing_keeps_nobody_waiting_and_says_what_is_not_there(caplog: pytest.LogCaptureFixture) -> None:
    counter = OffLoopCounter(ModelTokenCounter())
    with caplog.at_level("INFO"):
        counter.prepare("nobody-knows-me")
        assert "nobody-knows-me" not in caplog.text
        with pytest.raises(CountUnavailable):  # behind it: one thread
            counter.count("nobody-knows-me", ["Hello"])
    assert "nobody-knows-me are decided by their bounds" in caplog.text
    counter.close()


def test_what_was_prepared_needs_no_building(gate: Gate) -> None:
    counter = OffLoopCounter(gate)
    counter.prepare("m")
    while not gate.entered.is_set():
        gevent.sleep(0)
    gate.opened.set()
    assert counter.count("m", ["abc"]) == 3
    assert gate.counted == ["", "abc"]
    counter.close()


def test_who_can_wait_longer_says_so(gate: Gate) -> None:
    """A request that is over can wait for a tokenizer to be built; one that asks to be let in cannot."""
    counter = OffLoopCounter(gate, deadline_s=0.01)
    waiting = gevent.spawn(counter.count, "m", ["abc"], 10)
    with pytest.raises(CountUnavailable, match=r"0\.01 s"):
        counter.count("m", ["abc"])
    gate.opened.set()
    assert waiting.get(timeout=10) == 3
    counter.close()


def test_after_the_deadline_the_count_is_given_up_and_the_rest_of_its_texts_skipped(gate: Gate) -> None:
    counter = OffLoopCounter(gate, deadline_s=0.02)
    with pytest.raises(CountUnavailable, match=r"longer than 0\.02 s"):
        counter.count("m", ["first", "second"])
    gate.opened.set()
    counter.close()
    assert gate.counted == ["first"]


def test_a_full_queue_declines_at_once_and_takes_again_when_it_is_empty(gate: Gate) -> None:
    counter = OffLoopCounter(gate, queue_max=2, deadline_s=10)
    waiting = [gevent.spawn(counter.count, "m", ["a"]) for _ in range(2)]
    gevent.sleep(0)
    with pytest.raises(CountUnavailable, match="2 counts are waiting"):
        counter.count("m", ["a"])
    gate.opened.set()
    assert [each.get(timeout=10) for each in waiting] == [1, 1]
    assert counter.count("m", ["abc"]) == 3
    counter.close()


def test_an_abandoned_count_still_takes_its_place_in_the_queue(gate: Gate) -> None:
    """Else a client could pile up work faster than the threads end it."""
    counter = OffLoopCounter(gate, queue_max=1, deadline_s=0.02)
    with pytest.raises(CountUnavailable, match="longer"):
        counter.count("m", ["a"])
    with pytest.raises(CountUnavailable, match="waiting"):
        counter.count("m", ["a"])
    gate.opened.set()
    counter.close()


def test_texts_too_long_to_count_in_time_are_not_tried(gate: Gate) -> None:
    counter = OffLoopCounter(gate, characters_max=10)
    with pytest.raises(CountUnavailable, match="longer than 10 characters"):
        counter.count("m", ["abcdef", "ghijkl"])
    assert not gate.entered.is_set()
    counter.close()


def test_what_the_counter_raises_reaches_the_caller() -> None:
    counter = OffLoopCounter(ModelTokenCounter())
    with pytest.raises(CountUnavailable, match="no tokenizer is known"):
        counter.count("unheard-of", ["a"])
    counter.close()


def test_tiktoken_lets_the_loop_run_while_it_counts() -> None:
    """It gives up the GIL, so a loop keeps ticking during one long call."""
    models = ModelTokenCounter()
    models.warm("deepseek-r1")
    # Long enough for many ticks also where others have the cores; a call that kept the GIL would leave one or two.
    counter = OffLoopCounter(models, deadline_s=60, characters_max=5_000_000)
    text = "The quick brown fox jumps over the lazy dog. " * 100_000
    waiting = gevent.spawn(counter.count, "deepseek-r1", [text])
    ticks = 0
    while not waiting.dead:
        gevent.sleep(0.001)
        ticks += 1
    assert waiting.get() == 1_000_001
    assert ticks > 10
    counter.close()


class _PanicError(BaseException):
    """As tiktoken's Rust raises it."""


@pytest.mark.parametrize("failure", [CountUnavailable("no tokenizer"), _PanicError("stack"), ValueError("x")])
def test_a_count_that_fails_is_a_count_that_cannot_be_had(
    failure: BaseException, capfd: pytest.CaptureFixture[str]
) -> None:
    """A text that a tokenizer breaks on, or a model without one: the caller decides by the bound, and a client that
    does it on purpose writes no stacks into the log."""

    class Failing:
        def count_text(self, model: str, text: str) -> int:
            raise failure

    counter = OffLoopCounter(Failing())
    with pytest.raises(CountUnavailable, match=r"no tokenizer|_PanicError|ValueError"):
        counter.count("m", ["abc"])
    counter.close()
    assert "Traceback" not in capfd.readouterr().err

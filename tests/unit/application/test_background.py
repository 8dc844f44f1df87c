"""The queue off a request's way, and the prompts under way: bounded, drained, and no task stops another."""

from __future__ import annotations

import gevent
from gevent.event import Event

from kong_plugins.adapters.background import GreenletQueue
from kong_plugins.application.prompts import PromptsUnderWay


def test_tasks_run_in_order_and_one_that_raises_stops_none() -> None:
    """First in, first out."""
    queue, done = GreenletQueue("t"), []

    def fail() -> None:
        done.append("failed")
        raise RuntimeError

    for task in (lambda: done.append("a"), fail, lambda: done.append("b")):
        assert queue.submit(task)
    assert queue.join(timeout_s=5)
    assert done == ["a", "failed", "b"]


def test_it_is_bounded() -> None:
    """Beyond its capacity it refuses, and says so."""
    queue, go = GreenletQueue("t", capacity=2), Event()
    assert queue.submit(go.wait)
    gevent.sleep(0)
    assert [queue.submit(go.wait) for _ in range(3)] == [True, True, False]
    go.set()
    assert queue.close()
    assert queue.submit(go.wait) is False


def test_closing_ends_a_pause_at_once() -> None:
    """A task that waits for a store does not hold up the process."""
    queue, paused = GreenletQueue("t"), []
    queue.submit(lambda: paused.append(queue.pause(3_600)))
    gevent.sleep(0)
    assert queue.close(timeout_s=5)
    assert paused == [False]


def test_prompts_are_bounded_by_bytes_and_taken_once() -> None:
    """The oldest go first; what is taken is gone."""
    prompts = PromptsUnderWay(bytes_max=10)
    for name in "abc":
        prompts.remember(name, 4, lambda: 1)
    assert prompts.take("a") is None
    assert prompts.take("b") is not None
    assert prompts.take("b") is None
    assert prompts.bytes_held == 4
    prompts.remember("c", 6, lambda: 1)
    assert prompts.bytes_held == 6


def test_a_task_given_right_after_the_last_one_ended_is_run() -> None:
    """By whoever runs next, before the hub has told that the worker is gone."""
    queue = GreenletQueue("test")
    done: list[str] = []

    def first() -> None:
        gevent.spawn(queue.submit, lambda: done.append("second"))
        done.append("first")

    queue.submit(first)
    gevent.sleep(0.05)
    assert done == ["first", "second"]


def test_a_worker_that_ended_before_it_began_is_replaced() -> None:
    """As it does of a lack of memory: also where the queue is full."""
    queue, ran = GreenletQueue("test", capacity=1), []
    assert queue.submit(lambda: ran.append("first"))
    for worker in queue._running:
        worker.unlink_all()
        worker.kill()
    assert not queue.submit(lambda: ran.append("refused"))
    assert queue.join(5)
    assert ran == ["first"]

"""Counting in threads beside the event loop, so that a long prompt delays nobody else's request."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import gevent
from gevent.threadpool import ThreadPool

from kong_plugins.application.ports import TokenCounter
from kong_plugins.domain.errors import CountUnavailable

_log = logging.getLogger(__name__)


class _Job:
    """One count. ``abandoned`` is set by the loop and read by the thread: a plain flag is enough for one writer."""

    def __init__(self, counter: TokenCounter, model: str, texts: Sequence[str]) -> None:
        self.abandoned = False
        self._counter, self._model, self._texts = counter, model, texts

    def run(self) -> int | CountUnavailable:
        """Why there is no count is returned: a thread pool prints a stack for what its threads raise."""
        total = 0
        try:
            for text in self._texts:
                if self.abandoned:
                    return 0
                total += self._counter.count_text(self._model, text)
        except CountUnavailable as error:
            return error
        except BaseException as error:  # noqa: BLE001 - tiktoken's panics are no Exceptions, and depend on the text
            return CountUnavailable(f"the tokenizer failed: {type(error).__name__}")
        return total


class OffLoopCounter:
    """Waits cooperatively: only the calling greenlet stands still. tiktoken gives up the GIL while it counts.

    ``queue_max`` jobs wait or run at most, and none is waited for longer than ``deadline_s``; a text that one thread
    could not count by then (``characters_max`` in all) is not tried. Belongs to the thread that made it.
    """

    def __init__(
        self,
        counter: TokenCounter,
        *,
        threads: int = 1,
        queue_max: int = 32,
        deadline_s: float = 0.25,
        characters_max: int = 1_000_000,
    ) -> None:
        self._counter = counter
        self._pool = ThreadPool(threads)
        self._queue_max = queue_max
        self._deadline_s = deadline_s
        self._characters_max = characters_max
        self._jobs = 0

    def count(self, model: str, texts: Sequence[str], deadline_s: float | None = None) -> int:
        """Tokens of all texts together. ``deadline_s`` is for whoever can wait longer than a request.

        Raises:
            CountUnavailable: too long, too busy, not in time, or no tokenizer for the model.
        """
        if sum(map(len, texts)) > self._characters_max:
            raise CountUnavailable(f"the texts are longer than {self._characters_max} characters and are not counted")
        if self._jobs >= self._queue_max:
            raise CountUnavailable(f"{self._jobs} counts are waiting already; raise the number of threads")
        job = _Job(self._counter, model, texts)
        result = self._pool.spawn(job.run)
        self._jobs += 1
        result.rawlink(self._done)
        try:
            counted: int | CountUnavailable = result.get(timeout=deadline_s or self._deadline_s)
        except gevent.Timeout:
            job.abandoned = True
            raise CountUnavailable(f"the count took longer than {deadline_s or self._deadline_s} s") from None
        if isinstance(counted, CountUnavailable):
            raise counted
        return counted

    def prepare(self, *models: str) -> None:
        """Load their tokenizers (most of a second each) beside the loop, so that no request waits for it."""
        for model in models:
            self._pool.spawn(self._load, model)

    def _load(self, model: str) -> None:
        try:
            self._counter.count_text(model, "")
        except CountUnavailable as error:
            _log.info("requests for %s are decided by their bounds: %s", model, error)

    def _done(self, _result: object) -> None:
        self._jobs -= 1

    def close(self) -> None:
        """Wait for running counts and end the threads."""
        self._pool.join()
        self._pool.kill()

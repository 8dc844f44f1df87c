"""Scrapes of the engines' own counters into the books, for `token-quota reconcile`."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from kong_plugins.adapters.books import BooksUnavailable, open_books
from kong_plugins.adapters.books.engine_counts import store_scrapes
from kong_plugins.adapters.engine_metrics import EngineScraper
from kong_plugins.application.reconcile_scrapes import Scrape
from kong_plugins.collector.periodic import PeriodicJob

_log = logging.getLogger(__name__)

SCRAPE_EVERY_S = 10.0
KEPT_MAX = 10_000  # scrapes, while the books cannot be written: hours of several engines
BOOKS_WAIT_S = 5.0


class EngineJob:
    """Scrapes ``engines`` and keeps what they say in the books at ``books``.

    Raises:
        ValueError: an engine's address is none.
    """

    def __init__(self, engines: Sequence[str], books: Path) -> None:
        self._scraper = EngineScraper(*engines)
        self._books = books
        self._waiting: list[Scrape] = []
        self._failures: dict[str, str] = {}

    def every(self, seconds: float = SCRAPE_EVERY_S) -> PeriodicJob:
        return PeriodicJob("scrape engines", seconds, self.run)

    def run(self) -> None:
        """One scrape. What cannot be stored now is stored with the next."""
        self._waiting += self._scraper.scrape(time.time_ns() // 1000)
        del self._waiting[:-KEPT_MAX]
        self._tell()
        if not self._waiting:
            return
        try:
            with open_books(self._books, read_only=False, wait_s=BOOKS_WAIT_S) as connection:
                store_scrapes(connection, self._waiting)
        except BooksUnavailable as error:
            _log.warning("%d scrapes of engines wait for the books: %s", len(self._waiting), error)
        else:
            self._waiting.clear()

    def _tell(self) -> None:
        """When an engine goes or comes back, not each time."""
        failures = self._scraper.failures
        for engine, why in failures.items():
            if engine not in self._failures:
                _log.warning("engine %s: %s", engine, why)
        for engine in self._failures.keys() - failures.keys():
            _log.warning("engine %s answers again", engine)
        self._failures = dict(failures)

"""The command line with the collector's one promise broken: it acknowledges a batch, then writes it. For tests."""

from __future__ import annotations

import time

from kong_plugins.application.deliver import Batch, Delivery
from kong_plugins.cli.main import main

SINK_S = 0.1  # a sink that takes its time, so that few kills are enough


class AcknowledgesFirst(Delivery):
    def _deliver(self, batch: Batch) -> float:
        self._queue.acknowledge(batch.entries)
        time.sleep(SINK_S)
        return super()._deliver(batch)


if __name__ == "__main__":
    Delivery._deliver = AcknowledgesFirst._deliver  # type: ignore[method-assign]
    main()

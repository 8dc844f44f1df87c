"""Writes requests to a sink, a batch at a time, and says after each how many are acknowledged: to be killed then."""

from __future__ import annotations

import sys

from kong_plugins.adapters.sinks import open_sink
from tests.contract.sink_events import request


def main(url: str, count: int, batch: int) -> None:
    sink = open_sink(url)
    print("ready", flush=True)
    for first in range(0, count, batch):
        assert sink.write([request(number) for number in range(first, first + batch)]) == ()
        print(first + batch, flush=True)
    sys.stdin.read()  # until we are killed or told to end


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

"""`python -m tests.hostile.timing [--gateway kong]`: does the time of a 401 tell how near a guess came to a key?

Keys that no tenant has, guesses that share all but the end or all but the beginning of a tenant's key, and, to see that
a difference would be seen, that tenant's own key with a body that is refused: asked in random order, one at a time, on
one connection. Compared are ranks (Mann and Whitney): the chance that a guess takes longer than a key that is merely
unknown, which is a half where the time tells nothing. By hand, for no test is to hang on times of a busy machine.
Exit 1: a kind of guess is told from another.
"""

from __future__ import annotations

import argparse
import math
import random
import socket
import statistics
import sys
import tempfile
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from http.client import HTTPConnection
from pathlib import Path

from kong_plugins.cli.stack import Gateway
from tests.hostile.world import world

PATH = "/v1/chat/completions"
UNKNOWN, OWN = "unknown", "the tenant's own"
NOT_JUDGED = (OWN, "one unknown key again")  # the first answers 400; the second tells its sender what it did itself
SHARED = 6  # characters of a guess that are its own
CHANCE_MIN, DEVIATIONS_MIN = 0.02, 4.0  # to be told: so far from a half, and so many standard deviations


def guesses(key: str, choose: random.Random) -> dict[str, Callable[[], str]]:
    """Makers of keys of the same length, by kind."""

    def made(count: int) -> str:
        return "".join(choose.choices("0123456789abcdef", k=count))

    start = len(key) - 32  # `sk-TENANT-`, then 32 hexadecimal digits
    again = key[:start] + made(32)
    return {
        UNKNOWN: lambda: key[:start] + made(32),
        "unknown, beside it": lambda: key[:start] + made(32),
        "all but its end": lambda: key[:-SHARED] + made(SHARED),
        "all but its beginning": lambda: key[:start] + made(SHARED) + key[start + SHARED :],
        "another prefix": lambda: made(start) + key[start:],
        "one unknown key again": lambda: again,
        OWN: lambda: key,
    }


def chance_longer(these: Sequence[float], than: Sequence[float]) -> tuple[float, float]:
    """That one of ``these`` is larger than one of the others (equal ones: half), and its deviations from a half."""
    ordered = sorted(than)
    larger = sum(bisect_left(ordered, each) + bisect_right(ordered, each) for each in these) / 2
    n, m = len(these), len(than)
    deviation = math.sqrt((n + m + 1) / (12 * n * m))
    return larger / (n * m), (larger / (n * m) - 0.5) / deviation


def measure(port: int, key: str, samples: int, seed: int) -> dict[str, list[float]]:
    """Microseconds from a request to its answer, by kind of key."""
    choose = random.Random(seed)
    kinds = guesses(key, choose)
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    order = [kind for kind in kinds for _ in range(samples)]
    choose.shuffle(order)
    for kind in order:
        headers = {"apikey": kinds[kind](), "Content-Type": "application/json"}
        began = time.perf_counter_ns()
        connection.request("POST", PATH, b"{}", headers)
        answer = connection.getresponse()
        took = (time.perf_counter_ns() - began) / 1000
        answer.read()
        assert answer.status == (400 if kind == OWN else 401), f"{kind}: {answer.status}"
        times[kind].append(took)
    connection.close()
    return times


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.timing", description=__doc__)
    parser.add_argument("--samples", type=int, default=4000, help="of each kind (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--gateway", choices=["local", "kong"], default="local", help="kong: on PATH, or KONG_BIN")
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="timing-") as directory,
        world(Path(directory), Gateway(given.gateway)) as attacked,
    ):
        measure(attacked.port, attacked.key("victim"), max(1, given.samples // 20), given.seed + 1)  # warm
        times = measure(attacked.port, attacked.key("victim"), given.samples, given.seed)
    told = []
    print(f"{'key':<24} {'median µs':>10} {'p90 µs':>8} {'chance longer':>14} {'deviations':>11}")
    for kind, its in times.items():
        chance, deviations = chance_longer(its, times[UNKNOWN])
        p90 = sorted(its)[len(its) * 9 // 10]
        print(f"{kind:<24} {statistics.median(its):>10.1f} {p90:>8.1f} {chance:>14.4f} {deviations:>+11.2f}")
        far = abs(chance - 0.5) >= CHANCE_MIN and abs(deviations) >= DEVIATIONS_MIN
        if far and kind not in NOT_JUDGED:
            told.append(kind)
        if kind == OWN and not far:
            told.append("nothing: not even a key that is known was told, so these samples say nothing")
    print(f"told from an unknown key: {', '.join(told) or 'none'}")
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main())

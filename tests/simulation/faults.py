"""What goes wrong, how often, and how often it did. Each kind can be left out, to find out whether it is needed."""

from __future__ import annotations

from collections import Counter

from tests.simulation.kernel import Kernel

# Of each call, write, request or chunk.
RATES = {
    "request lost": 0.006,
    "reply lost": 0.010,
    "delivered late": 0.004,
    "delivered twice": 0.006,
    "lease slow": 0.1,
    "lease delivered late": 0.02,
    "lease delivered twice": 0.04,
    "killed before the call": 0.0008,
    "killed after the effect": 0.0012,
    "slow": 0.01,
    "sink away": 0.03,
    "sink reply lost": 0.03,
    "sink wrote a part": 0.03,
    "sink rejects": 0.004,
    "collector killed before the write": 0.01,
    "collector killed after the write": 0.01,
    "spool full": 0.004,
    "client leaves": 0.05,
    "log phase twice": 0.05,
    "log phases turned round": 0.3,
    "no usage in the stream": 0.1,
    "tokenizer cannot count": 0.1,
    "engine refuses": 0.02,
    "engine slow": 0.03,
    "decision not taken": 0.004,
}

# By how often they come about, of all that nature and operators do. Some need a ledger that can do it.
EVENTS = {
    "partition": 8,
    "node cut off": 1,
    "token-quota stopped": 4,
    "tenant silent": 6,
    "tenant in a rush": 6,
    "ledger restarts": 4,
    "ledger fails over": 1,
    "token-quota killed": 6,
    "billing-events killed": 6,
    "gateway killed": 3,
    "engine killed": 4,
    "collector killed": 6,
    "collector stopped": 3,
    "collector overtaken": 4,
    "ledger's clock back": 3,
    "ledger's clock ahead": 3,
    "gateway's clock off": 3,
    "time leaps to an edge": 4,
    "everybody asleep": 2,
    "limit edited": 10,
    "grant": 8,
    "reset": 3,
    "prices changed": 2,
    "credit": 3,
    "sink down": 5,
    "dead letters retried": 3,
    "event of no hold": 6,
}

# What parts the store's time from everybody else's, or takes postings from it: counters of a window and events of the
# same time need not agree then.
OF_TIME = frozenset(
    {
        "ledger fails over",
        "ledger's clock back",
        "ledger's clock ahead",
        "time leaps to an edge",
        "everybody asleep",
    }
)


class Faults:
    """``without``: kinds that are left out; chance is asked all the same, so that the rest stays as alike as it can."""

    def __init__(self, kernel: Kernel, without: frozenset[str] = frozenset()) -> None:
        self.kernel = kernel
        self.without = without
        self.counts: Counter[str] = Counter()
        self.healed = False
        self.steady = False  # clocks run as they should

    def hit(self, kind: str) -> bool:
        drawn = self.kernel.random.random() < RATES[kind]
        if not drawn or self.healed or kind in self.without:
            return False
        self.happened(kind)
        return True

    def draw(self) -> str | None:
        kind = self.kernel.random.choices(list(EVENTS), list(EVENTS.values()))[0]
        left_out = kind in self.without or (self.steady and kind in OF_TIME)
        return None if self.healed or left_out else kind

    def happened(self, kind: str) -> None:
        self.counts[kind] += 1
        self.kernel.note("FAULT", kind)

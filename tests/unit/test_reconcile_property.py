"""Random days: whatever happens to requests and engines is explained, and one fault among it is found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import duckdb
from hypothesis import given, settings
from hypothesis import strategies as st

from kong_plugins.adapters.books.reconcile_queries import ReconcileQueries
from kong_plugins.adapters.books.schema import migrate
from kong_plugins.application.reconcile import EngineCheck, EngineReport, EventsInMemory
from kong_plugins.application.reconcile_events import BookedEvent, Pace
from kong_plugins.application.reconcile_scrapes import Scrape, Tokens, lives_of

SECOND = 1_000_000
PERIOD = 15 * SECOND  # between scrapes
SCRAPES = 12
END = SCRAPES * PERIOD
SLACK = SECOND
PACE = Pace(tokens_s=100, notice_us=SECOND // 4)
IN_FLIGHT = 25  # tokens within the notice at that pace
KINDS = ("whole", "choices", "left", "failed", "expired", "held", "reversed", "waiting")


@dataclass
class Engine:
    """Lives (born, died), and what was counted when in each."""

    name: str
    lives: list[tuple[int, int]]
    counted: list[list[tuple[int, int, int]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.counted = [[] for _ in self.lives]

    def life_at(self, at: int) -> int | None:
        return next((n for n, (born, died) in enumerate(self.lives) if born <= at < died), None)

    def count(self, life: int, start: int, end: int, prompt: int, completion: int) -> Tokens:
        """Generate evenly from start to end. Returns what was done before the engine died."""
        died = self.lives[life][1]
        times = [start + (end - start) * n // max(1, completion) for n in range(1, completion + 1)]
        done = [at for at in times if at < died]
        began = start + 1
        self.counted[life] += [(began, prompt, 0)] * (began < died) + [(at, 0, 1) for at in done]
        return Tokens(prompt if began < died else 0, len(done))

    def scrape(self, at: int) -> list[Scrape]:
        life = self.life_at(at)
        if life is None:
            return []
        past = [each for each in self.counted[life] if each[0] <= at]
        born = self.lives[life][0]
        sums = sum(each[1] for each in past), sum(each[2] for each in past)
        return [Scrape(self.name, "m", "0", f"{self.name}@{born}", at, born, *sums)]


def some_engines(random: Random) -> list[Engine]:
    """One or two; each may die once and come back."""
    found = []
    for name in ("e", "f")[: random.randint(1, 2)]:
        cut, back = random.randrange(2, END - 2), random.randint(1, 40 * SECOND)
        lives = random.choice([[(-SECOND, 2 * END)], [(-SECOND, cut), (cut + back, 2 * END)]])
        found.append(Engine(name, lives))
    return found


def run(engine: Engine, number: int, kind: str, times: tuple[int, int], tokens: tuple[int, int]) -> list[BookedEvent]:
    """A request on an engine, as it is counted and as it is booked; nothing where the engine is not there."""
    (start, length), (prompt, completion) = times, tokens
    life = engine.life_at(start)
    if life is None:
        return []
    end = start + length
    event_id, choices = f"{kind}-{number}", 2 if kind == "choices" else 1
    done = engine.count(life, start, end, choices * prompt, completion)
    died = engine.lives[life][1]
    known: dict[str, Any] = {"evidence": "exact", "outcome": "completed", "status": 200, "choices": choices}
    bounds = {"prompt_bound": prompt, "completion_bound": completion + IN_FLIGHT}
    seen = Tokens(prompt, completion)
    if died <= end:  # the engine broke off: what had come by then is charged
        end, seen = died, Tokens(prompt if done.prompt else 0, done.completion)
        known |= {"evidence": "continuous", "outcome": "failed", **bounds}
    elif kind == "left":
        known |= {"evidence": "continuous", "outcome": "aborted", **bounds}
        engine.count(life, end, end + PACE.notice_us, 0, number % IN_FLIGHT)
    elif kind in {"failed", "expired", "held"}:
        outcomes = {
            "failed": {"outcome": "failed", "status": 504},
            "expired": {"outcome": "expired", "evidence": "held"},
            "held": {"outcome": "aborted", "evidence": "held"},
        }
        bounds["completion_bound"] = completion
        seen = seen if kind == "held" else Tokens()
        known |= {**outcomes[kind], **bounds}
    booked_end = start + 3600 * SECOND if kind == "expired" else end
    event = BookedEvent(event_id, "request", "m", start, booked_end, seen.prompt, seen.completion, **known)
    if kind == "waiting":
        return [replace(event, where="outbox")]
    if kind == "reversed":
        taken = BookedEvent(f"reversal:{event_id}", "reversal", "m", start, end, seen.prompt, seen.completion)
        return [event, taken]
    return [event]


def check(engines: Sequence[Engine], events: Sequence[BookedEvent], slack: int = SLACK) -> EngineCheck:
    scrapes = [one for at in range(0, END + 1, PERIOD) for engine in engines for one in engine.scrape(at)]
    return EngineCheck("m", lives_of(scrapes), EventsInMemory(events), PACE, slack)


def some_day(random: Random) -> tuple[list[Engine], list[BookedEvent]]:
    """Drawn at large, not by hypothesis: it draws few requests and small numbers, of which hardly any meet."""
    parts, events = some_engines(random), []
    for number in range(random.randint(5, 40)):
        prompt, completion = random.randint(1, 50), random.randint(0, 60)
        # Engines generate no faster than the pace that bounds what nobody saw.
        length = max(random.randint(1, 20 * SECOND), completion * SECOND // int(PACE.tokens_s) + 1)
        times = random.randrange(END), length
        events += run(random.choice(parts), number, random.choice(KINDS), times, (prompt, completion))
    return parts, events


@given(st.integers(0, 2**32))
def test_whatever_happens_is_explained(seed: int) -> None:
    """Aborts, failures, expired holds, retries, restarts, late events, requests at any edge; over any span."""
    random = Random(seed)
    parts, events = some_day(random)
    first, last = sorted(random.sample(range(SCRAPES + 1), 2))
    report = check(parts, events).report(first * PERIOD, last * PERIOD)
    assert report is None or not report.compared.unexplained, report
    assert report is None or not report.leaks


SLOTS = st.lists(
    st.tuples(
        st.sampled_from(("whole", "choices", "reversed", "waiting")),
        st.integers(0, SCRAPES - 1),
        st.integers(1, 50),
        st.integers(1, 60),
    ),
    min_size=1,
    max_size=20,
)


@given(SLOTS, st.sampled_from(("dropped", "doubled", "altered", "past the gateway")), st.data())
def test_one_fault_is_found_between_its_scrapes(
    slots: list[tuple[str, int, int, int]], fault: str, data: st.DataObject
) -> None:
    """To the token, and where it happened, among requests that are explained to the token."""
    engine = Engine("e", [(-SECOND, 2 * END)])
    events: list[BookedEvent] = []
    for number, (kind, slot, prompt, completion) in enumerate(slots):
        events += run(engine, number, kind, (slot * PERIOD + 2, PERIOD - 4), (prompt, completion))
    victim = data.draw(
        st.sampled_from([each for each in events if each.kind == "request" and each.where == "books"] or events)
    )
    lost = Tokens(victim.prompt, victim.completion)
    if fault == "past the gateway":
        engine.count(0, victim.started_us, victim.ended_us, 7, 3)
        expected = Tokens(7, 3)
    elif victim.where != "books":
        return
    elif fault == "dropped":
        events.remove(victim)
        expected = Tokens(victim.choices * victim.prompt, victim.completion)
    elif fault == "doubled":
        events.append(replace(victim, event_id="another", choices=1))
        expected = Tokens() - lost
    else:
        events[events.index(victim)] = replace(victim, completion=victim.completion + 5)
        expected = Tokens(0, -5)
    report = check([engine], events, slack=1).report(0, END)
    assert isinstance(report, EngineReport)
    assert report.compared.unexplained == expected
    (leak,) = report.leaks
    slot = victim.started_us // PERIOD
    assert (leak.from_us, leak.to_us, leak.unexplained) == (slot * PERIOD, (slot + 1) * PERIOD, expected)


@settings(max_examples=30)
@given(st.integers(0, 2**32))
def test_the_books_answer_as_memory_does(seed: int) -> None:
    """The same sums and the same reasons, whether SQL or Python looks at the events."""
    random = Random(seed)
    parts, events = some_day(random)
    events = [_to_the_millisecond(each) for each in events if each.where == "books"]
    first, last = sorted(random.sample(range(SCRAPES + 1), 2))
    in_memory = check(parts, events)
    with duckdb.connect() as connection:
        migrate(connection)
        connection.executemany(_INSERT, [_row(each) for each in events])
        in_books = replace(in_memory, events=ReconcileQueries(connection).of(["m"]))
        one, other = (each.compare(first * PERIOD, last * PERIOD) for each in (in_memory, in_books))
    assert (one is None) == (other is None)
    if one is not None and other is not None:
        assert (one.books, one.events, one.unseen) == (other.books, other.events, other.unseen)
        assert set(one.explanations) == set(other.explanations)


_INSERT = """
INSERT INTO events (id, kind, source, time, tenant, model, prompt, completion, cached, reasoning, evidence, outcome,
    status, started_ms, last_ms, choices, prompt_bound, completion_bound, reverses, schema)
VALUES (?, ?, 's', make_timestamp_ms(?), 't', 'm', ?, ?, 0, 0, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1)
"""


def _to_the_millisecond(event: BookedEvent) -> BookedEvent:
    return replace(event, started_us=event.started_us // 1000 * 1000, ended_us=event.ended_us // 1000 * 1000)


def _row(event: BookedEvent) -> list[object]:
    request = event.kind == "request"
    unheard = event.outcome == "expired"
    started, ended = event.started_us // 1000, event.ended_us // 1000
    return [
        *(event.event_id, event.kind, started if unheard else ended, event.billed.prompt, event.billed.completion),
        *(event.evidence, event.outcome, event.status if request else None, started if request else None),
        *(None if unheard or not request else ended, event.choices if event.choices > 1 else None),
        *(event.prompt_bound or None, event.completion_bound or None),
        None if request else event.event_id.removeprefix("reversal:"),
    ]

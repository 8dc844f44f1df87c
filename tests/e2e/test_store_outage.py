"""The ledger goes away while tenants ask: refused, let through, or let through as far as a lease goes; charged once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2 as httpx
import pytest

from kong_plugins.adapters.ledger import EmbeddedValkey
from kong_plugins.cli.stack import Gateway, StackOptions
from kong_plugins.domain.partitions import partition_of
from tests.bench.retries import books_of
from tests.e2e import backends
from tests.e2e.conftest import Running, chat, make_keys, start, suite_config
from tests.e2e.load import PATH
from tests.e2e.waiting import balance, wait_for

LIMIT = 10_000
OPENED_LIMIT = 50
ADMITTED_BY = "x-token-quota-admitted-by"
SETTLED_S = 1.5  # a lease follows what was used within a second
TOKENS_MAX = 200  # that a request of these tests holds


def row(mode: str, limit: int = LIMIT) -> dict[str, Any]:
    budgets = [{"name": "daily", "limit": limit, "window": "day"}]
    return {"budgets": budgets, "store_outage": mode, "chat_template": "deepseek_r1"}


TENANTS = {
    "shut": row("closed"),
    "opened": row("open", OPENED_LIMIT),
    "leaser": row("lease"),
    "spared": row("lease"),
    "retrying": row("lease"),
    "restarted": row("lease"),
}


@dataclass
class Outage:
    """A stack and the ledger behind it."""

    running: Running
    server: EmbeddedValkey

    def ask(self, tenant: str, **headers: str) -> httpx.Response:
        return self.running.post(tenant, PATH, json=chat(max_tokens=8), headers=headers)

    def served(self, tenant: str) -> httpx.Response:
        """An answer, once the ledger answers (again): on a busy machine not at once."""
        answers: list[httpx.Response] = []
        wait_for(lambda: (answers.append(self.ask(tenant)) or answers[-1]).status_code == 200, f"{tenant} served", 30)
        return answers[-1]

    @contextmanager
    def away(self) -> Iterator[None]:
        """There and silent, as behind a broken network."""
        os.kill(self.server.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.server.pid, signal.SIGCONT)

    def lease(self, tenant: str) -> None:
        """Until the node has a lease for the tenant, knows of it, and nothing else is held."""
        wait_for(lambda: self.ask(tenant).headers.get(ADMITTED_BY) == "lease", f"a lease for {tenant}")
        seen: list[tuple[float, int]] = []

        def settled() -> bool:
            seen.append((time.monotonic(), self.held(tenant)))
            recent = [held for at_s, held in seen if at_s > seen[-1][0] - SETTLED_S]
            return seen[-1][0] - seen[0][0] > SETTLED_S and len(set(recent)) == 1

        wait_for(settled, f"what is leased for {tenant} stays")

    def committed(self, tenant: str) -> int:
        return sum(each.state.committed for each in self.running.ledger.balances(tenant))

    def held(self, tenant: str) -> int:
        return sum(each.state.held for each in self.running.ledger.balances(tenant))

    def books(self, tenant: str, answers: list[httpx.Response]) -> None:
        """Each answer is charged once, in the ledger and in an event."""
        used = {answer.headers["x-request-id"]: answer.json()["usage"]["total_tokens"] for answer in answers}
        wait_for(lambda: self.committed(tenant) == sum(used.values()), f"{tenant}: {sum(used.values())}", 30)
        assert books_of(self.running.ledger, tenant).standing == used

    def events(self, tenant: str) -> dict[str, str]:
        """What admitted each request, by its id."""
        entries = self.running.ledger.outbox(partition_of(tenant), count=1_000)
        data = [(entry.event_id, httpx.Response(200, content=entry.event).json()["data"]) for entry in entries]
        return {event_id: each.get("admitted_by", "ledger") for event_id, each in data if each["tenant"] == tenant}


@pytest.fixture(scope="module", params=backends.params("local", "kong"))
def outage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outage]:
    directory = tmp_path_factory.mktemp("outage")
    with ExitStack() as resources:
        make_keys(resources.enter_context(pytest.MonkeyPatch.context()), *TENANTS)
        server = resources.enter_context(EmbeddedValkey(directory / "valkey"))
        options = StackOptions(
            config=suite_config(directory, TENANTS),
            gateway=Gateway(request.param),
            port=0,
            data_dir=directory,
            ledger_url=server.url,
        )
        yield Outage(start(options, resources), server)


def test_closed_refuses_and_says_so(outage: Outage) -> None:
    """Nothing runs on the engine meanwhile; when the ledger is back, requests are served again."""
    first = outage.served("shut")
    seen = len(outage.running.seen_by_engine())
    with outage.away():
        refused = outage.ask("shut")
        assert (refused.status_code, refused.headers[ADMITTED_BY]) == (503, "closed")
        assert refused.json()["error"]["code"] == "ledger_unavailable"
        assert refused.headers["retry-after"] == "1"
        assert len(outage.running.seen_by_engine()) == seen
    again = outage.served("shut")
    assert ADMITTED_BY not in again.headers
    outage.books("shut", [first, again])


def test_open_lets_everyone_through_and_charges_afterwards(outage: Outage) -> None:
    """Also beyond the limit: it was used. Its budget refuses when the ledger is back."""
    with outage.away():
        answers = [outage.ask("opened") for _ in range(6)]
        assert [answer.status_code for answer in answers] == [200] * 6, answers[0].text
        assert {answer.headers[ADMITTED_BY] for answer in answers} == {"open"}
        assert "x-ratelimit-remaining-tokens" not in answers[0].headers
    outage.books("opened", answers)
    assert set(outage.events("opened").values()) == {"open"}
    assert outage.held("opened") == 0
    assert outage.committed("opened") > OPENED_LIMIT
    assert outage.ask("opened").status_code == 429


def test_a_lease_is_spent_and_no_more(outage: Outage) -> None:
    """What all nodes together have leased is what an outage lets through: here a tenth of what is left."""
    outage.lease("leaser")
    before, leased = outage.committed("leaser"), outage.held("leaser")
    assert 0 < leased <= LIMIT // 10
    answers: list[httpx.Response] = []
    with outage.away():
        while (answer := outage.ask("leaser")).status_code == 200:
            answers.append(answer)
            assert len(answers) <= leased
        assert (answer.status_code, answer.headers[ADMITTED_BY]) == (503, "closed")
    assert {answer.headers[ADMITTED_BY] for answer in answers} == {"lease"}
    left = [int(answer.headers["x-ratelimit-remaining-tokens"]) for answer in answers]
    bound = left[0] - left[1]
    assert 0 <= leased - len(answers) * bound < bound  # what each holds is free again when its end is told
    assert sum(answer.json()["usage"]["total_tokens"] for answer in answers) <= leased
    outage.served("leaser")
    told = {answer.headers["x-request-id"] for answer in answers}
    wait_for(lambda: told <= outage.events("leaser").keys(), "an event for each", 30)
    assert outage.committed("leaser") > before
    state = balance(outage.running, "leaser").state
    assert state.committed + state.held <= LIMIT
    by = outage.events("leaser")
    assert {by[request_id] for request_id in told} == {"lease"}


def test_a_usual_request_does_not_wait_for_the_ledger(outage: Outage) -> None:
    """And is told what is left as ever; the books are those of any other."""
    outage.lease("spared")
    before = outage.committed("spared")
    answers = [outage.ask("spared") for _ in range(5)]
    assert {answer.headers[ADMITTED_BY] for answer in answers} == {"lease"}
    left = [int(answer.headers["x-ratelimit-remaining-tokens"]) for answer in answers]
    assert all(LIMIT - 6 * TOKENS_MAX < remaining < LIMIT for remaining in left), left
    used = sum(answer.json()["usage"]["total_tokens"] for answer in answers)
    wait_for(lambda: outage.committed("spared") == before + used, f"{before + used} committed")


def test_a_retry_is_refused_while_nobody_knows_of_its_first_attempt(outage: Outage) -> None:
    """When the ledger is back it gets the first attempt's answer, and nothing is charged twice."""
    outage.lease("retrying")
    before = outage.committed("retrying")
    with outage.away():
        first = outage.ask("retrying", **{"x-stainless-retry-count": "0"})
        assert (first.status_code, first.headers[ADMITTED_BY]) == (200, "lease")
        again = outage.ask("retrying", **{"x-stainless-retry-count": "1"})
        assert again.status_code == 503
    used = first.json()["usage"]["total_tokens"]
    wait_for(lambda: outage.committed("retrying") == before + used, "the first attempt's charge", 30)
    replayed = outage.ask("retrying", **{"x-stainless-retry-count": "1"})
    assert replayed.headers["idempotent-replayed"] == "true"
    assert replayed.json() == first.json()
    assert outage.committed("retrying") == before + used


def test_leases_and_charges_outlive_a_ledger_that_is_killed(outage: Outage) -> None:
    """Killed and started again on its own files, with requests all the while."""
    outage.lease("restarted")
    before = outage.committed("restarted")
    os.kill(outage.server.pid, signal.SIGKILL)
    answers = [answer for _ in range(4) if (answer := outage.ask("restarted")).status_code == 200]
    assert answers
    outage.server.stop()
    outage.server.start()
    answers.append(outage.served("restarted"))
    used = sum(answer.json()["usage"]["total_tokens"] for answer in answers)
    wait_for(lambda: outage.committed("restarted") == before + used, f"{before + used} committed", 30)
    by = outage.events("restarted")
    assert {by[answer.headers["x-request-id"]] for answer in answers[:-1]} == {"lease"}
    state = balance(outage.running, "restarted").state
    assert state.committed + state.held <= LIMIT

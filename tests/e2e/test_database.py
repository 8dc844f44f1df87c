"""Two Kong nodes on one database, configured by `deck gateway sync`: what decK sends is taken as it is meant, and both
nodes follow it under load. A node looks for changes every five seconds (Kong's db_update_frequency)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from kong_plugins.cli.processes import free_port
from kong_plugins.cli.stack import Gateway, StackOptions
from tests.e2e import database
from tests.e2e.conftest import Running, make_keys, start, suite_config
from tests.e2e.load import agree, ask, asking, books_when, open_stream
from tests.e2e.nodes import set_budgets
from tests.e2e.waiting import settled, wait_for

LIMIT = 10_000_000
TENANTS: dict[str, dict[str, Any]] = {
    name: {"budgets": [{"name": "daily", "limit": LIMIT, "window": "day"}]} for name in ("synced", "moved", "spare")
}
# Beside the node that decK talks to, which hears of a change at once, one that has to look.
FOLLOWS_S = 30.0

pytestmark = pytest.mark.skipif(database.left_out() is not None, reason=f"kong with a database: {database.left_out()}")


def daily(limit: int) -> list[dict[str, Any]]:
    return [{"name": "daily", "limit": limit, "window": "day"}]


@dataclass
class Cluster:
    """Two nodes, and the decK file that they have."""

    nodes: list[Running]
    config: Path
    admin_url: str

    def deck(self, command: str, *args: str) -> tuple[int, str]:
        first = self.nodes[0].stack
        return database.deck(
            command, database.for_deck(self.config, first.upstream_url), self.admin_url, first.keys, *args
        )

    def sync(self) -> str:
        status, said = self.deck("sync")
        assert status == 0, said
        return said

    def limit(self, tenant: str, limit: int) -> None:
        set_budgets(self.config, tenant, daily(limit))
        self.sync()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with ExitStack() as resources:
        monkeypatch = resources.enter_context(pytest.MonkeyPatch.context())
        make_keys(monkeypatch, *TENANTS)
        # Kong's environment wins over its file.
        for name, value in resources.enter_context(database.postgres()).items():
            monkeypatch.setenv(name, value)
        ports = [free_port(), free_port()]
        nodes: list[Running] = []
        for number, port in enumerate(ports):
            directory = tmp_path_factory.mktemp(f"database{number}")
            monkeypatch.setenv("KONG_ADMIN_LISTEN", f"127.0.0.1:{port}")
            options = StackOptions(
                config=suite_config(directory, TENANTS),
                gateway=Gateway.KONG,
                port=0,
                data_dir=directory,
                ledger_url=nodes[0].stack.ledger_url if nodes else None,
                upstream=nodes[0].stack.upstream_url if nodes else "sim",
                check_engine=False,
            )
            nodes.append(start(options, resources))
        found = Cluster(nodes, suite_config(tmp_path_factory.mktemp("synced"), TENANTS), f"http://127.0.0.1:{ports[0]}")
        print(found.sync())
        for node in nodes:
            wait_for(lambda node=node: ask(node, "synced").status == 200, "the file on both nodes", FOLLOWS_S)
        yield found


def test_what_was_synced_is_what_the_file_says(cluster: Cluster) -> None:
    """Kong fills in our schemas' defaults and decK knows them: nothing is different afterwards, and a second sync does
    nothing."""
    status, said = cluster.deck("diff", "--non-zero-exit-code")
    assert status == 0, said
    assert said == _summary(0)
    assert cluster.sync() == _summary(0)


def test_a_row_that_the_schema_refuses_changes_nothing(cluster: Cluster) -> None:
    """With the field's name: before anything is sent (`deck gateway validate`), and at the sync."""
    before = cluster.config.read_text()
    data = yaml.safe_load(before)
    data["consumers"][-1]["plugins"][0]["config"]["budgets"][0]["limit"] = -1
    cluster.config.write_text(yaml.safe_dump(data, sort_keys=False))
    try:
        for command in ("validate", "sync"):
            status, said = cluster.deck(command)
            assert status == 1, said
            assert "schema violation (config.budgets: {\\n  {\\n    limit = " in said, said
    finally:
        cluster.config.write_text(before)
    assert cluster.deck("diff", "--non-zero-exit-code")[0] == 0


def test_budgets_change_on_both_nodes_under_load(cluster: Cluster) -> None:
    """Known by its name a budget keeps what was used on either node; every request is served, an answer that was under
    way settles, each has one event; a limit below what is used refuses on both, a higher one admits on both."""
    first, second = cluster.nodes
    engine = first.engine()
    followed = []
    with asking(first, "moved") as one, asking(second, "moved") as two, open_stream(first, "moved"):
        for limit in (2 * LIMIT, LIMIT // 2):
            for load in (one, two):
                load.more(5)
            cluster.limit("moved", limit)
            synced = time.monotonic()
            for load in (one, two):
                wait_for(partial(load.serves_with, limit), f"a limit of {limit}", FOLLOWS_S)
            followed.append(time.monotonic() - synced)
        for load in (one, two):
            load.more(5)
    replies = [*one.replies, *two.replies]
    print(f"{len(one.replies)} and {len(two.replies)} answers; both nodes {followed} s after a sync")
    assert {reply.status for reply in replies} == {200}, (one.statuses(), two.statuses())
    books = books_when(first, "moved", len(replies) + 1)
    agree(first, books, engine, one, two)
    assert books.outcomes == {"completed": len(replies), "aborted": 1}

    cluster.limit("moved", settled(first, "moved"))
    for node in cluster.nodes:
        wait_for(lambda node=node: ask(node, "moved").status == 429, "a refusal", FOLLOWS_S)
        settled(first, "moved")
        assert ask(node, "moved").error == "insufficient_quota"
    cluster.limit("moved", LIMIT)
    for node in cluster.nodes:
        wait_for(lambda node=node: ask(node, "moved").status == 200, "an answer", FOLLOWS_S)


def test_tenants_come_and_go(cluster: Cluster) -> None:
    """A consumer taken out of the file gets no more answers on either node; back in it, with what it has used."""
    node = cluster.nodes[0]
    assert ask(node, "spare").status == 200
    used = settled(node, "spare")
    before = cluster.config.read_text()
    data = yaml.safe_load(before)
    data["consumers"] = [consumer for consumer in data["consumers"] if consumer["username"] != "spare"]
    cluster.config.write_text(yaml.safe_dump(data, sort_keys=False))
    cluster.sync()
    for each in cluster.nodes:
        wait_for(lambda each=each: ask(each, "spare").status == 401, "a refusal", FOLLOWS_S)
    cluster.config.write_text(before)
    cluster.sync()
    for each in cluster.nodes:
        wait_for(lambda each=each: ask(each, "spare").status == 200, "an answer", FOLLOWS_S)
    assert settled(node, "spare") > used


def _summary(changed: int) -> str:
    return f"Summary:\n  Created: {changed}\n  Updated: {changed}\n  Deleted: {changed}\n"

"""Budgets that change and plugin servers that end while tenants ask: no count is lost and nobody is refused wrongly."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from kong_plugins.cli.kong_node import PLUGIN_SERVERS
from kong_plugins.cli.processes import free_port
from kong_plugins.cli.stack import Gateway, StackOptions
from tests.e2e import backends
from tests.e2e.conftest import Running, make_keys, start, suite_config
from tests.e2e.load import agree, ask, asking, books_when, open_stream
from tests.e2e.nodes import end_server, post_config, processes_with, reload, server_pid, set_budgets
from tests.e2e.waiting import settled, wait_for

LIMIT = 10_000_000
RELOADED_WITHIN_S = 90  # to give up: in a container, with ten others at work on each core, it took 49 s
ENDINGS = [("token-quota", signal.SIGTERM), ("token-quota", signal.SIGKILL), ("billing-events", signal.SIGKILL)]
# What a client may be told while its request cannot be checked: by the guard, the plugin server (a new one's connection
# to the ledger may take longer than a request waits for it), or Kong itself.
CANNOT_CHECK = {"quota_decision_missing", "plugin_failed", "ledger_unavailable", "An unexpected error occurred"}


def daily(limit: int) -> list[dict[str, Any]]:
    return [{"name": "daily", "limit": limit, "window": "day"}]


TENANTS = {
    name: {"budgets": daily(LIMIT)}
    for name in ("by_reload", "by_post", *(f"{plugin}_{how.name}" for plugin, how in ENDINGS))
}
TENANTS = {name.replace("-", "_").lower(): settings for name, settings in TENANTS.items()}


@dataclass
class Reloadable:
    """A node whose configuration the test may edit. ``admin_url``: of Kong's Admin API."""

    running: Running
    config: Path
    admin_url: str

    def change(self, tenant: str, how: str, budgets: list[dict[str, Any]]) -> None:
        """Takes effect within a moment; requests go on meanwhile."""
        set_budgets(self.config, tenant, budgets)
        if how == "post":
            post_config(self.running, self.config, self.admin_url)
        else:
            reload(self.running, self.config)


@pytest.fixture(scope="module", params=backends.params(*backends.BACKENDS))
def reloadable(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reloadable]:
    directory = tmp_path_factory.mktemp("reloads")
    with ExitStack() as resources:
        monkeypatch = resources.enter_context(pytest.MonkeyPatch.context())
        make_keys(monkeypatch, *TENANTS)
        admin = free_port()
        # Kong's environment wins over its file.
        monkeypatch.setenv("KONG_ADMIN_LISTEN", f"127.0.0.1:{admin}")
        config = suite_config(directory, TENANTS)
        options = StackOptions(config=config, gateway=Gateway(request.param), port=0, data_dir=directory)
        running = start(options, resources)
        yield Reloadable(running, config, running.node.admin_url if running.node else f"http://127.0.0.1:{admin}")


# In this order: for some seconds after a reload a predecessor stands in for a plugin server that ends.


@pytest.mark.parametrize(("plugin", "how"), ENDINGS, ids=[f"{plugin}-{how.name}" for plugin, how in ENDINGS])
def test_a_plugin_server_ends_under_load(reloadable: Reloadable, plugin: str, how: signal.Signals) -> None:
    """Some requests cannot be checked meanwhile and are told so; none is refused for its budget, none passes unmetered,
    and each that was served is charged once. What a killed server held for a request that it never let through is no
    charge: it ends by its own clock."""
    running, tenant = reloadable.running, f"{plugin}_{how.name}".replace("-", "_").lower()
    engine = running.engine()
    with asking(running, tenant) as load:
        load.more(10)
        for _ in range(2):
            end_server(running, plugin, how)
            load.more(10)
    refused = [reply for reply in load.replies if reply.status != 200]
    print(f"{running.backend}: {plugin} ended by {how.name} twice: {dict(load.statuses())}")
    assert {reply.status for reply in refused} <= {500, 503}, load.statuses()
    assert {reply.error for reply in refused} <= CANNOT_CHECK, load.statuses()
    books = books_when(running, tenant, len(load.served()))
    agree(running, books, engine, load)
    assert books.outcomes == {"completed": len(load.served())}
    if how is signal.SIGTERM or not refused:
        settled(running, tenant)


def test_the_admin_api_tells_of_kong(reloadable: Reloadable) -> None:
    """decK asks here first. Kong 3.9 by itself cannot answer in the worker that has started a plugin server."""
    if reloadable.running.backend == "local":
        pytest.skip("local: it has no Admin API")
    answer = httpx.get(reloadable.admin_url)
    assert answer.status_code == 200, answer.text
    assert [server["name"] for server in answer.json()["configuration"]["pluginservers"]] == [
        "token_quota",
        "billing_events",
    ]


def test_a_reload_leaves_the_new_plugin_servers_alone(reloadable: Reloadable) -> None:
    """Kong's last worker ends when it has nothing left to do, and what it started goes with it."""
    running = reloadable.running
    if running.backend == "local":
        pytest.skip("local: a reload keeps the plugin servers")
    sockets = [running.stack.run_dir / "kong" / f"{plugin}.sock" for plugin in PLUGIN_SERVERS]
    before = [server_pid(sock) for sock in sockets]
    reload(running, reloadable.config)
    wait_for(lambda: not {server_pid(sock) for sock in sockets} & {0, *before}, "new plugin servers", 60)
    # Each is two: the one that Kong started, which waits, and the one that serves.
    wait_for(lambda: len(processes_with(str(running.stack.run_dir / "kong"))) == 2 * len(sockets), "no others", 60)


@pytest.mark.parametrize("how", ["reload", "post"])
def test_a_budget_changes_under_load(reloadable: Reloadable, how: str) -> None:
    """Known by its name it keeps what was used; every request is served, an answer that was under way settles, each has
    one event; a limit below what is used refuses at once, a higher one admits at once."""
    running, tenant = reloadable.running, f"by_{how}"
    if how == "post" and running.backend == "local":
        pytest.skip("local: it has no Admin API")
    engine = running.engine()
    with asking(running, tenant) as load, open_stream(running, tenant):
        for limit in (2 * LIMIT, LIMIT // 2):
            load.more(5)
            reloadable.change(tenant, how, daily(limit))
            wait_for(partial(load.serves_with, limit), f"a limit of {limit}", RELOADED_WITHIN_S)
        load.more(5)
    assert {reply.status for reply in load.replies} == {200}, load.statuses()
    books = books_when(running, tenant, len(load.replies) + 1)
    agree(running, books, engine, load)
    assert books.outcomes == {"completed": len(load.replies), "aborted": 1}

    used = settled(running, tenant)
    reloadable.change(tenant, how, daily(used))
    wait_for(lambda: ask(running, tenant).status == 429, "a refusal", RELOADED_WITHIN_S)
    used = settled(running, tenant)
    assert ask(running, tenant).error == "insufficient_quota"
    assert settled(running, tenant) == used
    reloadable.change(tenant, how, daily(LIMIT))
    wait_for(lambda: ask(running, tenant).status == 200, "an answer", RELOADED_WITHIN_S)
    assert settled(running, tenant) > used

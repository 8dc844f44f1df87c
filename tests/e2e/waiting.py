"""Waiting for what comes about beside a request: settlements, processes, configurations."""

from __future__ import annotations

import time
from collections.abc import Callable

from kong_plugins.application.ports import Balance
from tests.e2e.conftest import Running


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)


def balance(running: Running, tenant: str) -> Balance:
    (only,) = running.ledger.balances(tenant)
    return only


def settled(running: Running, tenant: str) -> int:
    """Committed tokens once no hold is open."""
    wait_for(
        lambda: bool(running.ledger.balances(tenant)) and balance(running, tenant).state.held == 0, f"{tenant} settles"
    )
    return balance(running, tenant).state.committed

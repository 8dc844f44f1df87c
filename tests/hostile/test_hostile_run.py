"""A short run of the generator against the whole stack, and attacks that take more than one request."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import redis

from kong_plugins.application.books import read_events
from kong_plugins.token_quota.model_names import INVENTED_MAX
from tests.hostile.bodies import MODEL, plain, write
from tests.hostile.heads import ODD_HEADERS, TARGETS, Wire
from tests.hostile.oracle import check
from tests.hostile.runs import attack, control
from tests.hostile.sending import send
from tests.hostile.world import World, world

PATH = "/v1/chat/completions"
SLOW = 40


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("hostile")) as running:
        yield running


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=30) as client:
        yield client


def ask(http: httpx.Client, attacked: World, tenant: str, headers: dict[str, str] | None = None, **more: Any) -> Any:
    body = {"model": MODEL, "max_tokens": 16, "messages": [{"role": "user", "content": "How many?"}], **more}
    return http.post(attacked.stack.url + PATH, headers={"apikey": attacked.key(tenant), **(headers or {})}, json=body)


def test_whatever_is_sent_is_refused_or_metered(attacked: World) -> None:
    """Generated inputs of one seed: no generation without its event, none billed to another or twice, nothing of the
    engine's own that was forged, no key on a disk, and decent requests are answered meanwhile."""
    tried = attack(attacked, 20, range(180))
    assert tried.findings.problems == []
    assert tried.findings.generations > 10
    assert tried.statuses["400"] > 40


# Inputs that found something, or show a kind that has to stay as it is: seed and number.
@pytest.mark.parametrize(
    ("seed", "numbers"),
    [
        (2, (152,)),  # a number of 400 digits for temperature: the stand-in fell over it, and a hold stood meanwhile
        (2, (349, 2631)),  # a part's text given twice: the larger one is generated for, and billed
    ],
)
def test_inputs_that_found_something(attacked: World, seed: int, numbers: tuple[int, ...]) -> None:
    tried = attack(attacked, seed, numbers)
    assert tried.findings.problems == []


def wire_of(attacked: World, case: str, target: bytes, extra: bytes) -> Wire:
    sent = write(plain(PATH))
    head = b"POST " + target + b" HTTP/1.1\r\nHost: gateway\r\napikey: " + attacked.key("mallory").encode() + b"\r\n"
    head += b"x-hostile-case: " + case.encode() + b"\r\nContent-Type: application/json\r\n" + extra
    head += f"Connection: close\r\nContent-Length: {len(sent)}\r\n\r\n".encode()
    return Wire(head + sent, PATH, "mallory", case, sent)


def test_every_odd_header_and_target_by_itself(attacked: World) -> None:
    """The whole corpus with a decent body: refused, or run with its own event."""
    wires = [wire_of(attacked, f"header-{at}", PATH.encode(), extra) for at, extra in enumerate(ODD_HEADERS)]
    wires += [
        wire_of(attacked, f"target-{at}", target.replace(b"%s", PATH.encode()).replace(b"%%", b"%"), b"")
        for at, target in enumerate(TARGETS)
    ]
    came = [send(attacked.port, wire, decent=True) for wire in wires]
    findings = check(attacked, came, {wire.case: "mallory" for wire in wires})
    assert findings.problems == []
    assert sum(each.statuses == [200] for each in came) > 15


def test_a_key_of_another_tenant_gives_nobody_elses_answer(attacked: World, http: httpx.Client) -> None:
    """The same Idempotency-Key, body and retry count from two tenants: two generations, each with its own event; and a
    lie about a retry gets the liar's own earlier answer, without a second event."""
    headers = {"Idempotency-Key": "known-to-both", "x-stainless-retry-count": "1"}
    first, other, again = (ask(http, attacked, tenant, headers) for tenant in ("eve", "mallory", "eve"))
    assert [each.status_code for each in (first, other, again)] == [200, 200, 200]
    assert "idempotent-replayed" not in other.headers
    assert again.headers["idempotent-request-id"] == first.headers["x-request-id"]
    found = {entry.event_id: json.loads(entry.event)["data"] for entry in read_events(attacked.ledger)}
    assert found[first.headers["x-request-id"]]["tenant"] == "eve"
    assert found[other.headers["x-request-id"]]["tenant"] == "mallory"
    assert again.headers["x-request-id"] not in found


def test_invented_models_make_no_counters_without_end(attacked: World, http: httpx.Client) -> None:
    """A tenant with a budget per model makes up names: after INVENTED_MAX they are refused before any counter is made,
    and the model that is served goes on being answered."""
    assert ask(http, attacked, "mallory").status_code == 200
    statuses = Counter(
        ask(http, attacked, "mallory", model=f"invented-{number}").status_code for number in range(INVENTED_MAX + 10)
    )
    assert statuses[400] >= 10
    counters = [balance for balance in attacked.ledger.balances("mallory") if "model=" in balance.state.key]
    assert len(counters) <= INVENTED_MAX + 1
    assert ask(http, attacked, "mallory").status_code == 200


def test_thousands_of_keys_cost_a_bounded_time(attacked: World, http: httpx.Client) -> None:
    """Every Idempotency-Key that is remembered has a time to live in the ledger: none stays."""
    for number in range(30):
        assert ask(http, attacked, "eve", {"Idempotency-Key": f"one-of-many-{number}"}).status_code == 200
    with redis.Redis.from_url(attacked.stack.ledger_url) as client:
        immortal = {key for key in client.scan_iter(count=1000) if client.ttl(key) == -1}

    names = Counter(key.split(b":")[1].split(b"/")[0] for key in immortal)
    assert all(b"eve" not in key and b"one-of-many" not in key for key in immortal), names


def test_slow_bodies_and_slow_readers_starve_nobody(attacked: World) -> None:
    """Connections that send a body without end, or read nothing of their stream: others are answered, and what ran for
    the slow ones is settled when they leave."""
    with ExitStack() as open_ones:
        sent = write([*plain(PATH), ("stream", "true")])
        for number in range(SLOW):
            connection = open_ones.enter_context(socket.create_connection(("127.0.0.1", attacked.port), timeout=20))
            head = f"POST {PATH} HTTP/1.1\r\nHost: gateway\r\napikey: {attacked.key('eve')}\r\n"
            head += f"x-hostile-case: slow-{number}\r\nContent-Type: application/json\r\n"
            head += f"Content-Length: {len(sent)}\r\n\r\n"
            connection.sendall(head.encode() + (sent[:20] if number % 2 else sent))
        came = []
        threads = [
            threading.Thread(target=lambda at=at: came.append(send(attacked.port, control(at, attacked.key), True)))
            for at in range(9000, 9010)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [each.statuses for each in came] == [[200]] * 10
    deadline = time.monotonic() + 20
    while any(attacked.audit.open_holds()) and time.monotonic() < deadline:
        time.sleep(0.02)
    tenants = {f"slow-{number}": "eve" for number in range(SLOW)} | {each.wire.case: "victim" for each in came}
    assert check(attacked, came, tenants).problems == []


def test_what_the_stack_writes_is_its_owners(attacked: World, http: httpx.Client) -> None:
    """Ledger, logs, spool, sockets and the file that tells where the ledger is: for their owner only."""
    assert ask(http, attacked, "eve").status_code == 200
    for name in ("ledger", "logs", "spool"):
        assert (attacked.directory / name).stat().st_mode & 0o077 == 0, name
    assert (attacked.directory / "stack.json").stat().st_mode & 0o077 == 0
    sockets = list(Path(attacked.stack.run_dir).rglob("*.sock"))
    assert len(sockets) >= 2
    assert all(path.stat().st_mode & 0o077 == 0 for path in sockets)
    assert attacked.stack.run_dir.stat().st_mode & 0o077 == 0

"""What is posted to the collector is in the outbox when it is answered, once, whoever brings it and how often."""

from __future__ import annotations

import base64
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from outbox_parts import event_of

from kong_plugins.adapters.kong_request import read_tap
from kong_plugins.adapters.ledger import EmbeddedValkey, RedisLedger, connect_ledger
from kong_plugins.application.books import read_events
from kong_plugins.collector.access import Tokens
from kong_plugins.collector.http_app import make_app
from kong_plugins.collector.http_server import HttpServer, bind
from kong_plugins.collector.intake import Intake
from kong_plugins.domain.budgets import TOTAL
from kong_plugins.domain.events import billing_event, known_usage
from kong_plugins.domain.holds import HoldRequest, Line, Settlement, SettleStatus
from kong_plugins.domain.windows import RollingWindow

TOKEN = "correct-horse-battery"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
BODY_MAX = 200_000
LINE = Line("daily", RollingWindow(3600), TOTAL, 100_000, 5000)


@dataclass
class Posts:
    """Where to post, and the ledger behind it."""

    url: str
    ledger: RedisLedger

    def send(
        self, path: str, body: object, headers: dict[str, str] | None = None, content_type: str = "application/json"
    ) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {**(BEARER if headers is None else headers), "Content-Type": content_type}
        request = urllib.request.Request(self.url + path, data, headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def events(self) -> dict[str, dict[str, Any]]:
        """The outbox by event id; an id that is there twice fails."""
        found: dict[str, dict[str, Any]] = {}
        for entry in read_events(self.ledger):
            assert entry.event_id not in found
            found[entry.event_id] = {**json.loads(entry.event), "posted": dict(entry.posted)}
        return found

    def hold(self, request_id: str, tenant: str = "tenant_a") -> None:
        assert self.ledger.hold(HoldRequest(tenant, request_id, (LINE,), 60_000_000)).admitted


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(scope="module")
def served(valkey: EmbeddedValkey) -> Iterator[Posts]:
    ledger = connect_ledger(valkey.url, timeout_s=5)
    tokens = Tokens((TOKEN.encode(), b"the-one-before-it"))
    app = make_app(
        Intake(ledger),
        tokens,
        metrics=lambda: (b"", "text/plain"),
        not_ready=lambda: "",
        count=lambda _path, _counts: None,
        body_bytes_max=BODY_MAX,
    )
    sock = bind("127.0.0.1:0", tokens)
    server = HttpServer(app, sock)
    server.start()
    yield Posts(f"http://127.0.0.1:{sock.getsockname()[1]}", ledger)
    server.stop()
    ledger.close()


@pytest.fixture
def posts(served: Posts, valkey: EmbeddedValkey) -> Posts:
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
    return served


def record(request_id: str, **more: Any) -> dict[str, Any]:
    """As Kong 3.9.1 serializes a request, cut to what is read and what must not leave."""
    return {
        "request": {
            "id": request_id,
            "method": "POST",
            "headers": {"apikey": "sk-secret", "authorization": "REDACTED"},
        },
        "response": {"status": 200, "headers": {}},
        "latencies": {"kong": 3, "proxy": 120, "receive": 0, "request": 900},
        "consumer": {"id": "2cf5ee6c-2d0d-521e-94f7-3ac078dbbbe6", "username": "tenant_a"},
        "service": {"id": "c01215fb", "name": "llm"},
        "route": {"id": "e4b88d1c", "name": "chat"},
        "source": "upstream",
        "upstream_status": "200",
        "started_at": 1763830000000,
        **more,
    }


def tap(request_id: str, **more: Any) -> dict[str, Any]:
    """The tap's table of an admitted request, as the plugins see it too."""
    return {
        "v": 1,
        "request_id": request_id,
        "log": {
            "hold": request_id,
            "tenant": "tenant_a",
            "model": "deepseek-r1",
            "source": "/kong/node-1",
            "bound": [4000, 1000],
            "budgets": ["daily"],
        },
        "endpoint": "chat",
        "stream": True,
        "text_bytes": 0,
        "status": 200,
        "source": "service",
        "started_ms": 1763830000000,
        "last_ms": 1763830000900,
        "ended": True,
        "finish": "stop",
        **more,
    }


KNOWN = {"usage": {"prompt": 1200, "completion": 300}, "evidence": "exact"}


def test_a_logged_request_is_settled_like_the_plugins_settle_it(posts: Posts) -> None:
    """Usage onto the budget, the hold gone, the plugins' very event; a batch that comes again changes nothing."""
    posts.hold("r1")
    batch = [record("r1", usage_tap=tap("r1", **KNOWN))]
    assert posts.send("/log", batch) == (200, {"new": 1})
    assert posts.send("/log", batch[0]) == (200, {"repeated": 1})
    (state,) = posts.ledger.peek("tenant_a", (LINE,))
    assert (state.committed, state.held) == (1500, 0)
    event = posts.events()["r1"]
    assert event["posted"] == {"daily": 1500}
    admitted, ending = read_tap(tap("r1", **KNOWN)) or (None, None)
    assert admitted is not None
    assert ending is not None
    expected = json.loads(billing_event(admitted, ending, *(known_usage(ending) or ())))
    assert {**expected, "posted": {"daily": 1500}} == event


def test_the_log_comes_after_a_plugin_and_changes_nothing(posts: Posts) -> None:
    posts.hold("r1")
    admitted, ending = read_tap(tap("r1", **KNOWN)) or (None, None)
    assert admitted is not None
    assert ending is not None
    usage, evidence = known_usage(ending) or (None, None)
    assert usage is not None
    assert evidence is not None
    event = billing_event(admitted, ending, usage, evidence)
    assert posts.ledger.settle(Settlement("tenant_a", "r1", usage, evidence, event)).status is SettleStatus.POSTED
    assert posts.send("/log", record("r1", usage_tap=tap("r1", **KNOWN))) == (200, {"repeated": 1})
    assert list(posts.events()) == ["r1"]


def test_a_log_record_never_comes_before_a_better_event(posts: Posts) -> None:
    """An admitted request whose usage the record does not tell: not booked, with the tap's table or without it, and
    whoever knows it still can."""
    posts.hold("r1")
    assert posts.send("/log", record("r1", usage_tap=tap("r1"))) == (200, {"usage_unknown": 1})
    assert posts.send("/log", record("r1", usage_tap=tap("r1", text_bytes=40))) == (200, {"usage_unknown": 1})
    assert posts.send("/log", record("r1")) == (200, {"repeated": 1})
    # The tap's mark without log_usage; tenants may be named otherwise than their consumers.
    marked = record("r1", consumer={"username": "another"}, usage_tap={"v": 1, "admitted": True})
    assert posts.send("/log", marked) == (200, {"usage_unknown": 1})
    assert posts.events() == {}
    assert posts.send("/log", record("r1", usage_tap=tap("r1", **KNOWN))) == (200, {"new": 1})
    assert posts.events()["r1"]["data"]["prompt"] == 1200


def test_requests_that_no_plugin_of_ours_admitted_are_recorded_as_far_as_they_are_known(posts: Posts) -> None:
    """By ai-proxy's counts, else without usage as `held`; without a consumer, or malformed, they are counted."""
    ai = {"proxy": {"meta": {"response_model": "gpt-4o"}, "usage": {"prompt_tokens": 20, "completion_tokens": 7.0}}}
    anonymous = record("r3")
    del anonymous["consumer"]
    batch = [record("r1", ai=ai), record("r2"), anonymous, {"request": {}}, 7, record("x" * 300)]
    denied = record("r4", source="kong", upstream_status="", response={"status": 429})
    assert posts.send("/log", [*batch, denied]) == (200, {"new": 3, "no_consumer": 1, "malformed": 3})
    events = posts.events()
    data = {event_id: event["data"] for event_id, event in events.items()}
    assert set(data) == {"r1", "r2", "r4"}
    assert (data["r1"]["model"], data["r1"]["prompt"], data["r1"]["completion"]) == ("gpt-4o", 20, 7)
    assert (data["r1"]["evidence"], data["r1"]["outcome"]) == ("exact", "completed")
    assert (data["r2"]["prompt"], data["r2"]["evidence"]) == (0, "held")
    assert (data["r2"]["tenant"], data["r2"]["service"], data["r2"]["route"]) == ("tenant_a", "llm", "chat")
    assert (data["r4"]["outcome"], data["r4"]["status"]) == ("denied", 429)
    assert events["r1"]["time"] == "2025-11-22T16:46:40.900Z"
    assert "sk-secret" not in json.dumps(events)


def test_what_kong_answered_by_itself_is_never_charged(posts: Posts) -> None:
    """A price per request may be for failed ones too: a refusal is none, and a replay or preflight is no request."""
    own = {"source": "kong", "upstream_status": ""}
    answers = [
        record(f"r{status}", response={"status": status}, **own) for status in (200, 204, 400, 409, 422, 499, 503)
    ]
    gone = record("gone", source="kong", upstream_status="504", response={"status": 504})
    assert posts.send("/log", [*answers, gone]) == (200, {"not_asked": 3, "new": 5})
    found = {event_id: event["data"]["outcome"] for event_id, event in posts.events().items()}
    assert found == {**dict.fromkeys(("r400", "r409", "r422", "r503"), "denied"), "gone": "failed"}


def cloud_event(event_id: str, **data: Any) -> dict[str, Any]:
    event = json.loads(event_of(event_id, "tenant_a", 100, 20))
    event["data"].update(data)
    return event


ADJUSTMENT = {
    "specversion": "1.0",
    "id": "credit-1",
    "source": "/finance",
    "type": "kong.token-quota.adjustment",
    "time": "2025-11-22T10:00:00Z",
    "data": {
        "schema": 1,
        "tenant": "tenant_a",
        "kind": "credit",
        "amount": 12_500_000,
        "currency": "EUR",
        "account": "goodwill",
        "reason": "incident",
    },
}


def test_an_event_is_taken_in_each_of_the_three_modes_once(posts: Posts) -> None:
    structured, batch = "application/cloudevents+json", "application/cloudevents-batch+json"
    assert posts.send("/events", cloud_event("e1"), content_type=structured) == (200, {"new": 1})
    again = [cloud_event("e1"), cloud_event("e2"), ADJUSTMENT]
    assert posts.send("/events", again, content_type=batch) == (200, {"repeated": 1, "new": 2})
    event = cloud_event("e3")
    headers = {f"ce-{name}": str(event[name]) for name in ("specversion", "id", "source", "type", "time", "subject")}
    assert posts.send("/events", event["data"], {**BEARER, **headers}) == (200, {"new": 1})
    assert posts.send("/events", event["data"], {**BEARER, **headers}) == (200, {"repeated": 1})
    events = posts.events()
    assert set(events) == {"e1", "e2", "e3", "credit-1"}
    assert events["e3"]["data"] == event["data"]


def test_an_event_of_a_held_request_ends_its_hold_and_one_without_usage_does_not(posts: Posts) -> None:
    kind = "application/cloudevents+json"
    posts.hold("r1")
    assert posts.send("/events", cloud_event("r1", prompt=0, completion=0, evidence="held"), content_type=kind) == (
        200,
        {"repeated": 1},
    )
    assert posts.events() == {}
    assert posts.send("/events", cloud_event("r1"), content_type=kind) == (200, {"new": 1})
    (state,) = posts.ledger.peek("tenant_a", (LINE,))
    assert (state.committed, state.held) == (120, 0)


def test_what_is_no_event_of_ours_is_refused_each_with_its_reason(posts: Posts) -> None:
    """The others of its batch are taken: whoever sent it need not take it apart."""
    foreign = {**cloud_event("e2"), "type": "com.example.other"}
    batch = [cloud_event("e1"), foreign, cloud_event("e3", prompt=-1), cloud_event("e4", cached=101), {"id": 5}, []]
    status, answer = posts.send("/events", batch, content_type="application/cloudevents-batch+json")
    assert (status, answer["new"], answer["rejected"]) == (422, 1, 5)
    assert [(error["index"], error["id"]) for error in answer["errors"]] == [
        (1, "e2"),
        (2, "e3"),
        (3, "e4"),
        (4, ""),
        (5, ""),
    ]
    assert all(error["reason"] for error in answer["errors"])
    assert "101 of 100" in answer["errors"][2]["reason"]
    large = cloud_event("e5", attributes={"a": "x" * 70_000})
    assert posts.send("/events", large, content_type="application/cloudevents+json")[0] == 422
    assert set(posts.events()) == {"e1"}
    assert posts.send("/events", {"no": "mode"})[0] == 400
    assert posts.send("/events", b"{", content_type="application/cloudevents+json")[0] == 400
    assert posts.send("/log", b"[{]")[0] == 400


def test_a_clients_bytes_that_are_no_text_cost_no_record(posts: Posts) -> None:
    """Kong writes header values as they came: one bad byte would refuse a batch of many tenants' records."""
    body = json.dumps([{**record("r1"), "mark": "caf?"}, record("r2")]).encode().replace(b"caf?", b"caf\xe9")
    assert posts.send("/log", body)[0] == 200
    assert set(posts.events()) == {"r1", "r2"}


def test_only_a_token_opens(posts: Posts) -> None:
    """Bearer, Basic's password (http-log's URL with user info) and the header of its own; every other answer is 401."""
    one = [record("r1")]
    basic = base64.b64encode(f"kong:{TOKEN}".encode()).decode()
    for headers in (
        {"Authorization": f"Basic {basic}"},
        {"X-Collector-Token": TOKEN},
        {"Authorization": "Bearer the-one-before-it"},
    ):
        assert posts.send("/log", one, headers)[0] == 200
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": "Basic !"},
        {"Authorization": TOKEN},
        {"X-Collector-Token": ""},
    ):
        for path in ("/log", "/events"):
            assert posts.send(path, [record("r2")], headers)[0] == 401
    assert set(posts.events()) == {"r1"}


def test_a_body_too_large_is_turned_away(posts: Posts) -> None:
    assert posts.send("/log", b" " * (BODY_MAX + 1))[0] == 413


def test_nothing_is_confirmed_while_the_ledger_is_away(tmp_path: Path) -> None:
    """503 for every post, so that Kong keeps its batch; taken once the ledger is back."""
    with EmbeddedValkey(tmp_path / "valkey") as server:
        ledger = connect_ledger(server.url, timeout_s=0.3)
        tokens = Tokens((TOKEN.encode(),))
        app = make_app(
            Intake(ledger), tokens, metrics=lambda: (b"", ""), not_ready=lambda: "no", count=lambda _path, _counts: None
        )
        sock = bind("127.0.0.1:0", tokens)
        http = HttpServer(app, sock)
        http.start()
        posts = Posts(f"http://127.0.0.1:{sock.getsockname()[1]}", ledger)
        posts.hold("r1")
        server.stop()
        for batch in ([record("r2")], [record("r1", usage_tap=tap("r1", **KNOWN))]):
            assert posts.send("/log", batch)[0] == 503
        assert posts.send("/events", cloud_event("e1"), content_type="application/cloudevents+json")[0] == 503
        server.start()
        assert posts.send("/log", [record("r2"), record("r1", usage_tap=tap("r1", **KNOWN))]) == (200, {"new": 2})
        assert set(posts.events()) == {"r1", "r2"}
        http.stop()
        ledger.close()


def test_twenty_posts_of_the_same_at_once_make_one_event(posts: Posts) -> None:
    posts.hold("r1")
    answers: list[tuple[int, Any]] = []
    body = record("r1", usage_tap=tap("r1", **KNOWN))
    threads = [threading.Thread(target=lambda: answers.append(posts.send("/log", body))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(next(iter(answer)) for _, answer in answers) == ["new"] + ["repeated"] * 19
    (state,) = posts.ledger.peek("tenant_a", (LINE,))
    assert state.committed == 1500

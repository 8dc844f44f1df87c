"""Retries through the plugin: who gets an answer again, who has to wait, and who is charged for what."""

from __future__ import annotations

import json
from typing import Any

import gevent
import pytest
from scripted_kong import Bench, ScriptedKong, budget, chat, tap_table

from kong_plugins.adapters.answers import pack
from kong_plugins.adapters.kong_request import WholeAnswer
from kong_plugins.billing_events import plugin as billing_events
from kong_plugins.domain.attempts import Earlier, Standing
from kong_plugins.domain.demand import Endpoint
from kong_plugins.token_quota.responses import Caller
from kong_plugins.token_quota.retries import earlier_reply

ROOMY = {"budgets": [budget(limit=100_000)]}
BODY = b'{"id":"chatcmpl-1","x":"\xff"}'
WHOLE = {"usage": {"prompt": 12, "completion": 40}, "evidence": "exact", "finish": "stop"}
CUT = {"usage": {"prompt": 12, "completion": 5}, "evidence": "continuous", "ended": False}
LEFT = {"ended": False, "status": 499, "upstream_status": "-", "usage": {"prompt": 12, "completion": 5}}


def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kong_plugins.application.admit.RUNNING_PAUSES_S", ())


def test_a_request_that_nobody_knows_again_costs_what_it_did() -> None:
    """Neither key nor count: no attempt, nothing kept, one call in log."""
    bench = Bench(**ROOMY)
    admitted = bench.access()
    assert bench.ledger.holds[0].attempt is None
    assert "keep" not in admitted.decision["meter"]
    assert "retriable" not in admitted.decision["log"]
    assert bench.log(admitted, kept=BODY, **WHOLE).calls == ["ctx.shared.get usage_tap"]


def test_the_same_key_gets_the_same_answer_and_nobody_pays_twice() -> None:
    """Status, type and bytes as kept, marked as replayed, under an id of its own; no hold, no event, no charge."""
    bench = Bench(**ROOMY)
    admitted = bench.access(idempotency_key='"k"')
    assert admitted.decision["meter"]["keep"] == 262_144
    logged = bench.log(admitted, kept=BODY, **WHOLE)
    assert logged.calls == ["ctx.shared.get usage_tap", "ctx.shared.get usage_tap_answer"]
    again = bench.access(idempotency_key="k")
    assert again.exit == (
        200,
        BODY,
        {
            "Content-Type": "application/json",
            "Idempotent-Replayed": "true",
            "Idempotent-Request-Id": f"{1:032x}",
            "X-Request-Id": f"{2:032x}",
        },
    )
    assert (bench.committed(), bench.held(), len(bench.events())) == (52, 0, 1)


def test_of_two_equal_requests_only_the_retry_is_known_again() -> None:
    """An SDK's first try is a new request whatever was asked before; its second is answered for."""
    bench = Bench(**ROOMY)
    for _ in range(2):
        bench.log(bench.access(retry_count="0"), kept=BODY, **WHOLE)
    assert bench.access(retry_count="1").status == 200
    assert bench.access(chat(max_tokens=65), retry_count="1").decision["allow"] is True
    assert bench.committed() == 104


def test_a_retry_waits_a_moment_for_the_attempt_before_it() -> None:
    """A client that gave up is back before its first attempt has settled: it is let in, not sent away."""
    bench = Bench(**ROOMY)
    first = bench.access(retry_count="0")
    retry = ScriptedKong(usage_gate=bench.gate(retry_count="1"))
    waiting = gevent.spawn(retry.run, bench.plugin.access)
    gevent.sleep(0)
    assert "token_quota" not in retry.tables
    bench.log(first, **LEFT)
    waiting.join(timeout=5)
    assert retry.decision["allow"] is True


def test_while_an_attempt_runs_the_next_is_told_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """409 with times that SDKs obey, nothing held for it."""
    no_pause(monkeypatch)
    bench = Bench(**ROOMY)
    bench.access(idempotency_key="k")
    held = bench.held()
    kong = bench.access(idempotency_key="k")
    assert (kong.status, kong.error["code"]) == (409, "idempotency_key_in_use")
    assert (kong.headers["Retry-After"], kong.headers["retry-after-ms"]) == ("1", "1000")
    assert "x-should-retry" not in kong.headers
    assert bench.held() == held


def test_the_wait_is_short() -> None:
    """A running attempt is looked at five times, then the client is told."""
    bench = Bench(**ROOMY)
    bench.access(idempotency_key="k")
    looks = len(bench.ledger.holds)
    assert bench.access(idempotency_key="k").status == 409
    assert len(bench.ledger.holds) - looks == 5


def test_a_key_used_for_something_else_is_refused() -> None:
    """422, whether the first still runs or not; another tenant's key is another key."""
    bench = Bench(**ROOMY)
    admitted = bench.access(idempotency_key="k")
    for _ in range(2):
        kong = bench.access(chat(max_tokens=65), idempotency_key="k")
        assert (kong.status, kong.error["code"]) == (422, "idempotency_key_reused")
        bench.log(admitted, kept=BODY, **WHOLE)
    other = bench.access(chat(max_tokens=65), idempotency_key="k", consumer={"id": "9", "username": "tenant_b"})
    assert other.decision["allow"] is True


@pytest.mark.parametrize("ending", [CUT, LEFT, {"status": 502, "source": "error"}, {**CUT, "error": True}])
def test_after_a_broken_attempt_the_retry_runs_and_is_charged_once(ending: dict[str, Any]) -> None:
    """The partial charge is taken back by an event when the retry settles."""
    bench = Bench(**ROOMY)
    bench.log(bench.access(idempotency_key="k"), **ending)
    bench.log(bench.access(idempotency_key="k"), kept=BODY, **WHOLE)
    assert bench.committed() == 52
    reversals = [event for event in bench.events() if event["type"].endswith(".reversal")]
    sums = [event["data"]["prompt"] + event["data"]["completion"] for event in bench.events()]
    taken_back = sum(event["data"]["prompt"] + event["data"]["completion"] for event in reversals)
    assert sum(sums) - 2 * taken_back == 52
    assert [event["data"]["reverses"] for event in reversals] == ([f"{1:032x}"] if taken_back else [])


def test_a_broken_attempt_keeps_no_answer() -> None:
    """Whatever the tap says: of an answer that ended in an error a retry gets a better one."""
    bench = Bench(**ROOMY)
    logged = bench.log(bench.access(idempotency_key="k"), kept=BODY, **{**WHOLE, "error": True})
    assert logged.calls == ["ctx.shared.get usage_tap"]
    assert bench.access(idempotency_key="k").decision["allow"] is True


def test_an_answer_too_large_to_keep_is_not_generated_again() -> None:
    """It was charged: the client is told, and told not to try again."""
    bench = Bench(**ROOMY, idempotency_answer_bytes_max=10)
    admitted = bench.access(idempotency_key="k")
    assert admitted.decision["meter"]["keep"] == 10
    logged = bench.log(admitted, answer="too_large", **WHOLE)
    assert logged.calls == ["ctx.shared.get usage_tap"]
    kong = bench.access(idempotency_key="k")
    assert (kong.status, kong.error["code"]) == (409, "idempotency_answer_not_kept")
    assert kong.headers["x-should-retry"] == "false"
    assert bench.committed() == 52


def test_the_charge_does_not_hang_on_the_answer_that_is_kept() -> None:
    """A worker that ends before it hands the answer over: settled all the same, and a retry runs again."""
    bench = Bench(**ROOMY)
    kong = ScriptedKong(usage_tap=tap_table(bench.access(idempotency_key="k"), answer="kept", **WHOLE))
    kong.gone.add("usage_tap_answer")
    with pytest.raises(ConnectionError):
        bench.plugin.log(kong)
    assert (bench.committed(), bench.held(), len(bench.events())) == (52, 0, 1)
    assert bench.access(idempotency_key="k").decision["allow"]


def test_an_answer_that_never_came_to_the_ledger_is_generated_again() -> None:
    """The tap's table is not there: the retry runs, and one of the two is charged."""
    bench = Bench(**ROOMY)
    bench.log(bench.access(idempotency_key="k"), answer="kept", **WHOLE)
    bench.log(bench.access(idempotency_key="k"), kept=BODY, **WHOLE)
    assert bench.committed() == 52
    assert bench.access(idempotency_key="k").status == 200


def test_billing_events_may_settle_first() -> None:
    """It never fetches the answer; token-quota still hands it in."""
    bench = Bench(**ROOMY)
    admitted = bench.access(idempotency_key="k")
    other = billing_events.Plugin({"ledger_url": "redis://127.0.0.1/0"}, bench.parts)
    kong = ScriptedKong(usage_tap=bench.log(admitted, kept=BODY, **WHOLE).tables["usage_tap"])
    first = bench.access(chat(max_tokens=65), idempotency_key="other")
    table = {**kong.tables["usage_tap"], "log": first.decision["log"]}
    assert ScriptedKong(usage_tap=table).run(other.log).calls == ["ctx.shared.get usage_tap"]
    bench.parts.later.flush()
    assert bench.committed() == 104
    bench.log(first, kept=BODY, **WHOLE)
    assert bench.access(chat(max_tokens=65), idempotency_key="other").status == 200
    assert bench.committed() == 104


def test_billing_events_waits_a_moment_where_an_answer_is_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settled without its answer, a request would be generated anew by a retry that comes just then. Nothing that waits
    is lost when the rows go."""
    no_pause(monkeypatch)
    bench = Bench(**ROOMY)
    other = billing_events.Plugin({"ledger_url": "redis://127.0.0.1/0"}, bench.parts)
    first = bench.access(idempotency_key="k")
    ScriptedKong(usage_tap=tap_table(first, answer="kept", **WHOLE)).run(other.log)
    assert bench.access(idempotency_key="k").status == 409
    bench.log(first, kept=BODY, **WHOLE)
    assert bench.access(idempotency_key="k").status == 200
    second = bench.access(idempotency_key="other")
    ScriptedKong(usage_tap=tap_table(second, answer="kept", **WHOLE)).run(other.log)
    other.close()
    bench.plugin.close()
    assert (bench.committed(), bench.held(), len(bench.events())) == (104, 0, 2)


def test_a_denied_request_leaves_its_key_free() -> None:
    """It never ran."""
    bench = Bench(budgets=[budget(limit=70)])
    assert bench.access(idempotency_key="k").status == 429
    assert bench.access(chat(max_tokens=65), idempotency_key="k").status == 429


def test_a_retry_is_known_also_where_its_prompt_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second, closer look at a full budget carries the attempt too."""
    no_pause(monkeypatch)
    long = chat(model="deepseek-r1", messages=[{"role": "user", "content": "and so on " * 30}], max_tokens=10)
    bench = Bench(budgets=[budget(limit=300)], chat_template="deepseek_r1", tokenizers={"deepseek-r1": "deepseek-r1"})
    assert bench.access(long, idempotency_key="k").decision["allow"] is True
    assert len(bench.ledger.holds) == 2
    assert bench.access(long, idempotency_key="k").status == 409


def test_several_keys_and_bad_ones_are_refused_before_anything_is_held() -> None:
    """400 with the code, the log untouched."""
    bench = Bench(**ROOMY)
    for gate in ({"idempotency_key": "a b"}, {"idempotency_key": "a", "idempotency_keys": 2}, {"idempotency_key": ""}):
        kong = bench.access(**gate)
        assert (kong.status, kong.error["code"]) == (400, "invalid_idempotency_key")
    assert bench.ledger.holds == []


def test_a_lost_reply_does_not_lock_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hold took effect, its client got a 503, and nothing will ever settle it: the retry is to run."""
    no_pause(monkeypatch)
    bench = Bench(**ROOMY)
    bench.ledger.lose_replies = True
    assert bench.access(idempotency_key="k").status == 503
    bench.ledger.lose_replies = False
    assert bench.parts.releases.join(timeout_s=5)
    assert bench.access(idempotency_key="k").decision["allow"] is True


def test_a_hold_that_arrives_late_does_not_lock_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stalled store reads the hold after the word that it is given up: it is emptied all the same."""
    no_pause(monkeypatch)
    monkeypatch.setattr("kong_plugins.application.admit.RELEASE_AGAIN_S", 0.2)
    bench = Bench(**ROOMY)
    bench.ledger.late_s = 0.05
    assert bench.access(idempotency_key="k").status == 503
    bench.ledger.late_s = None
    gevent.joinall(bench.ledger.arriving)
    assert bench.held() > 0
    assert bench.parts.releases.join(timeout_s=5)
    assert bench.held() == 0
    assert bench.access(idempotency_key="k").decision["allow"] is True


def test_the_clients_key_is_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    """Not in what the ledger gets, not in decisions, answers, events or logs."""
    caplog.set_level("DEBUG")
    bench = Bench(**ROOMY)
    admitted = bench.access(idempotency_key="my-secret")
    bench.log(admitted, kept=BODY, **WHOLE)
    seen = [bench.ledger.holds, admitted.decision, bench.access(idempotency_key="my-secret").exit, bench.events()]
    assert "my-secret" not in repr(seen) + caplog.text


STANDINGS = {
    Standing.RUNNING: (409, "idempotency_key_in_use"),
    Standing.GONE: (409, "idempotency_answer_not_kept"),
    Standing.MISMATCH: (422, "idempotency_key_reused"),
}


@pytest.mark.parametrize("standing", STANDINGS)
def test_each_client_is_told_in_its_own_shape(standing: Standing) -> None:
    """OpenAI's, Anthropic's and a problem document say the same."""
    status, code = STANDINGS[standing]
    earlier = Earlier(standing, "h")
    openai = json.loads(earlier_reply(earlier, Caller("r", Endpoint.CHAT)).body)
    anthropic = json.loads(earlier_reply(earlier, Caller("r", Endpoint.MESSAGES)).body)
    problem = earlier_reply(earlier, Caller("r", Endpoint.CHAT, "application/problem+json"))
    assert openai["error"]["code"] == anthropic["error"]["code"] == json.loads(problem.body)["code"] == code
    assert anthropic["type"] == "error"
    assert (problem.status, json.loads(problem.body)["status"]) == (status, status)


@pytest.mark.parametrize("answer", [None, b"", b"\x02x", pack(WholeAnswer(200, "t", b""))[:-2]])
def test_an_answer_that_cannot_be_read_is_not_kept(answer: bytes | None) -> None:
    """Of a later release, say: the client is told, rather than charged again or given garbage."""
    told = earlier_reply(Earlier(Standing.FINISHED, "h", answer), Caller("r", Endpoint.CHAT))
    assert (told.status, json.loads(told.body)["error"]["code"]) == (409, "idempotency_answer_not_kept")


def test_a_kept_content_type_cannot_end_its_header() -> None:
    """It came from an engine."""
    told = earlier_reply(Earlier(Standing.FINISHED, "h", pack(WholeAnswer(200, "a\r\nb", b"x"))), Caller("r"))
    assert told.headers["Content-Type"] == "a??b"

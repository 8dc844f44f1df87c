"""How a request is known again: keys, what was asked, counts of SDKs, and how answers are packed."""

from __future__ import annotations

import zlib
from typing import Any

import msgpack
import pytest
from scripted_kong import Bench, budget

from kong_plugins.adapters.answers import UnreadableAnswerError, pack, unpack
from kong_plugins.adapters.kong_request import GateRequest, WholeAnswer, read_gate
from kong_plugins.domain.attempts import Attempt
from kong_plugins.domain.errors import BadRequest
from kong_plugins.token_quota.config import parse_config
from kong_plugins.token_quota.retries import attempt_of, parse_key

KEYS: dict[str, str] = {
    "abc-123": "abc-123",
    '"abc-123"': "abc-123",
    '"8e03978e-40d5-43dd-bc93-6894a57f9324"': "8e03978e-40d5-43dd-bc93-6894a57f9324",
    '"a b"': "a b",
    r'"a\"b\\c"': r'a"b\c',
    'a"b': 'a"b',
    "~!": "~!",
    "x" * 255: "x" * 255,
    '"' + "x" * 255 + '"': "x" * 255,
}
BAD_KEYS = [
    "",
    '""',
    '"',
    '"abc',
    'abc" ',
    '"a"b"',
    '"a"; q=1',
    r'"a\b"',
    '"a\\"',
    "a b",
    "a\tb",
    "ä",
    "a\udcff",
    "a\x7f",
    '"a\n"',
    "x" * 256,
    '"' + "x" * 256 + '"',
]


@pytest.mark.parametrize("value", KEYS)
def test_a_key_is_known_quoted_and_bare(value: str) -> None:
    """A structured field's string with its escapes, or the same characters without quotes."""
    assert parse_key(value) == KEYS[value]


@pytest.mark.parametrize("value", BAD_KEYS)
def test_what_cannot_be_a_key_is_refused(value: str) -> None:
    """Rather than taken for another key, or for none. The message does not repeat it."""
    with pytest.raises(BadRequest) as refused:
        parse_key(value)
    assert (refused.value.status, refused.value.code) == (400, "invalid_idempotency_key")
    assert len(value) < 3 or value not in refused.value.message


def attempt(tenant: str = "tenant_a", config: dict[str, Any] | None = None, **gate: Any) -> Attempt | None:
    request = read_gate(Bench(budgets=[budget()]).gate(**gate))
    assert isinstance(request, GateRequest)
    parsed = parse_config({"ledger_url": "redis://127.0.0.1/0", **(config or {})})
    return attempt_of(request, tenant, parsed.idempotency)


def known(tenant: str = "tenant_a", config: dict[str, Any] | None = None, **gate: Any) -> Attempt:
    found = attempt(tenant, config, **gate)
    assert found is not None
    return found


def test_a_key_is_its_tenants_own_and_leaves_as_a_digest() -> None:
    """The same for quoted and bare; another tenant's is another; nothing of it can be read."""
    first = known(idempotency_key='"order-17"')
    assert first.key == known(idempotency_key="order-17").key
    assert first.key != known("tenant_b", idempotency_key="order-17").key
    assert first.key != known(idempotency_key="order-18").key
    assert "order" not in repr(first)
    assert (first.derived, first.ttl_us, first.attempts_max) == (False, 3_600_000_000, 4)


def test_what_was_asked_is_path_body_and_service() -> None:
    """Any of them differs: another fingerprint. The key stays."""
    first = known(idempotency_key="k", body=b'{"a":1}')
    others = [
        known(idempotency_key="k", body=b'{"a": 1}'),
        known(idempotency_key="k", body=b'{"a":1}', path="/v1/completions"),
        known(idempotency_key="k", body=b'{"a":1}', service={"id": "s2", "name": "qwen"}),
    ]
    assert len({first.fingerprint, *(other.fingerprint for other in others)}) == 4
    assert {other.key for other in others} == {first.key}
    assert known(idempotency_key="k", body=b'{"a":1}').fingerprint == first.fingerprint


def test_where_a_part_ends_is_part_of_it() -> None:
    """Path and body that read the same when joined are not the same request."""
    assert known(retry_count="0", path="/v1/a", body=b"bc").key != known(retry_count="0", path="/v1/ab", body=b"c").key


@pytest.mark.parametrize(
    ("count", "retry"), [("0", False), ("1", True), ("12", True), ("", None), ("-1", None), ("1e3", None), ("x", None)]
)
def test_an_sdks_count_makes_a_key_of_what_was_asked(count: str, retry: bool | None) -> None:
    """From 0 on; the first begins a new request. What is no count tells nothing."""
    found = attempt(retry_count=count)
    assert (found.retry if found else None) == retry
    if found:
        assert (found.derived, found.key == found.fingerprint, found.ttl_us) == (True, True, 120_000_000)


def test_a_key_goes_before_a_count() -> None:
    """And carries the count's word all the same."""
    found = known(idempotency_key="k", retry_count="2")
    assert (found.derived, found.retry) == (False, True)


def test_the_operator_says_which_keys_count() -> None:
    """off: none, not even a bad one; header: no derived ones."""
    assert attempt(config={"idempotency_keys": "off"}, idempotency_key="a b", retry_count="1") is None
    assert attempt(config={"idempotency_keys": "header"}, retry_count="1") is None
    found = known(
        config={"idempotency_keys": "header", "idempotency_ttl_s": 60, "idempotency_attempts_max": 2},
        idempotency_key="k",
    )
    assert (found.ttl_us, found.attempts_max) == (60_000_000, 2)
    assert attempt() is None


def test_several_keys_are_none() -> None:
    """Nobody could say which one was meant."""
    with pytest.raises(BadRequest, match="one Idempotency-Key"):
        attempt(idempotency_key="k", idempotency_keys=2)


ANSWERS = [
    WholeAnswer(200, "application/json", b'{"a":1}'),
    WholeAnswer(200, "text/event-stream; charset=utf-8", b"data: \xff\x00\n\n" * 20_000),
    WholeAnswer(200, "t\udcffext", b""),
]


@pytest.mark.parametrize("answer", ANSWERS, ids=["whole", "stream", "odd"])
def test_a_packed_answer_is_the_same_again(answer: WholeAnswer) -> None:
    """Byte for byte, and small."""
    packed = pack(answer)
    assert unpack(packed) == answer
    assert len(packed) < 100 + len(answer.body) // 20


def _packed(*fields: Any) -> bytes:
    return b"\x01" + zlib.compress(msgpack.packb(fields))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x02" + pack(ANSWERS[0])[1:],
        pack(ANSWERS[0])[:-1],
        b"\x01garbage",
        _packed(200, "t"),
        _packed("200", "t", b""),
        _packed(200, "t", "text"),
        b"\x01" + zlib.compress(b"\xc1"),
        b"\x01" + zlib.compress(bytes(80 << 20)),
    ],
    ids=["nothing", "another version", "cut", "garbage", "short", "types", "text", "no msgpack", "a bomb"],
)
def test_what_is_no_answer_is_unreadable(data: bytes) -> None:
    """Damaged, of another release, or far larger than it looks."""
    with pytest.raises(UnreadableAnswerError):
        unpack(data)

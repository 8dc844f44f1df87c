"""Retries of a request: how it is known again, and what a client is told that comes back for it."""

from __future__ import annotations

import logging
import re
from hashlib import blake2b

from kong_plugins.adapters.answers import UnreadableAnswerError, unpack
from kong_plugins.adapters.kong_request import GateRequest
from kong_plugins.domain.attempts import Attempt, Earlier, Standing
from kong_plugins.domain.errors import BadRequest
from kong_plugins.token_quota.config import Idempotency, KeysOf
from kong_plugins.token_quota.responses import Caller, Problem, Reply, header_value, reply
from kong_plugins.token_quota.schema import DERIVED_TTL_S

KEY_CHARS_MAX = 255
RUNNING_RETRY_MS = 1_000

_log = logging.getLogger(__name__)

_BARE = re.compile(r"[!#-~][!-~]*")
_QUOTED = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"')  # a structured field's string (RFC 9651)
_ESCAPED = re.compile(r"\\(.)")
_COUNT = re.compile(r"[0-9]{1,3}")

_FINAL = {"x-should-retry": "false"}  # what SDKs obey: they retry any 409 without it
_SOON = {"Retry-After": str(-(-RUNNING_RETRY_MS // 1000)), "retry-after-ms": str(RUNNING_RETRY_MS)}


def attempt_of(gate: GateRequest, tenant: str, config: Idempotency) -> Attempt | None:
    """What the hold of a request is to say of its logical request; None for one that nobody will know again.

    Only digests leave here: a client's key may be a secret, or easy to guess.

    Raises:
        BadRequest: an Idempotency-Key that cannot be one.
    """
    if config.keys is KeysOf.OFF:
        return None
    if gate.idempotency_key is not None:
        if gate.idempotency_keys > 1:
            raise _bad_key("Send one Idempotency-Key, not several.")
        key = parse_key(gate.idempotency_key)
        return Attempt(
            key=_digest("key", tenant, key),
            fingerprint=_fingerprint(gate, tenant),
            derived=False,
            retry=_retries(gate) > 0,
            ttl_us=config.ttl_us,
            attempts_max=config.attempts_max,
        )
    if config.keys is KeysOf.HEADER or gate.retry_count is None or not _COUNT.fullmatch(gate.retry_count):
        return None
    asked = _fingerprint(gate, tenant)
    return Attempt(
        key=asked,
        fingerprint=asked,
        derived=True,
        retry=_retries(gate) > 0,
        ttl_us=DERIVED_TTL_S * 1_000_000,
        attempts_max=config.attempts_max,
    )


def parse_key(value: str) -> str:
    """The key of a header's value: a structured field's string, or the same without its quotes.

    Raises:
        BadRequest: neither, empty, or longer than ``KEY_CHARS_MAX``.
    """
    quoted = _QUOTED.fullmatch(value)
    if quoted is not None:
        key = _ESCAPED.sub(r"\1", quoted[1])
    elif _BARE.fullmatch(value):
        key = value
    else:
        raise _bad_key("Idempotency-Key must be printable ASCII, in quotes or without quotes and spaces.")
    if not 1 <= len(key) <= KEY_CHARS_MAX:
        raise _bad_key(f"Idempotency-Key must have 1 to {KEY_CHARS_MAX} characters.")
    return key


def earlier_reply(earlier: Earlier, caller: Caller) -> Reply:
    """The answer to a request in whose place an earlier attempt answers."""
    match earlier.standing:
        case Standing.RUNNING:
            message = "An earlier attempt at this request is still running. Try again in a moment."
            return reply(Problem(409, "idempotency_key_in_use", message), caller, _SOON)
        case Standing.MISMATCH:
            message = "This Idempotency-Key was used for another request. Use a new key for each request."
            return reply(Problem(422, "idempotency_key_reused", message), caller)
        case Standing.FINISHED:
            return _replay(earlier, caller)
        case Standing.GONE:
            return _not_kept(caller)


def _replay(earlier: Earlier, caller: Caller) -> Reply:
    """As the first attempt's client would have got it, under a request id of its own."""
    try:
        answer = unpack(earlier.answer or b"")
    except UnreadableAnswerError as error:
        _log.error("answer of %s is kept but not readable: %s", earlier.hold_id, error)
        return _not_kept(caller)
    headers = {
        "Content-Type": answer.content_type,
        "Idempotent-Replayed": "true",
        "Idempotent-Request-Id": earlier.hold_id,
    }
    if caller.request_id is not None:
        headers["X-Request-Id"] = caller.request_id
    return Reply(answer.status, answer.body, {name: header_value(value) for name, value in headers.items()})


def _not_kept(caller: Caller) -> Reply:
    message = (
        "This request was answered and charged, and its answer is not kept any more or was too large to keep."
        " Send it as a new request to have it generated, and charged, again."
    )
    return reply(Problem(409, "idempotency_answer_not_kept", message), caller, _FINAL)


def _retries(gate: GateRequest) -> int:
    count = gate.retry_count or ""
    return int(count) if _COUNT.fullmatch(count) else 0


def _fingerprint(gate: GateRequest, tenant: str) -> str:
    """Of what was asked, and of which engine: a body means something else on another service."""
    service = gate.service.name if gate.service else ""
    return _digest("asked", tenant, service, gate.path, gate.body)


def _digest(*parts: str | bytes) -> str:
    """Of the parts and of where each ends."""
    state = blake2b(digest_size=16, person=b"token-quota")
    for part in parts:
        data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "big"))
        state.update(data)
    return state.hexdigest()


def _bad_key(message: str) -> BadRequest:
    return BadRequest(400, "invalid_idempotency_key", message)

"""A registration as bytes, for the log phase and for the spool; without its event: that is the settlement's."""

from __future__ import annotations

from typing import Any

import msgpack

from kong_plugins.domain.attempts import Attempt
from kong_plugins.domain.budgets import Mode, Weights
from kong_plugins.domain.holds import HoldRequest, Line, Registration
from kong_plugins.domain.windows import describe, parse_description

FORMAT = 1


def encode_registration(registration: Registration) -> bytes:
    """With a version in front; text that was no UTF-8 keeps its bytes."""
    request, attempt = registration.request, registration.request.attempt
    tried = None
    if attempt is not None:
        flags = (attempt.derived, attempt.retry)
        tried = (attempt.key, attempt.fingerprint, *flags, attempt.ttl_us, attempt.attempts_max)
    held = (request.tenant, request.hold_id, request.ttl_us, list(map(_line, request.lines)), tried)
    packed: bytes = msgpack.packb(
        (FORMAT, registration.at_us, registration.lease_id, *held), unicode_errors="surrogateescape"
    )
    return packed


def decode_registration(data: bytes) -> Registration:
    """
    Raises:
        ValueError: it is no registration that this version knows.
    """
    try:
        version, *fields = msgpack.unpackb(data, unicode_errors="surrogateescape")
        if version != FORMAT:
            raise ValueError(f"a registration of version {version}, not {FORMAT}")
        at_us, lease_id, tenant, hold_id, ttl_us, lines, tried = fields
        attempt = None if tried is None else Attempt(*tried)
        request = HoldRequest(tenant, hold_id, tuple(_read_line(*line) for line in lines), ttl_us, attempt=attempt)
        return Registration(request, at_us, lease_id)
    except (msgpack.UnpackException, TypeError) as error:  # some are ValueErrors without a word
        raise ValueError(f"no registration can be read from it ({type(error).__name__}: {error})") from error


def _line(line: Line) -> tuple[object, ...]:
    weights = line.weights
    weighed = (weights.uncached, weights.cached, weights.completion, weights.request, weights.denominator)
    return line.key, describe(line.window), weighed, line.limit, line.amount, line.mode.value


def _read_line(key: str, window: str, weights: list[int], limit: int, amount: int, mode: str, *_: Any) -> Line:  # noqa: PLR0917
    return Line(key, parse_description(window), Weights(*weights), limit, amount, Mode(mode))

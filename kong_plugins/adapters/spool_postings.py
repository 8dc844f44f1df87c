"""A posting as the spool keeps it: MessagePack with a version in front."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgpack

from kong_plugins.adapters.registration_codec import decode_registration, encode_registration
from kong_plugins.application.ports import Posting, Recording
from kong_plugins.domain.attempts import AnswerKept
from kong_plugins.domain.holds import Outcome, Settlement
from kong_plugins.domain.usage import Evidence, Usage

FORMAT = 1


def encode(posting: Posting) -> bytes:
    """With a version in front; text that was no UTF-8 keeps its bytes."""
    table: dict[str, Any] = {"v": FORMAT, "tenant": posting.tenant, "event": posting.event}
    if isinstance(posting, Recording):
        table["id"] = posting.event_id
    else:
        usage = posting.usage
        table |= {
            "hold": posting.hold_id,
            "usage": [usage.prompt, usage.completion, usage.cached, usage.reasoning],
            "evidence": posting.evidence.value,
            "outcome": posting.outcome.value,
            "reversal": posting.reversal,
            "answer": posting.answer,
            "kept": posting.kept.value,
        }
        if posting.registration is not None:
            table["registration"] = encode_registration(posting.registration)
    packed: bytes = msgpack.packb(table, unicode_errors="surrogateescape")
    return packed


def decode(data: bytes) -> Posting:
    """
    Raises:
        ValueError: it is no posting that this version knows.
    """
    try:
        table: Mapping[str, Any] = msgpack.unpackb(data, unicode_errors="surrogateescape")
        if table["v"] != FORMAT:
            raise ValueError(f"a posting of version {table['v']}, not {FORMAT}")
        if "hold" not in table:
            return Recording(table["tenant"], table["id"], table["event"])
        registration = decode_registration(table["registration"]) if "registration" in table else None
        if registration is not None:
            registration = replace(registration, request=replace(registration.request, event=table["event"]))
        return Settlement(
            table["tenant"],
            table["hold"],
            Usage(*table["usage"]),
            Evidence(table["evidence"]),
            table["event"],
            outcome=Outcome(table["outcome"]),
            reversal=table["reversal"],
            answer=table["answer"],
            kept=AnswerKept(table["kept"]),
            registration=registration,
        )
    except (msgpack.UnpackException, KeyError, TypeError) as error:  # some are ValueErrors without a word
        raise ValueError(f"no posting can be read from it ({type(error).__name__}: {error})") from error

"""How a request ended, and its billing event: JSON in CloudEvents 1.0 shape, integers only, no prices, no key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache

from kong_plugins.domain.holds import DecidedBy, Outcome, Registration
from kong_plugins.domain.usage import NO_USAGE, Evidence, Usage

SCHEMA_VERSION = 1  # Raised when a field changes its meaning or goes away, not when one is added.
EVENT_TYPE = "kong.token-quota.request"
REVERSAL_TYPE = "kong.token-quota.reversal"
ADJUSTMENT_TYPE = "kong.token-quota.adjustment"
DATA_SCHEMA = f"urn:kong-token-quota:billing-event:{SCHEMA_VERSION}"

CLIENT_CLOSED = 499  # nginx: the client went away before the answer's headers
FIRST_ERROR = 400

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Admitted:
    """What admission knew of a request, as it travels to the log phase. ``prompt_bound`` and ``completion_bound`` are
    the tokens held; ``credential`` is a fingerprint; ``choices``: completions asked for of each prompt (n)."""

    hold_id: str
    tenant: str
    model: str
    source: str
    prompt_bound: int
    completion_bound: int
    credential: str | None = None
    consumer: str | None = None
    service: str | None = None
    route: str | None = None
    budgets: tuple[str, ...] = ()
    over: tuple[str, ...] = ()  # soft and shadow budgets this request went over
    attributes: Mapping[str, str] = field(default_factory=dict)
    choices: int = 1
    retriable: bool = False  # its hold carries an attempt: a settlement brings a reversal with it
    by: DecidedBy = DecidedBy.LEDGER
    registration: Registration | None = None  # for a ledger that does not know of it yet


@dataclass(frozen=True, slots=True)
class Ending:
    """What the response showed. ``usage`` is the engine's own, with its ``evidence``; without evidence it is what was
    known before ``text``, which was generated and no usage covers. ``text_bytes``: its whole length, of which ``text``
    may be the beginning. ``ended``: the answer was seen to its end. Times are epoch milliseconds."""

    endpoint: str | None = None
    stream: bool = False
    usage: Usage | None = None
    evidence: Evidence | None = None
    text: str | None = None
    text_bytes: int = 0
    finish: str | None = None
    error: bool = False
    ended: bool = False
    engine_id: str | None = None
    status: int = 0
    upstream_status: str | None = None
    source: str | None = None
    started_ms: int = 0
    first_ms: int | None = None
    last_ms: int | None = None
    proxy_ms: int | None = None

    @property
    def never_generated(self) -> bool:
        """An error answer in place of a generated one, or no engine behind it. A 499 says nothing: the engine ran."""
        if self.usage is not None or self.status == CLIENT_CLOSED:
            return False
        return self.status >= FIRST_ERROR or self.source in {"exit", "error"}

    def outcome(self) -> Outcome:
        """An answer whose final usage came is complete, also when the client left without its last bytes."""
        if self.status == CLIENT_CLOSED:
            return Outcome.ABORTED
        if self.error or self.status >= FIRST_ERROR or self.source in {"exit", "error"}:
            return Outcome.FAILED
        if self.evidence is Evidence.EXACT:
            return Outcome.COMPLETED
        if not self.ended:
            return Outcome.ABORTED
        return Outcome.COMPLETED if self.finish is not None or not self.stream else Outcome.FAILED


def known_usage(ending: Ending) -> tuple[Usage, Evidence] | None:
    """Usage that needs no policy: the engine's own figures where they cover all that passed, or none at all where it
    never generated."""
    if ending.usage is not None and ending.evidence is not None:
        return ending.usage, ending.evidence
    if ending.never_generated:
        return NO_USAGE, Evidence.EXACT
    return None


def usage_without_budget(ending: Ending) -> tuple[Usage, Evidence] | None:
    """What is booked of a request that nothing was held for: what its answer showed. None: no engine was asked."""
    if ending.upstream_status is None or ending.source == "exit":
        return None
    return usage_seen(ending)


def usage_seen(ending: Ending) -> tuple[Usage, Evidence]:
    """The most that an answer showed for certain, where nobody counts the text that its usage leaves out."""
    return known_usage(ending) or (
        (ending.usage, Evidence.CONTINUOUS) if ending.usage is not None else (NO_USAGE, Evidence.HELD)
    )


def billing_event(
    admitted: Admitted, ending: Ending, usage: Usage, evidence: Evidence, outcome: Outcome | None = None
) -> bytes:
    """UTF-8 JSON. A function of its arguments alone: whoever settles a request writes the same event.

    ``outcome``: where the ending does not tell it (denied, expired). ``choices`` are in it where there are several, and
    the bounds where more may have been generated than is billed: the engine's counters are explained by them.
    """
    outcome = outcome or ending.outcome()
    hold_id, tenant = _text(admitted.hold_id), _known(admitted.tenant)
    optional = ""
    for name, text in (
        ("credential", admitted.credential),
        ("consumer", admitted.consumer),
        ("service", admitted.service),
        ("route", admitted.route),
        ("endpoint", ending.endpoint),
        ("upstream_status", ending.upstream_status),
        ("finish", ending.finish),
        ("engine_id", ending.engine_id),
    ):
        if text is not None:
            optional += f',"{name}":{_text(text)}'
    for name, number in (("first_ms", ending.first_ms), ("last_ms", ending.last_ms), ("proxy_ms", ending.proxy_ms)):
        if number is not None:
            optional += f',"{name}":{number}'
    if admitted.choices > 1:
        optional += f',"choices":{admitted.choices}'
    if admitted.by is not DecidedBy.LEDGER:
        optional += f',"admitted_by":"{admitted.by}"'
    held = admitted.prompt_bound or admitted.completion_bound  # else nothing was: there is no bound to tell
    if held and outcome is not Outcome.DENIED and (evidence is not Evidence.EXACT or outcome is not Outcome.COMPLETED):
        optional += f',"prompt_bound":{admitted.prompt_bound},"completion_bound":{admitted.completion_bound}'
    event = (
        f'{{"specversion":"1.0","id":{hold_id},"source":{_known(admitted.source)},"type":"{EVENT_TYPE}"'
        f',"subject":{tenant},"time":"{_timestamp_ms(ending.last_ms or ending.started_ms)}"'
        f',"datacontenttype":"application/json","dataschema":"{DATA_SCHEMA}"'
        f',"data":{{"schema":{SCHEMA_VERSION},"hold":{hold_id},"tenant":{tenant},"model":{_known(admitted.model)}'
        f',"stream":{"true" if ending.stream else "false"},"prompt":{usage.prompt},"completion":{usage.completion}'
        f',"cached":{usage.cached},"reasoning":{usage.reasoning},"evidence":"{evidence}"'
        f',"outcome":"{outcome}","status":{ending.status}'
        f',"started_ms":{ending.started_ms}{optional},"budgets":{_texts(admitted.budgets)},"over":{_texts(admitted.over)}'
        f',"attributes":{_encode(dict(admitted.attributes)) if admitted.attributes else "{}"}}}}}'
    )
    # Bytes that were no UTF-8 travel as lone surrogates, which no reader of an event has to accept.
    return event.encode("utf-8", "replace")


def reversal_id(event_id: str) -> str:
    """The id of the one reversal that an event can have."""
    return f"reversal:{event_id}"


def reversal_event(admitted: Admitted, ending: Ending, usage: Usage, evidence: Evidence) -> bytes:
    """UTF-8 JSON: takes back the whole of ``billing_event``'s event of the same arguments, at that event's own time, so
    that whatever price list rates the two they sum to zero. The counts are those to subtract, not negative ones."""
    about = {
        name: value
        for name, value in (
            ("credential", admitted.credential),
            ("consumer", admitted.consumer),
            ("service", admitted.service),
            ("route", admitted.route),
            ("endpoint", ending.endpoint),
        )
        if value is not None
    }
    event = {
        "specversion": "1.0",
        "id": reversal_id(admitted.hold_id),
        "source": admitted.source,
        "type": REVERSAL_TYPE,
        "subject": admitted.tenant,
        "time": _timestamp_ms(ending.last_ms or ending.started_ms),
        "datacontenttype": "application/json",
        "dataschema": f"urn:kong-token-quota:reversal-event:{SCHEMA_VERSION}",
        "data": {
            "schema": SCHEMA_VERSION,
            "reverses": admitted.hold_id,
            "tenant": admitted.tenant,
            "model": admitted.model,
            "prompt": usage.prompt,
            "completion": usage.completion,
            "cached": usage.cached,
            "reasoning": usage.reasoning,
            "evidence": evidence.value,
            "reason": "retried",
            **about,
        },
    }
    return _encode(event).encode("utf-8", "replace")


class AdjustmentKind(StrEnum):
    """What a movement of money is that no usage stands for."""

    CREDIT = "credit"  # given, for goodwill or as a promotion
    REFUND = "refund"  # given back of what was charged
    CORRECTION = "correction"  # of an error, in either's favour


def adjustment_id(name: str) -> str:
    """The event id of an adjustment that its operator named: apart from requests' ids, which a person may well repeat
    here by mistake, and an event of an id that is known is dropped."""
    return f"adjustment:{name}"


def adjustment_event(
    *,
    event_id: str,
    source: str,
    time_ms: int,
    tenant: str,
    kind: AdjustmentKind,
    amount: int,
    currency: str,
    account: str,
    reason: str,
    reference: str | None = None,
) -> bytes:
    """UTF-8 JSON. ``amount``: micro-units of ``currency``, positive in the tenant's favour. ``account`` bears it.
    ``reference``: the event that it is about."""
    data: dict[str, object] = {
        "schema": SCHEMA_VERSION,
        "tenant": tenant,
        "kind": kind.value,
        "amount": amount,
        "currency": currency,
        "account": account,
        "reason": reason,
    }
    if reference is not None:
        data["reference"] = reference
    event = {
        "specversion": "1.0",
        "id": event_id,
        "source": source,
        "type": ADJUSTMENT_TYPE,
        "subject": tenant,
        "time": _timestamp_ms(time_ms),
        "datacontenttype": "application/json",
        "dataschema": f"urn:kong-token-quota:adjustment-event:{SCHEMA_VERSION}",
        "data": data,
    }
    return _encode(event).encode("utf-8", "replace")


# Not one dict through the encoder: this is written twice for each request, and takes a third of the time so.
_text = _encode  # of a str: its JSON string
_known = lru_cache(maxsize=1024)(_text)  # of names that many requests share


def _texts(names: tuple[str, ...]) -> str:
    return f"[{','.join(map(_known, names))}]"


@lru_cache(maxsize=64)
def _to_the_second(time_s: int) -> str:
    return (_EPOCH + timedelta(seconds=time_s)).strftime("%Y-%m-%dT%H:%M:%S")


def _timestamp_ms(time_ms: int) -> str:
    seconds, milliseconds = divmod(time_ms, 1000)
    return f"{_to_the_second(seconds)}.{milliseconds:03}Z"

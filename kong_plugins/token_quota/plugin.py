"""The plugin as Kong calls it: access decides, log settles. Two PDK calls in access, one in log, and one more there for
the answer of a request that may be retried."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any

import gevent

from kong_plugins.adapters import answers
from kong_plugins.adapters.kong_request import (
    ANSWER,
    DECISION,
    GATE,
    TAP,
    Entity,
    GateRequest,
    answer_kept,
    read_answer,
    read_gate,
    read_tap,
    write_decision,
    write_unmetered,
)
from kong_plugins.adapters.openai_wire import (
    Request,
    check_media_type,
    count_for_a_bill,
    count_prompt,
    endpoint_of,
    parse,
    rewrite,
    texts_for_counting,
    usage_bound,
)
from kong_plugins.adapters.process_parts import ProcessParts, process_parts
from kong_plugins.application.admit import Admission, AdmissionPolicy, Ask, Crowded, Denied, Held
from kong_plugins.application.engine_places import Full, OpenPlaces, SharedEngine
from kong_plugins.application.ports import LedgerUnavailable
from kong_plugins.application.settle import NO_ANSWER, Answer, Settling, UnknownUsagePolicy
from kong_plugins.domain.attempts import AnswerKept, Attempt, Earlier
from kong_plugins.domain.budgets import Dimension
from kong_plugins.domain.concurrency import Slots
from kong_plugins.domain.demand import Demand, Endpoint
from kong_plugins.domain.errors import BadRequest, CountUnavailable
from kong_plugins.domain.events import Admitted, Ending, billing_event
from kong_plugins.domain.holds import DecidedBy, Outcome
from kong_plugins.domain.planning import PlannedLine, plan
from kong_plugins.domain.shares import EngineShare, PlaceState
from kong_plugins.domain.usage import NO_USAGE, Evidence, Usage
from kong_plugins.token_quota.alerts import Alerts
from kong_plugins.token_quota.config import ConfigError, QuotaConfig, parse_config
from kong_plugins.token_quota.identity import NoIdentity, tenant_of
from kong_plugins.token_quota.model_names import INVENTED_MAX, ModelNames
from kong_plugins.token_quota.responses import (
    Caller,
    Problem,
    Reply,
    crowded_reply,
    full_reply,
    quota_headers,
    refusal_reply,
    reply,
    slot_headers,
)
from kong_plugins.token_quota.retries import attempt_of, earlier_reply
from kong_plugins.token_quota.schema import SCHEMA
from kong_plugins.token_quota.sharing import RANK_HEADER

__all__ = ["NAME", "ON_ERROR", "PRIORITY", "PROTOCOLS", "SCHEMA", "VERSION", "Plugin"]

NAME = "token-quota"
VERSION = "0.1.0"
PRIORITY = 905
PROTOCOLS = ("grpc", "grpcs", "http", "https")  # Kong's default; not told of it decK finds every row changed
ON_ERROR = "closed"  # Nothing passes unmetered.

# How long a count may take whose request is over: longer than building a tokenizer does, on a busy machine.
SETTLING_COUNT_S = 10.0

# What a request read takes in memory beside its body, as measured: once, and for each message, field and part.
REMEMBERED_BYTES = 2_048
REMEMBERED_ITEM_BYTES = 112

_log = logging.getLogger(__name__)

_NOTHING = (NO_USAGE, Evidence.EXACT)
# On answers that the ledger had no part in: "lease", "open", and "closed" where that is why it is refused.
ADMITTED_BY = "X-Token-Quota-Admitted-By"
_LEDGER_RETRY = {"Retry-After": "1", "retry-after-ms": "1000"}


@dataclass(frozen=True, slots=True)
class _Asked:
    """A metered request with its tenant."""

    gate: GateRequest
    tenant: str
    request: Request
    planned: tuple[PlannedLine, ...]
    bound: Usage
    countable: bool  # False with a field that the operator allowed although it adds what is in no text of the request
    attempt: Attempt | None  # of a request that is known again when its client tries again

    @property
    def demand(self) -> Demand:
        return self.request.demand


class Plugin:
    """One configured row.

    Raises:
        ConfigError: the configuration cannot work.
    """

    def __init__(self, config: Mapping[str, Any], parts: ProcessParts | None = None) -> None:
        self._config: QuotaConfig = parse_config(config)
        self._parts = parts or process_parts()
        self._parts.join()
        try:
            self._ledger = self._parts.ledger(self._config.ledger_url, self._config.ledger_timeout_s)
            poster = self._parts.poster(self._config.ledger_url, self._config.ledger_timeout_s)
            outage, counts = self._parts.outage(
                self._config.ledger_url, self._config.ledger_timeout_s, self._config.store_outage, self._config.lease
            )
            places = self._engine_places()
            self._counter = self._parts.counter(self._config.tokenizers, self._config.models)
        except BaseException as error:
            self._parts.leave()
            if isinstance(error, ValueError):
                raise ConfigError([f"config.ledger_url: {error}"]) from error
            if isinstance(error, CountUnavailable):
                raise ConfigError([f"config.tokenizers: {error}"]) from error
            raise
        policy = AdmissionPolicy(self._config.hold_ttl_us, self._config.patience_us, self._config.clamp_min)
        self._admission = Admission(
            self._ledger,
            self._parts.tightens,
            self._parts.releases,
            policy,
            gevent.sleep,
            lowered=self._parts.prompts.lower,
            outage=outage,
            counts=counts,
        )
        most_us = self._config.sharing.slot_ttl_us
        self._engine = SharedEngine(self._admission, places, _begin, gevent.sleep, most_us)
        unknown = UnknownUsagePolicy(
            self._config.unknown_usage,
            self._parts.prompts,
            lambda model, text: self._counter.count(model, (text,), SETTLING_COUNT_S),
        )
        self._settling = Settling(poster, unknown, self._parts.counts)
        self._alerts = Alerts()
        self._names = ModelNames(self._config.models)
        self._warned_of_tap = False

    def access(self, kong: Any) -> None:
        """Decide: set the decision for the tap, or end the request."""
        refused = self._decide(kong, read_gate(kong.ctx.shared.get(GATE)))
        if refused is not None:
            kong.response.exit(refused.status, refused.body, dict(refused.headers))

    def log(self, kong: Any) -> None:
        """Settle what the tap saw. A request that was refused, here or before, has nothing to settle."""
        table = kong.ctx.shared.get(TAP)
        seen = read_tap(table)
        if seen is None:
            self._warn_of_missing_tap()
            return
        admitted, ending = seen
        if admitted is not None:
            self._leave_engine(admitted, ending)
            if ending.usage is not None and ending.usage.completion:
                self._names.served(admitted.model)
            answer = NO_ANSWER
            try:
                if admitted.retriable and ending.outcome() is Outcome.COMPLETED:
                    answer = _answer(kong, answer_kept(table))
            finally:  # Kong may be gone before it hands the answer over: the charge does not hang on it
                self._settling.settle(admitted, ending, answer)

    def close(self) -> None:
        """The row is gone; the last row of a process drains what is still to be settled."""
        self._parts.leave()

    def _decide(self, kong: Any, gate: GateRequest | None) -> Reply | None:
        """None when the request was let through."""
        if gate is None:
            message = "usage-gate is not enabled on this route: token-quota reads the request through it. Enable it."
            return reply(Problem(503, "gate_missing", message), Caller())
        endpoint = endpoint_of(gate.path)
        caller = Caller(gate.id, endpoint, gate.accept)
        if gate.refused == "connection_header":
            # On an allowed path too: what the engine would read as the next request is one that nobody metered.
            message = "Connection may name keep-alive, close, upgrade and te only."
            return reply(Problem(400, "connection_header", message), caller)
        if endpoint is None:
            return self._unmetered(kong, gate, caller)
        if gate.method != "POST":
            return reply(Problem(405, "method_not_allowed", "Use POST."), caller, {"Allow": "POST"})
        try:
            asked = self._read(gate, endpoint)
            record = self._record(asked)
            decided = self._engine.admit(self._ask(asked, record), self._share(gate.service))
        except NoIdentity as error:
            return reply(Problem(401, "no_identity", str(error)), caller)
        except BadRequest as error:
            return reply(Problem(error.status, error.code, error.message, error.param), caller)
        except LedgerUnavailable as error:
            _log.error("ledger out of reach, refused %s: %s", gate.id, error)
            message = "Token budgets cannot be checked right now. Try again in a moment."
            return reply(Problem(503, "ledger_unavailable", message), caller, {**_LEDGER_RETRY, ADMITTED_BY: "closed"})
        if isinstance(decided, Earlier):
            return earlier_reply(decided, caller)
        if isinstance(decided, Denied):
            return self._refused(asked, record, decided, caller)
        if isinstance(decided, Crowded):
            return self._crowded(asked, record, decided, caller)
        if isinstance(decided, Full):
            return self._full(asked, record, decided, caller)
        try:
            kong.ctx.shared.set(DECISION, self._decision(asked, record, decided))
        except BaseException:
            # Mostly Kong that did not wait so long: the client has its 503, and no log phase will tell of a hold.
            _log.error("Kong did not take the decision, refused %s: its hold is emptied", gate.id)
            self._engine.forsake(self._share(gate.service), asked.tenant, gate.id, decided.planned)
            self._parts.ranks.leave(gate.id)
            raise
        return None

    def _unmetered(self, kong: Any, gate: GateRequest, caller: Caller) -> Reply | None:
        if not gate.path:  # the gate itself failed: what this path is nobody knows
            return reply(Problem(400, "unreadable_request", "The request could not be read. Send it again."), caller)
        if self._config.allow_unmetered:
            kong.ctx.shared.set(DECISION, write_unmetered())
            return None
        message = f"{gate.method} on this path is not served here. Operators can set unmetered_paths to allow."
        return reply(Problem(404, "unknown_url", message), caller)

    def _read(self, gate: GateRequest, endpoint: Endpoint) -> _Asked:
        """
        Raises:
            NoIdentity, BadRequest: the request is not one we can meter.
        """
        tenant = tenant_of(gate, self._config)
        if gate.refused == "too_large":
            raise BadRequest(413, "request_too_large", "The body is larger than this route takes. Send less.")
        if gate.refused is not None:
            raise BadRequest(400, "unreadable_body", "The body could not be read. Send it again, whole.")
        check_media_type(gate.content_type, gate.content_encoding)
        request = parse(endpoint, gate.body, self._config.rules)
        bound = usage_bound(request.demand, self._config.rules)
        model = request.demand.model
        if not self._names.admit(tenant, model, time.monotonic()):
            message = f"`model` is none that is served here, after {INVENTED_MAX} others that were none either."
            raise BadRequest(400, "too_many_models", message, "model")
        planned = plan(self._config.budgets, model, _scope(gate, model), bound)
        countable = not (self._config.rules.allow & request.fields.keys())
        attempt = attempt_of(gate, tenant, self._config.idempotency)
        return _Asked(gate, tenant, request, planned, bound, countable, attempt)

    def _ask(self, asked: _Asked, record: Admitted) -> Ask:
        demand, rules = asked.demand, self._config.rules
        expired = billing_event(record, _ending(asked), NO_USAGE, Evidence.HELD, Outcome.EXPIRED)
        return Ask(
            tenant=asked.tenant,
            hold_id=asked.gate.id,
            planned=asked.planned,
            bound=asked.bound,
            choices=demand.choices,
            bound_at=lambda prompt: usage_bound(demand, rules, prompt),
            count_prompt=(lambda: self._count(asked.request)) if asked.countable else None,
            expiry_event=expired,
            attempt=asked.attempt,
            slots=self._slots(asked.gate.service.name if asked.gate.service else None, demand.model),
        )

    def _engine_places(self) -> OpenPlaces | None:
        if self._config.sharing.engine_places is None:
            return None
        return self._parts.places(self._config.ledger_url, self._config.ledger_timeout_s)

    def _share(self, service: Entity | None) -> EngineShare | None:
        return self._config.sharing.share(service.name if service else "")

    def _slots(self, service: str | None, model: str) -> tuple[Slots, ...]:
        return self._config.sharing.slots(service or "", model)

    def _count(self, request: Request) -> int:
        """For a hold: never too low.

        Raises:
            CountUnavailable: there is no tokenizer for the model, or no time.
        """
        return count_prompt(request, self._config.rules, self._text_counts(request))

    def _count_for_a_bill(self, request: Request) -> int:
        """For a charge: never too high. Raises as ``_count``."""
        return count_for_a_bill(request, self._text_counts(request, SETTLING_COUNT_S))

    def _text_counts(self, request: Request, deadline_s: float | None = None) -> Callable[[str], int]:
        """Gives the count of all texts for the first of them: one job, as a job a text would queue a long conversation
        behind itself."""
        texts = texts_for_counting(request)
        counts = iter((self._counter.count(request.demand.model, texts, deadline_s) if texts else 0,))
        return lambda _: next(counts, 0)

    def _decision(self, asked: _Asked, record: Admitted, held: Held) -> dict[str, object]:
        gate, demand = asked.gate, asked.demand
        states = held.outcome.states  # none where nobody looked at the budgets
        if states:
            self._alerts.note(asked.tenant, held)
        if asked.countable:
            request = asked.request
            size = len(gate.body) + REMEMBERED_BYTES + REMEMBERED_ITEM_BYTES * request.prompt.items
            self._parts.prompts.remember(gate.id, size, lambda: self._count_for_a_bill(request))
        sharing = self._config.sharing
        salt = sharing.salt(asked.tenant, asked.request)
        body = rewrite(asked.request, cache_salt=salt, max_tokens=held.max_tokens, priority=sharing.priority)
        upstream = {"X-Request-Id": gate.id, **sharing.priority_header(asked.request), **self._way(asked, salt)}
        response = quota_headers(held.planned, states, held.outcome.now_us) if states else {}
        response |= slot_headers(held.outcome.slots)
        response["X-Request-Id"] = gate.id
        if held.bound is not asked.bound or held.over:
            bound = held.bound
            record = replace(record, prompt_bound=bound.prompt, completion_bound=bound.completion, over=held.over)
        if held.by is not DecidedBy.LEDGER:
            response[ADMITTED_BY] = held.by.value
            record = replace(record, by=held.by, registration=held.registration)
        keep = self._config.idempotency.answer_bytes_max if asked.attempt is not None else None
        return write_decision(record, demand, body, upstream, response, keep=keep)

    def _way(self, asked: _Asked, salt: str | None) -> dict[str, str]:
        """The header that sends a request where its beginning is cached."""
        affinity, key = self._config.sharing.affinity, self._config.sharing.prefix_key(salt, asked.request)
        if affinity is None or key is None:
            return {}
        if affinity.header is not None:
            return {affinity.header: key.hex()}
        rank = self._parts.ranks.enter(
            asked.gate.id,
            asked.gate.service.name if asked.gate.service else "",
            key,
            affinity.ranks or 1,
            overload_percent=affinity.overload_percent,
            now_us=time.monotonic_ns() // 1000,
            ttl_us=self._config.sharing.slot_ttl_us,
        )
        return {RANK_HEADER: str(rank)}

    def _leave_engine(self, admitted: Admitted, ending: Ending) -> None:
        """The engine is done with a request: what it took tells others how long to wait for its place."""
        self._parts.ranks.leave(admitted.hold_id)
        took_us = time.time_ns() // 1000 - ending.started_ms * 1000
        for each in self._slots(admitted.service, admitted.model):
            self._parts.pace.ended(admitted.tenant, each.key, took_us)
        share = self._config.sharing.share(admitted.service or "")
        self._engine.ended(share, admitted.tenant, admitted.hold_id)

    def _crowded(self, asked: _Asked, record: Admitted, crowded: Crowded, caller: Caller) -> Reply:
        self._record_denial(asked, record, crowded.state.key)
        now_us, patience_us = crowded.outcome.now_us, self._config.patience_us
        wait_us = self._parts.pace.turn_us(asked.tenant, crowded.state, now_us, patience_us)
        return crowded_reply(crowded.state, asked.demand.model, wait_us, caller)

    def _full(self, asked: _Asked, record: Admitted, full: Full, caller: Caller) -> Reply:
        self._record_denial(asked, record, f"engine|{full.share.key}")
        patience_us = self._config.patience_us
        wait_us = self._parts.engine_pace.turn_us(full.share.key, asked.tenant, full.state, patience_us)
        return full_reply(full.state, wait_us, caller)

    def _refused(self, asked: _Asked, record: Admitted, denied: Denied, caller: Caller) -> Reply:
        self._record_denial(asked, record, denied.refusal.budget)
        headers = quota_headers(denied.planned, denied.outcome.states, denied.outcome.now_us)
        return refusal_reply(denied.refusal, caller, headers | slot_headers(denied.outcome.slots))

    def _record_denial(self, asked: _Asked, record: Admitted, over: str) -> None:
        if not self._config.record_denials:
            return
        record = replace(record, over=(over,))
        event = billing_event(record, _ending(asked, HTTPStatus.TOO_MANY_REQUESTS), *_NOTHING, Outcome.DENIED)

        def write() -> None:
            self._ledger.record(asked.tenant, asked.gate.id, event)

        self._parts.records.submit(write)

    def _record(self, asked: _Asked) -> Admitted:
        gate, bound, demand = asked.gate, asked.bound, asked.demand
        return Admitted(
            hold_id=gate.id,
            tenant=asked.tenant,
            model=demand.model,
            source=self._config.event_source,
            prompt_bound=bound.prompt,
            completion_bound=bound.completion,
            credential=gate.credential,
            consumer=gate.consumer.name if gate.consumer else None,
            service=gate.service.name if gate.service else None,
            route=gate.route.name if gate.route else None,
            budgets=tuple(each.line.key for each in asked.planned),
            attributes=self._attributes(gate),
            retriable=asked.attempt is not None,
            choices=max(1, demand.choices // demand.prompts),
        )

    def _attributes(self, gate: GateRequest) -> dict[str, str]:
        claims, headers = self._config.event_claims, self._config.event_headers
        return {name: gate.claims[name] for name in claims if name in gate.claims} | {
            name: gate.headers[name] for name in headers if name in gate.headers
        }

    def _warn_of_missing_tap(self) -> None:
        if not self._warned_of_tap:
            self._warned_of_tap = True
            _log.error("usage-tap is not enabled on a route of token-quota: nothing is settled there. Enable it.")


def _begin(call: Callable[[], PlaceState | None]) -> Callable[[], PlaceState | None]:
    begun: gevent.Greenlet = gevent.spawn(call)
    result: Callable[[], PlaceState | None] = begun.get
    return result


def _answer(kong: Any, kept: AnswerKept) -> Answer:
    """The whole answer that the tap kept for retries."""
    if kept is not AnswerKept.KEPT:
        return Answer(kept=kept)
    whole = read_answer(kong.ctx.shared.get(ANSWER))
    return Answer(answers.pack(whole), kept) if whole is not None else NO_ANSWER


def _scope(gate: GateRequest, model: str) -> dict[Dimension, str]:
    return {
        Dimension.MODEL: model,
        Dimension.SERVICE: gate.service.name if gate.service else "",
        Dimension.ROUTE: gate.route.name if gate.route else "",
        Dimension.CREDENTIAL: gate.credential or "",
    }


def _ending(asked: _Asked, status: int = 0) -> Ending:
    """Of a request that no log phase will ever tell of."""
    demand, now_ms = asked.demand, time.time_ns() // 1_000_000
    return Ending(demand.endpoint.value, demand.stream, status=status, started_ms=now_ms)

"""Is an engine what exact bills need: verdicts over what was seen of it. Pure; adapters/engine_probe.py looks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class Grade(StrEnum):
    """FINE: as bills need it. WEAKER: whole answers are billed right, something else not. MISSING: no exact bill."""

    FINE = "fine"
    WEAKER = "weaker"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Usage:
    """An answer's own count, in tokens. ``cached`` is None where the answer does not say."""

    prompt: int
    completion: int
    cached: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer. Of a stream: ``text_events``, events with text, and ``counted_events``, those of them with usage.

    ``status`` is 0 where nothing came; then ``error`` tells why.
    """

    status: int
    usage: Usage | None = None
    request_id: str = ""
    text_events: int = 0
    counted_events: int = 0
    error: str = ""

    @property
    def good(self) -> bool:
        return self.status == 200 and not self.error


@dataclass(frozen=True, slots=True)
class Counters:
    """What the engine's metrics page says it processed so far, in tokens."""

    prompt: int
    completion: int
    cached: int


@dataclass(frozen=True, slots=True)
class Observations:
    """Everything that was tried.

    ``whole``: an answer that is not streamed. ``again``: the same once more. ``other_salt``: the same with another
    ``cache_salt``. ``asked``: a stream that asks for usage as the gateway does. ``unasked``: one that does not.
    ``priority``: a request with a priority. All carried ``sent_id`` as ``X-Request-Id``. ``metrics_error``: why there
    are no counters.
    """

    models: tuple[str, ...]
    max_model_len: int | None
    sent_id: str
    whole: Answer
    again: Answer
    other_salt: Answer
    asked: Answer
    unasked: Answer
    priority: Answer
    before: Counters | None = None
    after: Counters | None = None
    metrics_error: str = ""

    @property
    def answers(self) -> tuple[Answer, ...]:
        return (self.whole, self.again, self.other_salt, self.asked, self.unasked, self.priority)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One thing that was looked at: what was seen, what it means for billing, and what to change (empty when fine)."""

    check: str
    grade: Grade
    seen: str
    means: str = ""
    fix: str = ""


def verdicts(seen: Observations) -> tuple[Verdict, ...]:
    """Every check in the order in which to read them. An engine that does not answer at all gets one verdict."""
    if not seen.whole.good:
        return (_no_answer(seen),)
    checks = (_usage, _stream_usage, _running_usage, _forced_usage, _cached, _salt, _request_id, _priority)
    return (*(check(seen) for check in checks), _length(seen), *_metrics(seen))


def _no_answer(seen: Observations) -> Verdict:
    said = seen.whole.error or f"status {seen.whole.status}"
    served = f"served models: {', '.join(seen.models)}" if seen.models else "/v1/models names no model"
    return Verdict(
        "chat completions",
        Grade.MISSING,
        f"{said}; {served}",
        "nothing can be served or billed",
        "check the address (it ends in /v1), --model and --api-key",
    )


def _usage(seen: Observations) -> Verdict:
    if seen.whole.usage is not None:
        usage = seen.whole.usage
        return Verdict("usage of whole answers", Grade.FINE, f"{usage.prompt} prompt, {usage.completion} completion")
    return Verdict(
        "usage of whole answers",
        Grade.MISSING,
        "an answer without `usage`",
        "whole answers are billed by the gateway's own tokenizer, an estimate",
        "use an engine or front end that reports usage",
    )


def _stream_usage(seen: Observations) -> Verdict:
    if seen.asked.usage is not None:
        return Verdict("usage of streams", Grade.FINE, "a stream that asks for usage ends with it")
    said = f"status {seen.asked.status} {seen.asked.error}".strip() if not seen.asked.good else "none in the stream"
    return Verdict(
        "usage of streams",
        Grade.MISSING,
        f"asked with stream_options.include_usage: {said}",
        "streams are billed by the gateway's own tokenizer, an estimate",
        "vLLM: --enable-force-include-usage; others: a version that knows stream_options.include_usage",
    )


def _running_usage(seen: Observations) -> Verdict:
    asked = seen.asked
    said = f"{asked.counted_events} of {asked.text_events} events with text carry usage"
    if asked.text_events and asked.counted_events == asked.text_events:
        return Verdict("usage on every chunk", Grade.FINE, said)
    return Verdict(
        "usage on every chunk",
        Grade.WEAKER,
        said,
        "a stream that its client leaves is billed by the gateway's own tokenizer, an estimate",
        "vLLM: --enable-force-include-usage (the gateway asks for continuous_usage_stats by itself)",
    )


def _forced_usage(seen: Observations) -> Verdict:
    unasked = seen.unasked
    if unasked.text_events and unasked.counted_events == unasked.text_events:
        return Verdict("usage without being asked", Grade.FINE, "every event with text carries it")
    return Verdict(
        "usage without being asked",
        Grade.WEAKER,
        "a stream that does not ask has none",
        "the gateway asks for it and hides it again from clients that did not; requests past the gateway tell nothing",
        "vLLM: --enable-force-include-usage",
    )


def _cached(seen: Observations) -> Verdict:
    first, again = seen.whole.usage, seen.again.usage
    cached = again.cached if again is not None else None
    if cached:
        return Verdict("cached_tokens", Grade.FINE, f"{cached} of {again.prompt if again else 0} at the second time")
    hits = seen.after.cached - seen.before.cached if seen.before and seen.after else None
    if cached is None and (first is None or first.cached is None):
        if hits == 0:
            return Verdict(
                "cached_tokens",
                Grade.WEAKER,
                "usage has no cached_tokens, and the engine's own counter saw no hit",
                "every prompt token is computed and billed anew",
                "vLLM: --enable-prefix-caching and --enable-prompt-tokens-details",
            )
        return Verdict(
            "cached_tokens",
            Grade.WEAKER,
            "usage has no prompt_tokens_details.cached_tokens",
            "cached prompt tokens are billed at the full price",
            "vLLM: --enable-prompt-tokens-details; SGLang: --enable-cache-report",
        )
    return Verdict(
        "cached_tokens",
        Grade.WEAKER,
        "0 when the same prompt came again",
        "every prompt token is computed and billed anew",
        "vLLM: --enable-prefix-caching (with a cache block shorter than the shared prompts)",
    )


def _salt(seen: Observations) -> Verdict:
    again, other = seen.again.usage, seen.other_salt.usage
    name = "cache_salt"
    if not seen.other_salt.good:
        return Verdict(
            name,
            Grade.WEAKER,
            f"refused: status {seen.other_salt.status} {seen.other_salt.error}".strip(),
            "tenants cannot be kept from each other's cached prefixes",
            "use vLLM 0.9 or later; or give tenants engines of their own",
        )
    if again is None or not again.cached or other is None:
        return Verdict(name, Grade.WEAKER, "accepted; cannot be told without cached_tokens", "see cached_tokens", "")
    # A salt is hashed into the first block, so that nothing of the same text is found.
    if not other.cached:
        return Verdict(name, Grade.FINE, "another salt finds nothing cached")
    return Verdict(
        name,
        Grade.WEAKER,
        f"another salt still finds {other.cached} cached tokens",
        "a tenant can learn of another's prompts by timing, and is billed their cached price",
        "use vLLM 0.9 or later; or give tenants engines of their own",
    )


def _request_id(seen: Observations) -> Verdict:
    if seen.whole.request_id == seen.sent_id:
        return Verdict("X-Request-Id", Grade.FINE, "comes back")
    return Verdict(
        "X-Request-Id",
        Grade.WEAKER,
        f"came back as {seen.whole.request_id!r}" if seen.whole.request_id else "does not come back",
        "a bill and the engine's log line are matched by the answer's own id only",
        "vLLM: --enable-request-id-headers",
    )


def _priority(seen: Observations) -> Verdict:
    if seen.priority.good:
        return Verdict("priority", Grade.FINE, "accepted (whether it is obeyed cannot be seen: --scheduling-policy)")
    return Verdict(
        "priority",
        Grade.WEAKER,
        f"refused: status {seen.priority.status} {seen.priority.error}".strip(),
        "plans cannot go before one another under load; bills are not concerned",
        "vLLM: --scheduling-policy priority",
    )


def _length(seen: Observations) -> Verdict:
    if seen.max_model_len is not None:
        said = f"{seen.max_model_len} tokens: state it as token-quota's context_tokens"
        return Verdict("context length", Grade.FINE, said)
    return Verdict(
        "context length",
        Grade.WEAKER,
        "/v1/models has no max_model_len",
        "a request without max_tokens is held for what context_tokens says, right or not",
        "look the engine's context length up and state it as context_tokens",
    )


def _metrics(seen: Observations) -> Iterator[Verdict]:
    name = "metrics"
    if seen.before is None or seen.after is None:
        yield Verdict(
            name,
            Grade.WEAKER,
            seen.metrics_error or "no counters",
            "the books cannot be reconciled with the engine's own counters",
            "vLLM: /metrics must be reachable at the engine's root; other engines count under other names",
        )
        return
    usages = [answer.usage for answer in seen.answers if answer.good and answer.usage is not None]
    prompt, completion = sum(usage.prompt for usage in usages), sum(usage.completion for usage in usages)
    moved = (seen.after.prompt - seen.before.prompt, seen.after.completion - seen.before.completion)
    # Other traffic may move them further, never less.
    if moved[0] >= prompt and moved[1] >= completion:
        yield Verdict(
            name, Grade.FINE, f"counters moved by {moved[0]} + {moved[1]}, answers said {prompt} + {completion}"
        )
        return
    yield Verdict(
        name,
        Grade.WEAKER,
        f"counters moved by {moved[0]} + {moved[1]} tokens only, answers said {prompt} + {completion}",
        "the books will not balance with this page",
        "several engines behind one address: reconcile with each one's own /metrics",
    )

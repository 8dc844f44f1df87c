"""A report as one JSON object: amounts in micro-units, parts of charges in pico-units, times in UTC; integers only."""

from __future__ import annotations

import json
from typing import Any

from kong_plugins.application.report import Charges, Latency, Percentiles, Report, Summary, Tokens, Top
from kong_plugins.domain.double_entry import Adjustment
from kong_plugins.domain.periods import iso_utc

SCHEMA_VERSION = 1


def to_json(report: Report) -> str:
    return json.dumps(to_record(report), ensure_ascii=False, indent=2) + "\n"


def to_record(report: Report) -> dict[str, Any]:
    """Everything that a report holds."""
    period = report.scope.period
    return {
        "schema": SCHEMA_VERSION,
        "period": period.label,
        "time_zone": period.time_zone,
        "start": iso_utc(period.start_ms),
        "end": iso_utc(period.end_ms),
        "tenant": report.scope.tenant,
        "currency": report.prices.currency,
        "prices_sha256": report.prices.digest,
        "request_fee": report.prices.request_fee.value,
        "net_micro": dict(report.net),
        **_summary(report.summary),
        "latency_ms": _latency(report.latency),
        "tenants": [
            {
                "tenant": tenant.tenant,
                "net_micro": dict(tenant.net),
                **_summary(tenant.summary),
                "latency_ms": _latency(tenant.latency),
                "models": [{"model": model.model, **_summary(model.summary)} for model in tenant.models],
                "adjustments": [_adjustment(adjustment) for adjustment in tenant.adjustments],
                "top_routes": [_top(top) for top in tenant.routes],
                "top_credentials": [_top(top) for top in tenant.credentials],
            }
            for tenant in report.tenants
        ],
        "timeline": [
            {
                "start": iso_utc(bucket.start_ms),
                "requests": bucket.requests,
                "tokens": _tokens(bucket.tokens),
                "amount_micro": bucket.amount,
            }
            for bucket in report.timeline
        ],
    }


def _summary(summary: Summary) -> dict[str, Any]:
    return {
        "requests": summary.requests,
        "outcomes": dict(sorted(summary.outcomes.items())),
        "denied_by_status": {str(status): count for status, count in sorted(summary.denied.items())},
        "evidence": dict(sorted(summary.evidence.items())),
        "tokens": _tokens(summary.tokens),
        "charges": _charges(summary.charges),
        "reversals": summary.reversals,
        "reversed_tokens": _tokens(summary.reversed_tokens),
        "reversed_charges": _charges(summary.reversed_charges),
        "unrated": {"events": summary.unrated, "tokens": summary.unrated_tokens},
    }


def _tokens(tokens: Tokens) -> dict[str, int]:
    return {
        "prompt": tokens.prompt,
        "cached": tokens.cached,
        "completion": tokens.completion,
        "reasoning": tokens.reasoning,
    }


def _charges(charges: Charges) -> dict[str, int]:
    return {
        "amount_micro": charges.amount,
        "uncached_pico": charges.uncached,
        "cached_pico": charges.cached,
        "completion_pico": charges.completion,
        "reasoning_pico": charges.reasoning,
        "request_pico": charges.request,
        "rounding_pico": charges.rounding,
        "saved_pico": charges.saved,
    }


def _latency(latency: Latency) -> dict[str, Any]:
    return {
        "first_byte": _percentiles(latency.first),
        "whole": _percentiles(latency.whole),
        "upstream": _percentiles(latency.upstream),
    }


def _percentiles(found: Percentiles | None) -> dict[str, int] | None:
    if found is None:
        return None
    return {"count": found.count, "p50": found.p50, "p95": found.p95, "p99": found.p99}


def _adjustment(adjustment: Adjustment) -> dict[str, Any]:
    return {
        "id": adjustment.event_id,
        "time": iso_utc(adjustment.time_ms),
        "kind": adjustment.kind,
        "amount_micro": adjustment.amount,
        "currency": adjustment.currency,
        "account": adjustment.account,
        "reason": adjustment.reason,
        "reference": adjustment.reference,
    }


def _top(top: Top) -> dict[str, Any]:
    return {"name": top.name, "requests": top.requests, "tokens": top.tokens, "amount_micro": top.amount}

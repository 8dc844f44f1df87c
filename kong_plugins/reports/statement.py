"""Frozen statements: what a period came to when it was closed. Written once; rating it again compares."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kong_plugins.application.report import Report
from kong_plugins.domain.periods import iso_utc

SCHEMA_VERSION = 1

Amounts = Mapping[str, Mapping[str, int]]  # currency, then "TENANT / MODEL charges": micro-units that are owed


class StatementError(Exception):
    """A period cannot be frozen, or a statement cannot be read. The message says what to do."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Micro-units; 0 where one of the two has no such line."""

    currency: str
    line: str
    frozen: int
    now: int


@dataclass(frozen=True, slots=True)
class Frozen:
    """``created``: this call wrote it. Else ``differences`` to what is there already, and whether the price list is
    the same one."""

    path: Path
    created: bool
    differences: tuple[Difference, ...] = ()
    same_prices: bool = True


def freeze(report: Report, directory: Path, now_ms: int) -> Frozen:
    """Write the period's statement, or compare with the one that is there.

    Raises:
        StatementError: the period is not over, something in it has no price, or the statement there is damaged.
        OSError: the directory cannot be written.
    """
    path = directory / _name(report)
    if path.exists():
        return _compare(path, report)
    period = report.scope.period
    if now_ms < period.end_ms:
        raise StatementError(f"{period.label} is not over before {iso_utc(period.end_ms)}: freeze it after that")
    if report.unrated:
        raise StatementError(f"{period.label} has usage without a price: add it to the price list, then freeze")
    directory.mkdir(parents=True, exist_ok=True)
    if not _write_once(path, json.dumps(_record(report), ensure_ascii=False, indent=2) + "\n"):
        return _compare(path, report)
    return Frozen(path, created=True)


def _name(report: Report) -> str:
    """One for each period, zone and tenant; a tenant's name may hold anything."""
    tenant = report.scope.tenant
    whose = "all"
    if tenant is not None:
        readable = re.sub(r"[^A-Za-z0-9_-]", "_", tenant)[:40]
        whose = f"{readable}-{hashlib.sha256(tenant.encode()).hexdigest()[:12]}"
    zone = report.scope.period.time_zone.replace("/", "_")
    return f"statement-{report.scope.period.label}-{zone}-{whose}.json"


def _record(report: Report) -> dict[str, Any]:
    period = report.scope.period
    return {
        "schema": SCHEMA_VERSION,
        "period": period.label,
        "time_zone": period.time_zone,
        "start": iso_utc(period.start_ms),
        "end": iso_utc(period.end_ms),
        "tenant": report.scope.tenant,
        "prices_sha256": report.prices.digest,
        "net_micro": dict(report.net),
        "amounts_micro": _amounts(report),
    }


def _amounts(report: Report) -> dict[str, dict[str, int]]:
    amounts = defaultdict[str, Counter[str]](Counter)
    for line in report.lines:
        of = line.usage
        kind = "reversals" if of.reversal else "charges"
        amounts[report.prices.currency][f"{of.tenant} / {of.model or '–'} {kind}"] += line.charges.amount
    for adjustment in report.adjustments:
        amounts[adjustment.currency][f"{adjustment.tenant} / {adjustment.kind}s"] -= adjustment.amount
    return {currency: dict(sorted(lines.items())) for currency, lines in sorted(amounts.items())}


def _compare(path: Path, report: Report) -> Frozen:
    try:
        record = json.loads(path.read_text("utf-8"))
        frozen: Amounts = {currency: dict(lines) for currency, lines in record["amounts_micro"].items()}
        digest = record["prices_sha256"]
        if record["schema"] != SCHEMA_VERSION:
            raise StatementError(f"{path} has schema {record['schema']}; this version reads {SCHEMA_VERSION}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StatementError(f"{path} is no statement of ours ({error!r}): move it away and freeze again") from error
    now = _amounts(report)
    differences = tuple(
        Difference(currency, line, before, after)
        for currency in sorted({*frozen, *now})
        for line in sorted({*frozen.get(currency, {}), *now.get(currency, {})})
        if (before := frozen.get(currency, {}).get(line, 0)) != (after := now.get(currency, {}).get(line, 0))
    )
    return Frozen(path, False, differences, digest == report.prices.digest)


def _write_once(path: Path, text: str) -> bool:
    """Whole and durable, or not at all; False when somebody else's came first."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.chmod(0o444)
        os.link(part, path)  # fails where the name is taken, as a rename would not
    except FileExistsError:
        return False
    finally:
        part.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return True

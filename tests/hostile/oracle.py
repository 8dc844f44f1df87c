"""What must hold after any input: no request on the engine without its event, nothing forged, nothing of another's."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from kong_plugins.adapters.engine_metrics import EngineCounters
from kong_plugins.adapters.ledger.audit import OpenHold
from kong_plugins.adapters.openai_wire import endpoint_of
from kong_plugins.adapters.openai_wire.fields import DROPPED
from kong_plugins.application.books import read_events
from kong_plugins.application.ports import Balance, OutboxEntry
from tests.hostile.heads import CASE_HEADER
from tests.hostile.sending import Came
from tests.hostile.world import POOR, TENANTS, World

NOT_TAPPED = "/usage-tap-is-not-enabled-on-this-route"
FORGEABLE = {
    "authorization",
    "apikey",
    "x-api-key",
    "x-authenticated-userid",
    "x-data-parallel-rank",
    "idempotency-key",
    "x-vllm-priority",
    "endpoint-load-metrics-format",
}
QUIET_S = 20.0
NOTED_BYTES = 1 << 20
SHOWN = 10


@dataclass
class Findings:
    """``problems``: empty when all held."""

    problems: list[str] = field(default_factory=list)
    generations: int = 0
    unmetered: int = 0
    foreign: int = 0
    billed: int = 0
    overshoot: int = 0
    events: Counter[str] = field(default_factory=Counter)

    def add(self, problem: str) -> None:
        if len(self.problems) < SHOWN:
            self.problems.append(problem)


def check(world: World, came: Iterable[Came], tenant_of: dict[str, str]) -> Findings:
    """``tenant_of``: whose key an input came with, by its case."""
    findings = Findings()
    _wait_until_quiet(findings, world)
    sides = _at_one_moment(world)
    entries = [(json.loads(entry.event), dict(entry.posted)) for entry in sides.outbox]
    requests = {event["id"]: event["data"] for event, _ in entries if "hold" in event["data"]}
    if len({event["id"] for event, _ in entries}) != len(entries):
        findings.add("an event is there twice")
    findings.events = Counter(data["outcome"] for data in requests.values())
    _on_the_engine(findings, world, requests, tenant_of)
    _tokens(findings, world, sides.engine, [event for event, _ in entries])
    _budgets(findings, sides.balances, entries)
    for each in came:
        _answered(findings, each, requests, tenant_of)
        _tells_no_key(findings, world, each)
    _secrets(findings, world)
    return findings


def _on_the_engine(
    findings: Findings, world: World, requests: dict[str, dict[str, Any]], tenant_of: dict[str, str]
) -> None:
    salts: defaultdict[str, set[str]] = defaultdict(set)
    ids: Counter[str] = Counter()
    for note in world.notes:
        headers = [(name.lower(), value) for name, value in note["headers"]]
        named = Counter(name for name, _ in headers)
        values = dict(headers)
        if endpoint_of(note["path"]) is None:
            if note["path"] != NOT_TAPPED:
                findings.add(f"the engine was asked for {note['method']} {note['path']}")
            continue  # a spelling that might reach a handler is metered as that handler
        if not note["size"]:
            continue  # never came whole: nothing was generated
        findings.generations += 1
        request_id = values.get("x-request-id", "")
        ids[request_id] += 1
        data = requests.get(request_id)
        whose = tenant_of.get(values.get(CASE_HEADER, "").removesuffix("-inner"))
        if data is None or named["x-request-id"] != 1:
            findings.unmetered += 1
            findings.add(f"unmetered: {request_id!r} of {values.get(CASE_HEADER)}: {note['body'][:200]}")
            continue
        if whose is not None and data["tenant"] != whose:
            findings.foreign += 1
            findings.add(f"{values[CASE_HEADER]} came with the key of {whose}, its event is of {data['tenant']}")
        forged = FORGEABLE & named.keys() | {name for name in named if name.replace("_", "-") in FORGEABLE}
        if forged:
            findings.add(f"{values.get(CASE_HEADER)}: the client's own {sorted(forged)} reached the engine")
        if note["query"] and "key" in note["query"].lower():
            findings.add(f"{values.get(CASE_HEADER)}: a key in the query reached the engine")
        if note["size"] <= NOTED_BYTES:  # of a larger one the engine notes the beginning only
            _body(findings, note["body"], data, salts)
    findings.problems += [f"{request_id!r} ran {count} times" for request_id, count in ids.items() if count > 1][:3]
    for tenant, its in salts.items():
        others = set().union(*(salts[other] for other in salts if other != tenant))
        if len(its) > 1 or its & others:
            findings.add(f"salts of {tenant}: {sorted(its)}, some of them another's: {sorted(its & others)}")


def _body(findings: Findings, body: str, data: dict[str, Any], salts: defaultdict[str, set[str]]) -> None:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {"": pairs, **dict(pairs)}

    try:
        asked = json.loads(body, object_pairs_hook=once)
    except ValueError as error:
        findings.add(f"no JSON reached the engine ({error}): {body[:200]}")
        return
    names = Counter(name for name, _ in asked[""])
    if any(count > 1 for count in names.values()):
        findings.add(f"a field twice reached the engine: {body[:200]}")
    if asked.get("model") != data["model"]:
        findings.add(f"billed as {data['model']!r}, asked for {asked.get('model')!r}")
    forged = (DROPPED.keys() - {"cache_salt"}) & names.keys()
    if forged:
        findings.add(f"forged {sorted(forged)} reached the engine: {body[:200]}")
    if data.get("endpoint") in {"chat", "completions", "responses"}:
        salts[data["tenant"]].add(str(asked.get("cache_salt")))


def _tokens(findings: Findings, world: World, now: EngineCounters, events: list[dict[str, Any]]) -> None:
    """The engine's own counters against what events say, reversals not subtracted: they are of tokens that it made."""
    prompt = prompts_counted = completion = slack = 0
    for event in events:
        data = event["data"]
        if "hold" not in data:
            continue
        choices = data.get("choices", 1)
        prompt += data["prompt"]
        prompts_counted += data["prompt"] * choices
        completion += data["completion"]
        if data["evidence"] != "exact":
            slack += data.get("completion_bound", 0) + data.get("prompt_bound", 0) * choices
    made, read = now.completion - world.started.completion, now.prompt - world.started.prompt
    findings.billed = prompt + completion
    if not completion - slack <= made <= completion + slack:
        findings.add(f"the engine generated {made} tokens, events say {completion} (bounds of the unseen: {slack})")
    if not prompt - slack <= read <= prompts_counted + slack:
        findings.add(
            f"the engine read {read} prompt tokens, events say {prompt} to {prompts_counted} (unseen: {slack})"
        )


def _budgets(
    findings: Findings, balances: Iterable[Balance], entries: list[tuple[dict[str, Any], dict[str, int]]]
) -> None:
    posted: Counter[tuple[str, str]] = Counter()
    used: Counter[str] = Counter()
    for event, amounts in entries:
        data = event["data"]
        for line, amount in amounts.items():
            posted[data["tenant"], line] += amount
        if data["tenant"]:
            sign = -1 if "reverses" in data else 1
            used[data["tenant"]] += sign * (data["prompt"] + data["completion"])
    strangers = {data["tenant"] for event, _ in entries for data in (event["data"],)} - TENANTS.keys() - {""}
    if strangers:
        findings.add(f"events of tenants that nobody configured: {sorted(strangers)[:5]}")
    for balance in balances:
        tenant, line, committed = balance.tenant, balance.state.key, balance.state.committed
        if committed != posted[tenant, line]:
            findings.add(f"{tenant} {line}: counter {committed}, events posted {posted[tenant, line]}")
        if line == "monthly" and committed != used[tenant]:
            findings.add(f"{tenant}: counter {committed}, events say {used[tenant]}")
        if tenant == "poor" and committed > POOR:
            findings.overshoot += committed - POOR
            findings.add(f"poor used {committed} of {POOR}")


def _answered(findings: Findings, came: Came, requests: dict[str, dict[str, Any]], tenant_of: dict[str, str]) -> None:
    case = came.wire.case
    broken = [status for status in came.statuses if status >= 500 and status not in {501, 505}]
    if broken:
        findings.add(f"{case} was answered {broken}: {came.wire.notes} {came.wire.data[:300]!r} → {came.data[:300]!r}")
    if came.waited_out and came.wire.leave_after is None and "decent" in came.wire.notes:
        findings.add(f"{case} had no whole answer: {came.wire.data[:200]!r}")
    answer = came.answer() if len(came.statuses) == 1 and came.wire.leave_after is None else None
    if answer is None or answer[0] != 200:
        return
    status, headers, body = answer
    whose = tenant_of[case]
    named = headers.get("idempotent-request-id") or headers.get("x-request-id", "")
    data = requests.get(named)
    if data is None:
        findings.add(f"{case}: answered {status} as {named!r}, of which there is no event")
        return
    if data["tenant"] != whose:
        findings.foreign += 1
        findings.add(f"{case}: {whose} has the answer of {named}, which is {data['tenant']}'s")
    if headers.get("content-type", "").startswith("application/json"):
        try:
            usage = json.loads(body).get("usage") or {}
        except (ValueError, AttributeError):
            return
        prompt = usage.get("prompt_tokens", usage.get("input_tokens", 0))
        prompt += usage.get("cache_read_input_tokens", 0) + usage.get("cache_creation_input_tokens", 0)  # Anthropic's
        completion = usage.get("completion_tokens", usage.get("output_tokens", 0))
        if (prompt, completion) != (data["prompt"], data["completion"]):
            findings.add(
                f"{case}: the client saw {prompt}+{completion}, its event {data['prompt']}+{data['completion']}"
            )


def _tells_no_key(findings: Findings, world: World, came: Came) -> None:
    """An answer, an error page too, repeats nobody's key, not even that of the client that sent it."""
    for tenant in TENANTS:
        if world.key(tenant).encode() in came.data:
            findings.add(f"{came.wire.case} was told the key of {tenant}: {came.data[:300]!r}")


def _secrets(findings: Findings, world: World) -> None:
    """No key in anything that was written: the ledger's file, logs, spool; nor in what the engine was sent."""
    keys = {tenant: world.key(tenant).encode() for tenant in TENANTS}
    for path in sorted(world.directory.rglob("*")):
        if path.is_file() and not path.is_socket():
            data = path.read_bytes()
            for tenant, key in keys.items():
                if key in data:
                    findings.add(f"the key of {tenant} stands in {path.relative_to(world.directory)}")
    for note in world.notes:
        text = json.dumps(note)
        for tenant, key in keys.items():
            if key.decode() in text and "-inner" not in text:
                findings.add(f"the key of {tenant} reached the engine: {text[:300]}")


@dataclass(frozen=True)
class _Sides:
    outbox: list[OutboxEntry]
    balances: list[Balance]
    engine: EngineCounters


def _at_one_moment(world: World) -> _Sides:
    """All sides of the books with nothing between them: a client that is gone may have had a request on its way, which
    is held, run and settled only now. Posting and event are one step, so equal events mean equal counters."""
    deadline = time.monotonic() + QUIET_S
    while True:
        world.look()
        engine, outbox = world.engine(), list(read_events(world.ledger))
        balances = [balance for tenant in world.ledger.tenants() for balance in world.ledger.balances(tenant)]
        same = len(list(read_events(world.ledger))) == len(outbox) and world.engine() == engine
        if same or time.monotonic() > deadline:
            return _Sides(outbox, balances, engine)


def _wait_until_quiet(findings: Findings, world: World) -> None:
    def left() -> list[OpenHold]:
        return unexplained(world.audit.open_holds(), world.plugin_log())

    deadline = time.monotonic() + QUIET_S
    while (holds := left()) and time.monotonic() < deadline:
        time.sleep(0.05)
    for hold in holds:
        ran = [note for note in world.notes if ["x-request-id", hold.hold_id] in note["headers"]]
        findings.add(f"never settled: {hold.hold_id} of {hold.tenant}, on the engine as {ran}")


def unexplained(holds: Iterable[OpenHold], log: str) -> list[OpenHold]:
    """Without those that were given up: emptied, with the reason in token-quota's log. The ledger answered too late, or
    Kong did not wait; such a hold blocks nothing and ends by its own clock. One that is empty for no reason is none."""
    return [
        hold for hold in holds if any(amount for _, amount in hold.amounts) or f"refused {hold.hold_id}: " not in log
    ]

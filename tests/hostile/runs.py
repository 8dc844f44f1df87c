"""Inputs by seed and number, sent by several attackers at once; then the oracle looks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from random import Random

from tests.hostile.bodies import ENDPOINTS, body, plain, write
from tests.hostile.heads import Wire, wire
from tests.hostile.oracle import Findings, check
from tests.hostile.sending import Came, send
from tests.hostile.world import ATTACKERS, World

WORKERS = 4
BATCH = 200


@dataclass
class Tried:
    inputs: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    findings: Findings = field(default_factory=Findings)


def case(seed: int, number: int, key: Callable[[str], str]) -> Wire:
    """Input ``number`` of ``seed``: the same bytes each time, but for the tenants' keys."""
    choose = Random(f"{seed}/{number}")
    path = choose.choice((*ENDPOINTS, "/v1/chat/completions"))
    tenant = choose.choice(ATTACKERS)
    sent = body(choose, path)
    return wire(choose, path=path, body=sent, tenant=tenant, key=key(tenant), case=f"c{seed}-{number}")


def control(number: int, key: Callable[[str], str]) -> Wire:
    """What a decent tenant asks meanwhile, and is always answered."""
    sent = write(plain("/v1/chat/completions"))
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nx-hostile-case: control-{number}\r\n"
        f"apikey: {key('victim')}\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(sent)}\r\n\r\n"
    )
    return Wire(head.encode() + sent, "/v1/chat/completions", "victim", f"control-{number}", sent, notes=["decent"])


def attack(world: World, seed: int, numbers: Iterable[int], say: Callable[[str], None] = lambda _: None) -> Tried:
    """Send inputs ``numbers`` of ``seed``, and look at everything afterwards."""
    tried, tenant_of, kept = Tried(), {}, []
    pending = list(numbers)
    with ThreadPoolExecutor(WORKERS) as pool:
        for start in range(0, len(pending), BATCH):
            wires = [case(seed, number, world.key) for number in pending[start : start + BATCH]]
            wires.insert(len(wires) // 2, control(start, world.key))
            tenant_of |= {each.case: each.tenant for each in wires}
            came = list(pool.map(lambda each: send(world.port, each, _ends(each)), wires))
            for each in came:
                said = "/".join(map(str, each.statuses)) or ("left" if each.wire.leave_after is not None else "closed")
                tried.statuses[said] += 1
                if "decent" in each.wire.notes and each.statuses != [200]:
                    tried.findings.add(f"a decent request meanwhile was answered {each.statuses}: {each.data[:300]!r}")
            kept += [_light(each) for each in came]
            tried.inputs += len(wires) - 1
            world.look()
            say(f"{tried.inputs:,} of {len(pending):,} inputs, {len(world.notes):,} reached the engine")
    earlier = tried.findings.problems
    tried.findings = check(world, kept, tenant_of)
    tried.findings.problems[:0] = earlier
    return tried


def _ends(wire: Wire) -> bool:
    """The server has all it needs to answer and close."""
    return "decent" in wire.notes or wire.data.endswith(b"Connection: close\r\n\r\n" + wire.body)


def _light(came: Came) -> Came:
    """A million answers are not kept whole."""
    came.wire.data, came.wire.body = came.wire.data[:400], b""
    came.data = came.data[:20_000]
    return came

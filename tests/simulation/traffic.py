"""Clients, the gateway between them and the plugins, and the engine."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from kong_plugins.adapters.registration_codec import decode_registration, encode_registration
from kong_plugins.application.admit import Ask, Denied, Held
from kong_plugins.application.ports import LedgerUnavailable, Recording
from kong_plugins.application.reconcile_scrapes import Scrape
from kong_plugins.application.settle import NO_ANSWER, Answer
from kong_plugins.domain.attempts import AnswerKept, Attempt, Earlier, Standing
from kong_plugins.domain.events import Admitted, Ending, billing_event, known_usage
from kong_plugins.domain.holds import Outcome, Registration
from kong_plugins.domain.planning import plan
from kong_plugins.domain.usage import NO_USAGE, Evidence, Usage
from tests.simulation.account import check
from tests.simulation.kernel import Gone, Process, Task
from tests.simulation.parties import BillingServer, QuotaServer

if TYPE_CHECKING:
    from tests.simulation.world import Tenant, World

MODEL = "r1"
REMEMBERED_US = 900_000_000


@dataclass(eq=False)
class Logical:
    """What a client wants once, however often it asks."""

    tenant: str
    kind: str  # none, client, derived
    asked: str
    hold_ids: list[str] = field(default_factory=list)


@dataclass(eq=False)
class Request:
    logical: Logical
    number: int  # of the attempt
    prompt: int
    max_tokens: int
    choices: int
    stream: bool
    client: Task
    status: int = 0
    left: bool = False
    admitted: Admitted | None = None


class Engine:
    """Generates in chunks when asked for the next. Its counters live as long as its process."""

    def __init__(self, world: World, life: int) -> None:
        self._world = world
        self.process = Process(world.kernel, f"engine {life}")
        self.life = life
        self.born_us = world.kernel.now_us
        self.prompt = self.completion = 0

    def begin(self, hold_id: str, request: Request) -> bool:
        """False: it has no room."""
        self._world.kernel.sleep(self._world.kernel.random.randrange(1_000, 30_000))
        if self._world.faults.hit("engine refuses"):
            return False
        self._world.watch.engine_runs(hold_id)
        self.prompt += request.prompt * request.choices
        return True

    def chunk(self, most: int) -> int:
        random = self._world.kernel.random
        count = min(most, random.randint(1, 12))
        self._world.kernel.sleep(random.randrange(20_000, 200_000))
        if self._world.faults.hit("engine slow"):
            self._world.kernel.sleep(random.randrange(1_000_000, 40_000_000))
        self.completion += count
        return count

    def scrape(self) -> Scrape:
        now_us = self._world.kernel.now_us
        name = f"engine@{self.life}"
        return Scrape("engine", MODEL, "0", name, now_us, self.born_us, self.prompt, self.completion)


class Gateway:
    """A node: Kong's worker and the two plugin servers beside it."""

    def __init__(self, world: World, name: str) -> None:
        self.name = name
        self.world = world
        self.kong = Process(world.kernel, f"{name} kong")
        self.quota: QuotaServer
        self.billing: BillingServer

    def now_ms(self) -> int:
        return (self.world.kernel.now_us + self.world.node_skew_us[self.name]) // 1000

    def serve(self, request: Request, hold_id: str) -> None:
        """One request through access, proxy and log."""
        world, kernel = self.world, self.world.kernel
        started_ms = self.now_ms()
        tenant = world.tenants[request.logical.tenant]
        decided = self._access(request, hold_id, tenant, started_ms)
        if decided is None:
            return
        bound = decided.bound
        admitted = Admitted(
            hold_id,
            tenant.name,
            MODEL,
            self.name,
            bound.prompt,
            bound.completion,
            budgets=tuple(each.line.key for each in decided.planned),
            over=decided.over,
            choices=request.choices,
            retriable=request.logical.kind != "none",
            by=decided.by,
            registration=_as_logged(decided.registration),
        )
        ending, whole = self._proxy(request, admitted, decided, started_ms)
        if whole:
            request.status = 200
        kernel.wake(request.client)
        answer = NO_ANSWER
        if whole and request.logical.kind != "none":
            answer = Answer(f"{tenant.name}|{request.logical.asked}".encode(), AnswerKept.KEPT)
        servers = [self.quota, self.billing]
        if world.faults.hit("log phases turned round"):
            servers.reverse()
        if world.faults.hit("log phase twice"):
            servers.append(servers[0])
        for server in servers:
            try:
                kernel.call(server.process, lambda server=server: server.log(admitted, ending, answer))
                if known_usage(ending) is not None:
                    world.watch.promised[hold_id] = None  # it is in the ledger, or durable in a spool
            except Gone:
                kernel.note("log phase lost", hold_id, server.process.name)

    def _access(self, request: Request, hold_id: str, tenant: Tenant, started_ms: int) -> Held | None:
        world, kernel, logical = self.world, self.world.kernel, request.logical
        bound = Usage(4 * request.prompt + 16, request.max_tokens * request.choices)
        planned = plan(tenant.rules, MODEL, {}, bound)
        world.watch.announce(hold_id, [each.rule.budget.name for each in planned])
        record = Admitted(
            hold_id, tenant.name, MODEL, self.name, bound.prompt, bound.completion, choices=request.choices
        )
        start = Ending("chat", request.stream, started_ms=started_ms)
        attempt = None
        if logical.kind != "none":
            derived = logical.kind == "derived"
            attempt = Attempt(logical.asked, logical.asked, derived, request.number > 0, REMEMBERED_US)
        ask = Ask(
            tenant.name,
            hold_id,
            planned,
            bound,
            request.choices,
            lambda prompt: Usage(prompt + 3, bound.completion),
            lambda: request.prompt,
            billing_event(record, start, NO_USAGE, Evidence.HELD, Outcome.EXPIRED),
            attempt,
        )
        quota = self.quota
        try:
            decided = kernel.call(quota.process, lambda: quota.access(ask, request.prompt))
        except (Gone, LedgerUnavailable):
            request.status = 503
        else:
            if isinstance(decided, Held):
                kernel.note("admitted", hold_id, decided.max_tokens)
                return decided
            if isinstance(decided, Denied):
                request.status = 429
                event = billing_event(record, replace(start, status=429), NO_USAGE, Evidence.EXACT, Outcome.DENIED)
                quota.denied(tenant.name, hold_id, event)
            else:
                request.status = self._earlier(decided, logical)
        kernel.wake(request.client)
        return None

    def _earlier(self, earlier: Earlier, logical: Logical) -> int:
        if earlier.standing is Standing.FINISHED:
            whose = (earlier.answer or b"").decode()
            check(whose == f"{logical.tenant}|{logical.asked}", "another's answer", whose, logical)
            return 200
        return 409 if earlier.standing is Standing.RUNNING else 422

    def _proxy(self, request: Request, admitted: Admitted, held: Held, started_ms: int) -> tuple[Ending, bool]:
        """What the tap saw, and whether the client has all of it."""
        kernel, engine = self.world.kernel, self.world.engine
        random, faults = kernel.random, self.world.faults
        ending = Ending(
            "chat", request.stream, started_ms=started_ms, source="service", status=200, upstream_status="200"
        )
        most = (held.max_tokens or request.max_tokens) * request.choices
        wanted, done = random.randint(1, most), 0
        tells = not faults.hit("no usage in the stream")
        cached = random.randint(0, request.prompt)
        try:
            if not kernel.call(engine.process, lambda: engine.begin(admitted.hold_id, request)):
                return replace(ending, status=503, upstream_status="503", last_ms=self.now_ms()), False
            while done < wanted:
                done += kernel.call(engine.process, lambda left=wanted - done: engine.chunk(left))
                if request.left or faults.hit("client leaves"):
                    request.left = True
                    break
        except Gone:
            if not request.stream or not done:
                return replace(ending, status=502, source="error", upstream_status=None, last_ms=self.now_ms()), False
            ending = replace(ending, error=True)
        ending = replace(ending, last_ms=self.now_ms())
        if request.left and done < wanted:
            engine.process.alive and engine.process.spawn(lambda: engine.chunk(wanted - done))
        usage = Usage(request.prompt, done, cached, done // 3)
        if done == wanted and not ending.error:
            if request.stream and not tells:
                text = "tok " * done
                return replace(ending, text=text, text_bytes=len(text), finish="stop", ended=True), not request.left
            if request.left and not request.stream:
                return replace(ending, status=499), False
            return replace(ending, usage=usage, evidence=Evidence.EXACT, finish="stop", ended=True), not request.left
        if not request.stream:
            return replace(ending, status=499), False
        if tells:
            return replace(ending, usage=usage, evidence=Evidence.CONTINUOUS), False
        text = "tok " * done
        return replace(ending, text=text, text_bytes=len(text)), False


def _as_logged(registration: Registration | None) -> Registration | None:
    """As a log phase has it."""
    return registration and decode_registration(encode_registration(registration))


class Clients:
    """So many at a time; each tries again as an SDK does."""

    def __init__(self, world: World, count: int) -> None:
        self._world = world
        self.process = Process(world.kernel, "clients")
        self.busy = 0
        self._number = 0
        self._requests = 0
        self._recent: list[Logical] = []
        for _ in range(count):
            self.process.spawn(self._live, world.kernel.random.randrange(1_000_000))

    def _live(self) -> None:
        world = self._world
        while True:
            world.kernel.sleep(world.kernel.random.randrange(20_000, 1_500_000))
            if not world.resting:
                self.busy += 1
                self._want()
                self.busy -= 1

    def _want(self) -> None:
        world, random = self._world, self._world.kernel.random
        self._number += 1
        heard = [each for each in world.tenants if world.silent_until_us[each] <= world.kernel.now_us]
        tenant = random.choice(heard or list(world.tenants))
        kind = random.choice(["none", "none", "client", "client", "derived", "derived"])
        logical = Logical(tenant, kind, f"k{self._number // 2}")  # two tenants share keys
        if kind != "none" and (twins := [each for each in self._recent if each.kind == kind]) and random.random() < 0.1:
            other = random.choice(twins)
            logical.asked, logical.tenant = other.asked, random.choice([other.tenant, logical.tenant])
        self._recent = [*self._recent[-7:], logical]
        if kind != "none":
            same = world.logical.setdefault((logical.tenant, kind, logical.asked), [])
            same.append(logical)
            world.watch.counts.logical += 1
        prompt, max_tokens = random.randint(2, 60), random.randint(4, 60)
        choices, stream = random.choice([1, 1, 1, 2]), random.random() < 0.7
        for number in range(random.randint(1, 4)):
            request = Request(logical, number, prompt, max_tokens, choices, stream, world.kernel.current)
            self._send(request)
            if number:
                world.watch.counts.retried += 1
            if request.status in {200, 422}:
                return
            world.kernel.sleep(random.randrange(1_000, 3_000_000))

    def rush(self, tenant: str, count: int) -> None:
        """So many more at a time, who want little and once."""
        for _ in range(count):
            self.process.spawn(lambda: self._hurry(tenant), self._world.kernel.random.randrange(1_000_000))

    def _hurry(self, tenant: str) -> None:
        world, random = self._world, self._world.kernel.random
        if not world.resting:
            self.busy += 1
            prompt, max_tokens = random.randint(2, 60), random.randint(2, 10)
            logical = Logical(tenant, "none", "")
            self._send(Request(logical, 0, prompt, max_tokens, 1, False, world.kernel.current))
            self.busy -= 1

    def _send(self, request: Request) -> None:
        world, kernel = self._world, self._world.kernel
        gateway = kernel.random.choice(world.gateways)
        if not gateway.kong.alive:
            request.status = 502
            return
        self._requests += 1
        hold_id = f"r{self._requests}"
        request.logical.hold_ids.append(hold_id)
        task = gateway.kong.spawn(lambda: gateway.serve(request, hold_id))
        task.waiters.append(request.client)
        until_us = kernel.now_us + kernel.random.choice([300_000, 3_000_000, 60_000_000])
        while not request.status and not task.done and kernel.now_us < until_us:
            kernel.park(until_us - kernel.now_us)
        request.left = request.status == 0
        kernel.note("answered", hold_id, request.status)

    def begin_anew(self) -> None:
        """What was asked for before an audit nobody asks for again."""
        self._recent.clear()
        self._number += 2

    def unmetered_event(self) -> None:
        """Of a request that no budget held: billing-events records it."""
        world = self._world
        self._requests += 1
        tenant, event_id = world.kernel.random.choice(list(world.tenants)), f"u{self._requests}"
        gateway = world.kernel.random.choice(world.gateways)
        admitted = Admitted(event_id, tenant, "other", gateway.name, 0, 0)
        ending = Ending("chat", usage=Usage(3, 4), evidence=Evidence.EXACT, finish="stop", ended=True, status=200)
        ending = replace(ending, started_ms=gateway.now_ms(), last_ms=gateway.now_ms())
        event = billing_event(admitted, ending, Usage(3, 4), Evidence.EXACT)
        server = gateway.billing
        if server.process.alive:
            server.process.spawn(lambda: server.poster.record(Recording(tenant, event_id, event)))

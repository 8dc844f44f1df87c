"""Admission against leases: the usual request needs no word of the ledger's, and while the ledger is away a node spends
what it has leased."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from kong_plugins.application.ports import Ledger, LedgerUnavailable
from kong_plugins.application.registering import Registrar, Together, for_each_tenant, one_by_one
from kong_plugins.domain.budgets import Mode
from kong_plugins.domain.holds import HoldOutcome, HoldRequest, Line, LineState, Registration
from kong_plugins.domain.leases import LeasedLine, LeaseRequest
from kong_plugins.domain.windows import WindowSpec

_log = logging.getLogger(__name__)

TENANTS_MAX = 10_000  # with leases at a time; further ones ask the ledger
RENEW_S = 1.0  # how soon a lease follows what was used
IDLE_S = 30.0  # without a request: then the lease is given back
WALK_S = 0.5  # between two looks at every tenant
ANSWER_PAUSES = 20  # of 10 ms, for the answer to a question that is under way
RENEWALS_A_TTL = 4  # also of a lease that nothing was used of


@dataclass(frozen=True, slots=True)
class LeasePolicy:
    """``percent`` of what is left is leased; ``ttl_s``: how long a node admits against a lease it could not renew. The
    ledger keeps it for twice as long, for the requests that were admitted last."""

    percent: int
    ttl_s: int


@dataclass(slots=True)
class _Slice:
    """A node's part of one counter. ``granted`` is what the ledger is known to hold for it, ``used`` what of that was
    given to requests that the ledger has not been told of."""

    line: Line
    seen_s: float
    granted: int = 0
    used: int = 0
    moved: int = 0  # out of it since the ledger was last asked
    leased: LeasedLine | None = None  # the ledger's last word

    @property
    def free(self) -> int:
        return self.granted - self.used


@dataclass(slots=True)
class _Tenant:
    lease_id: str
    turn: int = 0
    slices: dict[tuple[str, WindowSpec], _Slice] = field(default_factory=dict)
    told_us: int = 0  # the ledger's clock in its last word
    told_s: float = 0.0  # ours when that was asked for: so the ledger's is never later than we think
    until_s: float = 0.0  # when admitting ends unless it is renewed
    renew_s: float = 0.0  # not before
    seen_s: float = 0.0
    touched: bool = False
    asking: bool = False

    def now_us(self, now_s: float) -> int:
        return self.told_us + round((now_s - self.told_s) * 1e6)


class Leases:
    """The leases of one node with one ledger. For one thread, whose greenlets may all use it.

    ``node`` is the name of this object alone, in this process and any other. ``clock`` gives seconds that never go back
    and never stand still. ``together`` as a registrar's; ``pause``: lets others run for so many seconds.
    """

    def __init__(  # noqa: PLR0917
        self,
        ledger: Ledger,
        registrar: Registrar,
        policy: LeasePolicy,
        node: str,
        clock: Callable[[], float],
        wake: Callable[[], None] = lambda: None,
        together: Together = one_by_one,
        pause: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._ledger = ledger
        self._registrar = registrar
        self._policy = policy
        self._node = node
        self._leases = 0
        self._clock = clock
        self._wake = wake
        self._together = together
        self._pause = pause
        self._walk_s = 0.0
        self._tenants: dict[str, _Tenant] = {}
        self._missing: dict[str, None] = {}  # tenants that were asked for what they have no lease of

    def __len__(self) -> int:
        """Tenants with a lease."""
        return len(self._tenants)

    def admit(self, request: HoldRequest) -> tuple[HoldOutcome, Registration] | None:
        """Out of the lease; None: it does not fit there, and what there is room for is the ledger's to say."""
        ready = self._ready(request)
        if ready is None or self._registrar.full:
            return None
        tenant, slices, now_us = ready
        hard = [(part, line) for part, line in zip(slices, request.lines, strict=True) if line.mode is Mode.HARD]
        if not all(_fits(part, line) for part, line in hard):
            return None
        for part, line in hard:
            part.used += line.amount
        outcome = HoldOutcome(True, tuple(map(_state, slices, request.lines)), now_us)
        registration = Registration(request, now_us, tenant.lease_id)
        self._registrar.add(registration, lambda: _told(hard))
        return outcome, registration

    def want(self, request: HoldRequest) -> None:
        """The ledger is asked about this request: have its tenant's lease all the same, for while it is away."""
        self._ready(request)

    def _ready(self, request: HoldRequest) -> tuple[_Tenant, list[_Slice], int] | None:
        """The tenant with a slice for each line, and the ledger's clock; None where one is to be leased first."""
        now_s = self._clock()
        tenant = self._tenants.get(request.tenant)
        if tenant is None:
            if len(self._tenants) >= TENANTS_MAX:
                return None
            self._leases += 1
            tenant = self._tenants[request.tenant] = _Tenant(f"{self._node}.{self._leases}")
        tenant.seen_s, tenant.touched = now_s, True
        slices = [_slice(tenant, line, now_s) for line in request.lines]
        now_us = tenant.now_us(now_s)
        if now_s >= tenant.until_s or not all(_current(part, now_us) for part in slices):
            self._missing[request.tenant] = None
            self._wake()
            return None
        return tenant, slices, now_us

    def give_back(self, tenant: str) -> bool:
        """Of a tenant whose request found no room, what is not used. Whether there was any.

        Raises:
            LedgerUnavailable: nobody knows.
        """
        kept = self._tenants.get(tenant)
        for _ in range(ANSWER_PAUSES):
            if kept is None or not kept.asking:
                break
            self._pause(0.01)
        if kept is None or kept.asking or not any(part.free > 0 for part in kept.slices.values()):
            return False
        self._ask(tenant, kept, percent=0, shrink=True)
        kept.renew_s = self._clock() + RENEW_S
        return True

    def work(self) -> None:
        """Renew the leases that need it, and give back those of tenants that have gone. To be called when woken, and
        every ``WALK_S`` or so.

        Raises:
            LedgerUnavailable: some were not renewed.
        """
        now_s = self._clock()
        missing, self._missing = self._missing, {}
        due = {name: self._tenants[name] for name in missing if name in self._tenants}
        gone: dict[str, _Tenant] = {}
        if now_s >= self._walk_s:
            self._walk_s = now_s + WALK_S
            for name, tenant in self._tenants.items():
                if now_s - tenant.seen_s >= IDLE_S:
                    gone[name] = tenant
                elif now_s >= tenant.renew_s and (tenant.touched or now_s >= self._renewal_s(tenant)):
                    due[name] = tenant
        for_each_tenant([(name, self._renewal(name, tenant)) for name, tenant in due.items()], self._together)
        # One at a time, and not while the ledger is away: whether one is there whose answer was lost nobody knows.
        for name, tenant in gone.items():
            self._let_go(name, tenant)

    def close(self) -> None:
        """Give everything back.

        Raises:
            LedgerUnavailable: the rest ends by the ledger's clock.
        """
        for name, tenant in list(self._tenants.items()):
            self._let_go(name, tenant)

    def _renewal_s(self, tenant: _Tenant) -> float:
        return tenant.until_s - self._policy.ttl_s * (1 - 1 / RENEWALS_A_TTL)

    def _renewal(self, name: str, tenant: _Tenant) -> Callable[[], None]:
        def renew() -> None:
            if not tenant.asking:
                self._ask(name, tenant, self._policy.percent)

        return renew

    def _ask(self, name: str, tenant: _Tenant, percent: int, *, shrink: bool = False) -> None:
        """Whatever becomes of the question, the ledger keeps at least what was asked for of what it had: no more than
        that is given away until the answer comes."""
        now_s = self._clock()
        for key, part in list(tenant.slices.items()):
            if now_s - part.seen_s >= IDLE_S and not part.used:
                del tenant.slices[key]
            elif not _current(part, tenant.now_us(now_s)):
                # By the ledger's clock its window may go on: what was given away stays leased until it names another.
                part.granted = part.used
        asked = list(tenant.slices.values())
        for part in asked:
            part.moved = 0
            wanted = part.leased.wanted if part.leased is not None else 0
            if shrink:
                part.granted = part.used
            elif 4 * wanted < 3 * part.granted:  # not for a little: that would be a write each time
                part.granted = max(part.used, wanted)
        lines = tuple(replace(part.line, amount=max(0, part.granted)) for part in asked)
        tenant.asking, tenant.touched, tenant.renew_s = True, False, now_s + RENEW_S
        tenant.turn += 1
        ttl_us = 2 * self._policy.ttl_s * 1_000_000
        try:
            outcome = self._ledger.lease(LeaseRequest(name, tenant.lease_id, lines, percent, ttl_us, tenant.turn))
        except LedgerUnavailable:
            tenant.touched = True
            raise
        finally:
            tenant.asking = False
        tenant.told_us, tenant.told_s, tenant.until_s = outcome.now_us, now_s, now_s + self._policy.ttl_s
        for part, leased in zip(asked, outcome.lines, strict=True):
            if part.leased is not None and part.leased.until_us != leased.until_us:
                # The window ended meanwhile: what was used is of the last one.
                part = tenant.slices[part.line.key, part.line.window] = _Slice(part.line, part.seen_s)  # noqa: PLW2901
            # What was moved meanwhile the ledger may have moved after this answer.
            part.granted, part.leased = leased.amount - part.moved, leased

    def _let_go(self, name: str, tenant: _Tenant) -> None:
        """Nothing is admitted meanwhile, nor after a failure: what is left then nobody knows, and the next request asks
        for another lease."""
        if tenant.asking or any(part.used for part in tenant.slices.values()):
            return  # the registrar is not done
        del self._tenants[name]
        self._ledger.lease(LeaseRequest(name, tenant.lease_id, (), 0, 1, tenant.turn + 1))


def _slice(tenant: _Tenant, line: Line, now_s: float) -> _Slice:
    part = tenant.slices.get((line.key, line.window))
    if part is None:
        part = tenant.slices[line.key, line.window] = _Slice(line, now_s)
    part.seen_s = now_s
    if line.mode is Mode.HARD or part.line.mode is not Mode.HARD:
        # Its limit may have been edited. A row that counts the same budget, and refuses nobody by it, changes nothing.
        part.line = line
    return part


def _current(part: _Slice, now_us: int) -> bool:
    """It was leased, and is of a window that goes on."""
    leased = part.leased
    return leased is not None and (leased.until_us is None or now_us < leased.until_us)


def _fits(part: _Slice, line: Line) -> bool:
    """What another row leased under a higher limit is no room under this one's."""
    leased = part.leased
    return leased is not None and line.limit >= leased.state.limit and line.amount <= part.free


def _told(parts: list[tuple[_Slice, Line]]) -> None:
    """The ledger has moved a request's amounts out of the lease, or finds them in no lease of ours."""
    for part, line in parts:
        part.used -= line.amount
        part.granted -= line.amount
        part.moved += line.amount


def _state(part: _Slice, line: Line) -> LineState:
    """The counter as the ledger last told it, with what was given away since."""
    leased = part.leased
    assert leased is not None
    told = leased.state
    # The lease is held, and this request's amount is out of it.
    held = told.held - max(0, part.free) if line.mode is Mode.HARD else told.held + line.amount
    short = line.mode is not Mode.HARD and told.committed + held > line.limit
    return LineState(line.key, line.limit, told.committed, max(0, held), told.reset_us, short=short)

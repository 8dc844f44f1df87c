"""The plain account of leases, and of requests that were admitted without the ledger: nothing is given away that the
store does not hold for its node, and what it holds on top of leases is no more than what was leased and is gone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from kong_plugins.application.outage import Unasked
from kong_plugins.domain.budgets import Mode
from kong_plugins.domain.holds import DecidedBy, HoldRequest, Registration
from kong_plugins.domain.leases import LeaseOutcome, LeaseRequest
from kong_plugins.domain.partitions import partition_of
from tests.simulation.account import Account, Durable, Lease, Path, check
from tests.simulation.kernel import Process

# Why a store holds less for a lease than its node may have given away. Of an ended window nobody else can take it; what
# the other three take away, an outage, a clock or a failover has cost.
WINDOW, EXPIRED, CLOCK, FAILOVER = "its window ended", "not renewed", "the store's clock leapt", "failed over"
KNOWN_TO_NOBODY = (CLOCK, FAILOVER)  # and a node goes on giving away


@dataclass(slots=True, eq=False)
class Admitted:
    """A request that was admitted without the ledger. ``true_us``: when; ``told``: the store has heard of it, ``late``:
    too late to hold it."""

    request: HoldRequest
    lease_id: str
    process: Process
    true_us: int
    amounts: dict[Path, int]
    told: bool = False
    late: bool = False


class Leased:
    """``true_us``: a clock that nothing befalls. ``apart``: (tenant, key) of what was tried again before the store knew
    of the first attempt (it, or its registration, hung at another node, or in a process that ended): they are charged
    apart."""

    def __init__(self, account: Account, true_us: Callable[[], int]) -> None:
        self._account = account
        self._true_us = true_us
        self.forget()

    def forget(self) -> None:
        """After an audit: of what is over nothing more can come."""
        self.unasked: dict[str, Admitted] = {}
        self.apart: set[tuple[str, str]] = set()
        self._turns: dict[str, int] = {}  # the last that the store answered
        self._owed: Counter[tuple[str, Path]] = Counter()  # given away, and not told yet
        self._lost: dict[tuple[str, Path], Counter[str]] = {}
        self._lost_holds: set[str] = set()
        self._unanswered: set[str] = set()
        self._refused: set[str] = set()
        self._announced: dict[str, int] = {}
        self._retried: dict[tuple[str, str], int] = {}

    # What nodes do.

    def announced(self, hold_id: str) -> None:
        self._announced[hold_id] = self._true_us()

    def answered(self, hold_id: str, admitted: bool | None) -> None:
        """What a node heard of a hold. None: nothing."""
        if admitted is None:
            self._unanswered.add(hold_id)
        elif not admitted:
            self._refused.add(hold_id)

    def admitted(self, unasked: Unasked, process: Process) -> None:
        registration, request = unasked.registration, unasked.registration.request
        hold_id, lease_id = request.hold_id, registration.lease_id
        check(hold_id not in self._refused, "let through what the ledger had refused", request)
        hard = [
            (path, line.amount)
            for path, line in zip(self._paths(registration), request.lines, strict=True)
            if line.mode is Mode.HARD
        ]
        check(hold_id not in self.unasked, "admitted twice", request)
        self.unasked[hold_id] = Admitted(request, lease_id, process, self._true_us(), dict(hard))
        if unasked.by is DecidedBy.OPEN:
            check(hold_id in self._unanswered, "let through while the ledger was there", request)
            self._account.counts.by_nobody += 1
            return
        lease = self._account.durable.leases.get(lease_id)
        for path, amount in hard:
            self._owed[lease_id, path] += amount
            leased = lease.amounts.get(path, 0) if lease else 0
            gone = self._lost.get((lease_id, path), Counter())
            owed = self._owed[lease_id, path]
            check(
                owed <= leased + sum(gone[each] for each in KNOWN_TO_NOBODY),
                "given away what nobody holds",
                path,
                (owed, leased),
                request,
            )
        self._account.counts.by_lease += 1

    # What the store does.

    def asked(self, request: HoldRequest, process: Process) -> None:
        """A hold came to the store."""
        attempt = request.attempt
        if attempt is None or not attempt.derived:
            return
        key = (request.tenant, attempt.key)
        if not attempt.retry:
            self._overtaken(key, self._announced[request.hold_id])
            return
        self._retried[key] = self._true_us()
        for first in self.unasked.values():
            tried = first.request.attempt
            if tried is not None and (first.request.tenant, tried.key) == key and not first.told:
                told_first = first.process is not process or first.true_us >= self._announced[request.hold_id]
                check(told_first, "a retry came before its first attempt was told", request, first)

    def lease(self, request: LeaseRequest, outcome: LeaseOutcome | None, now_us: int) -> None:
        """None: it came after a later question."""
        account, counts = self._account, self._account.counts
        account.tick(now_us)
        partition = partition_of(request.tenant)
        self.end(partition, now_us)
        account.lapse(partition, now_us)
        known = account.durable.leases.get(request.lease_id)
        if outcome is None:
            counts.stale += 1
            # Of one that was given back the store remembers the turn for a while, and nothing else.
            check(request.turn <= self._turns.get(request.lease_id, -1), "refused a question", request, known)
            return
        # A lease that ended by the clock is forgotten with its turn: the same question may lease once more then.
        leased_some = any(leased.amount for leased in outcome.lines)
        last = known.turn if known is not None else self._turns.get(request.lease_id)
        if request.turn == last and (known is not None or not leased_some):
            counts.asked_twice += 1
            return
        self._turns[request.lease_id] = request.turn
        check(known is None or request.turn > known.turn, "answered an old question", request, known)
        lease = known or Lease(request.tenant)
        had, lease.amounts = lease.amounts, {}
        lease.ends_us, lease.ttl_us, lease.turn = now_us + request.ttl_us, request.ttl_us, request.turn
        lease.renewed_us = self._true_us()
        for line, leased in zip(request.lines, outcome.lines, strict=True):
            path = account.path(request.tenant, line.key.partition(":")[0], line.window, now_us)
            mine = had.pop(path, 0)
            check(
                leased.amount >= min(mine, line.amount) or line.mode is not Mode.HARD, "leased less than is used", path
            )
            free = max(0, leased.state.limit - leased.state.committed - leased.state.held + leased.amount)
            most = max(line.amount, free * request.percent // 100) if line.mode is Mode.HARD else 0
            check(leased.amount <= most, "leased more than its part", path, leased, line)
            account.held(path, leased.amount - mine)
            if leased.amount > mine:
                account.fits(path, line, now_us, "leased")
            if leased.amount:
                lease.amounts[path], lease.until_us[path] = leased.amount, leased.until_us
        for path, amount in had.items():
            account.held(path, -amount)
            until_us = lease.until_us[path]
            if until_us is not None and not path[2] <= now_us < until_us:
                self._gone(request.lease_id, path, WINDOW, amount)
        self._keep(request.lease_id, lease)
        counts.leases += 1
        units = sum(sum(each.amounts.values()) for each in account.durable.leases.values())
        counts.leased_units_max = max(counts.leased_units_max, units)

    def register(self, registration: Registration, answer: bool, known: bool, now_us: int) -> None:
        """``known``: the store had it."""
        account, counts, request = self._account, self._account.counts, registration.request
        account.tick(now_us)
        self._told(request.hold_id)
        seen = account.durable.holds.get(request.hold_id)
        recorded_us = account.durable.recorded.get(request.hold_id)
        if known:
            check(seen is not None or recorded_us is not None, "known, and from nowhere", request)
            check(answer, "refused what it knows", request)
            return
        late = abs(now_us - registration.at_us) > account.terminal_us // 2
        check(answer is not late, "held too late, or not held in time", registration, now_us)
        attempt = request.attempt
        if attempt is not None:
            self._overtaken((request.tenant, attempt.key), 0 if late else self._announced[request.hold_id])
        if late:
            counts.too_late += 1
            if request.hold_id in self.unasked:
                self.unasked[request.hold_id].late = True
            return
        self.end(partition_of(request.tenant), now_us)
        if seen is not None or recorded_us is not None:
            ended_us, state = (seen.ended_us, seen.state) if seen is not None else (recorded_us or 0, "settled")
            leapt = account.clock_went_back and account.forgotten(ended_us, state)
            check(leapt, "registered twice", registration, seen, now_us)
            counts.held_again += 1
        lease = account.durable.leases.get(registration.lease_id)
        paths = self._paths(registration)
        for line, path in zip(request.lines, paths, strict=True):
            moved = 0
            if lease is not None:
                moved = min(lease.amounts.get(path, 0), line.amount)
                lease.amounts[path] = lease.amounts.get(path, 0) - moved
                if not lease.amounts[path]:
                    del lease.amounts[path]
            full, above = account.held(path, line.amount - moved), line.amount - moved
            if line.mode is Mode.HARD and above:
                above = self._explained(registration, path, above)
                counts.over_limit_units += min(above, max(0, full - line.limit))
        if lease is not None:
            self._keep(registration.lease_id, lease)
        account.keep(request, paths, now_us)
        counts.registered += 1

    def end(self, partition: int, now_us: int) -> None:
        """What the clock takes back."""
        leases = self._account.durable.leases
        for lease_id, lease in list(leases.items()):
            if partition_of(lease.tenant) == partition and now_us >= lease.ends_us:
                del leases[lease_id]
                early = self._true_us() - lease.renewed_us < lease.ttl_us
                for path, amount in lease.amounts.items():
                    self._account.held(path, -amount)
                    self._gone(lease_id, path, CLOCK if early else EXPIRED, amount)

    def failed_over(self, before: Durable) -> None:
        """Who was told of more than there is now goes on as if there were."""
        after = self._account.durable
        for lease_id, lease in before.leases.items():
            for path, amount in lease.amounts.items():
                self._gone(lease_id, path, FAILOVER, amount)
        self._lost_holds |= before.holds.keys() - after.holds.keys()

    def _explained(self, registration: Registration, path: Path, units: int) -> int:
        """What was held on top of a lease was leased once. Returns how much of it somebody else may hold by now."""
        counts = self._account.counts
        if not registration.lease_id:
            counts.above_open_units += units
            return units
        left, hold_id = units, registration.request.hold_id
        if hold_id in self._lost_holds:  # out of its lease already, by a hold that is gone
            left = 0
        if hold_id in self.unasked and self.unasked[hold_id].late and self._account.clock_went_back:
            left = 0  # its node was told that it came too late; by another clock it has not
        lost = self._lost.get((registration.lease_id, path), Counter())
        for cause in (WINDOW, EXPIRED, CLOCK, FAILOVER):
            taken = min(left, lost[cause])
            lost[cause] -= taken
            left -= taken
            units -= taken if cause is WINDOW else 0
        check(left == 0, "held above what was leased", registration, path, left)
        counts.above_lease_units += units
        return units

    def _gone(self, lease_id: str, path: Path, cause: str, units: int) -> None:
        self._lost.setdefault((lease_id, path), Counter())[cause] += units
        if cause is not WINDOW:
            self._account.counts.lost_units += units

    def _told(self, hold_id: str) -> None:
        first = self.unasked.get(hold_id)
        if first is not None and not first.told:
            first.told = True
            for path, amount in first.amounts.items():
                self._owed[first.lease_id, path] -= amount

    def _overtaken(self, key: tuple[str, str], since_us: int) -> None:
        """A first attempt came to the store: was it tried again since?"""
        if self._retried.get(key, 0) >= since_us:
            self.apart.add(key)

    def _keep(self, lease_id: str, lease: Lease) -> None:
        self._account.durable.leases.pop(lease_id, None)
        if lease.amounts:
            self._account.durable.leases[lease_id] = lease

    def _paths(self, registration: Registration) -> list[Path]:
        request, at_us = registration.request, registration.at_us
        names = self._account.names[request.hold_id]
        return [
            self._account.path(request.tenant, name, line.window, at_us)
            for line, name in zip(request.lines, names, strict=True)
        ]

"""Whatever happens, what is written on all accounts sums to zero."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from kong_plugins.domain.double_entry import Adjustment, Charged, Entry, adjustment_entries, charge_entries

names = st.text(max_size=5)
currencies = st.sampled_from(["EUR", "USD", "JPY"])
amounts = st.integers(-(2**50), 2**50)
moved = st.one_of(
    st.builds(Charged, names, st.integers(0, 9), names, names, amounts, currencies),
    st.builds(Adjustment, names, st.integers(0, 9), names, names, amounts, currencies, names, names),
)


def entries(movements: list[Charged | Adjustment]) -> list[Entry]:
    return [
        entry
        for one in movements
        for entry in (charge_entries(one) if isinstance(one, Charged) else adjustment_entries(one))
    ]


@given(st.lists(moved))
def test_any_set_of_movements_sums_to_zero(movements: list[Charged | Adjustment]) -> None:
    """In each currency, and already within each event."""
    sums = Counter[str]()
    for entry in entries(movements):
        sums[entry.currency] += entry.amount
    assert not any(sums.values())


@given(st.lists(moved))
def test_a_tenants_account_is_what_it_owes(movements: list[Charged | Adjustment]) -> None:
    """Charges less adjustments; the other side has its own account, whose name no tenant's can take."""
    owed, booked = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for one in movements:
        owed[one.tenant, one.currency] += one.amount if isinstance(one, Charged) else -one.amount
    for entry in entries(movements):
        if entry.account.startswith("receivable:"):
            booked[entry.account.removeprefix("receivable:"), entry.currency] += entry.amount
    assert +owed == +booked
    assert -owed == -booked


def test_a_credit_is_borne_by_its_account() -> None:
    """5 to the tenant: it owes 5 less, goodwill bears 5."""
    credit = Adjustment("a", 1, "acme", "credit", 5, "EUR", "goodwill", "because")
    assert [(entry.account, entry.amount) for entry in adjustment_entries(credit)] == [
        ("contra:goodwill", 5),
        ("receivable:acme", -5),
    ]

"""What the oracle lets pass, and what not."""

from __future__ import annotations

from kong_plugins.adapters.ledger.audit import OpenHold
from tests.hostile.oracle import unexplained


def hold(hold_id: str, amount: int) -> OpenHold:
    return OpenHold(hold_id, "eve", False, b"{}", (("monthly", amount),))


def test_an_open_hold_is_found_unless_it_was_given_up_for_a_reason() -> None:
    """Given up: emptied, and the log says why. Of the others each is a request that nobody settled."""
    taking, given_up, emptied, long_ago = hold("a1", 5), hold("b2", 0), hold("c3", 0), hold("d4", 5)
    log = "[error] ledger out of reach, refused b2: no answer in time\n[error] …, refused d4: no answer in time\n"
    assert unexplained([taking, given_up, emptied, long_ago], log) == [taking, emptied, long_ago]

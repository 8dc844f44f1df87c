"""Tables from Kong: whatever stands in them, reading never fails and never invents."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kong_plugins.adapters.kong_request import read_gate, read_tap, write_decision
from kong_plugins.domain.demand import Demand, Endpoint
from kong_plugins.domain.events import Admitted, Ending, billing_event
from kong_plugins.domain.holds import Outcome
from kong_plugins.domain.usage import NO_USAGE, Evidence, Usage

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
NAMES = st.sampled_from(
    ["id", "method", "path", "body", "consumer", "headers", "log", "usage", "evidence", "status", "text", "stream"]
)


@given(st.dictionaries(NAMES, VALUES))
def test_reading_takes_what_it_finds(table: dict[str, Any]) -> None:
    """Any type in any field."""
    gate = read_gate({"v": 1, **table})
    assert gate is None or isinstance(gate.body, bytes)
    seen = read_tap({"v": 1, **table})
    assert seen is not None
    admitted, ending = seen
    if admitted is not None:
        billing_event(admitted, ending, NO_USAGE, Evidence.HELD)


def test_what_is_written_is_read_back() -> None:
    """The log phase knows of a request what access knew."""
    admitted = Admitted(
        "h1", "t\udcff", "m", "/kong/x", 10, 20, "abc", "c", "s", None, ("daily",), ("soft",), {"_method": "x"}, 3
    )
    demand = Demand(Endpoint.CHAT, "m", True, False, 10, 20, 1)
    decision = write_decision(admitted, demand, b"{}", {}, {})
    assert "_method" not in decision["log"]  # type: ignore[operator]
    assert read_tap({"v": 1, "log": decision["log"]}) == (admitted, Ending())


def test_the_tap_is_told_how_choices_belong_to_prompts() -> None:
    """Only where there are several prompts: then a running usage is of one of them."""
    admitted = Admitted("h1", "t", "m", "/kong/x", 10, 20)
    one = Demand(Endpoint.COMPLETIONS, "m", True, False, 10, 20, 2)
    several = Demand(Endpoint.COMPLETIONS, "m", True, False, 10, 20, choices=6, prompts=3)
    meters = [write_decision(admitted, demand, b"{}", {}, {})["meter"] for demand in (one, several)]
    assert [meter.get("choices_per_prompt") for meter in meters] == [None, 2]  # type: ignore[attr-defined]


def test_odd_figures_never_lose_a_usage() -> None:
    """A subset larger than its whole is cut; a negative count is no count."""
    usage = {"prompt": 5, "completion": 3, "cached": 9, "reasoning": -1}
    seen = read_tap({"v": 1, "usage": usage})
    assert seen is not None
    assert seen[1].usage == Usage(5, 3, 5, 0)


def test_bodies_keep_their_bytes() -> None:
    """As bytes or as a string with what was no UTF-8 set apart."""
    gate = {"v": 1, "id": "x", "method": "POST", "path": "/"}
    for body in (b"\xff\x00{", "\udcff\x00{"):
        read = read_gate({**gate, "body": body})
        assert read is not None
        assert read.body == b"\xff\x00{"


def test_an_event_is_always_utf8() -> None:
    """Lone surrogates become question marks, everything else stays."""
    event = billing_event(Admitted("h", "t\udcffé", "m", "", 0, 0), Ending(), NO_USAGE, Evidence.HELD, Outcome.EXPIRED)
    assert '"tenant":"t?é"' in event.decode()

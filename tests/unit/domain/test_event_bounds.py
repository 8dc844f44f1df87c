"""What an event says besides its usage, so that the engine's counters can be explained by it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from kong_plugins.domain.events import Admitted, Ending, billing_event
from kong_plugins.domain.holds import Outcome
from kong_plugins.domain.usage import Evidence, Usage

ADMITTED = Admitted("h1", "t", "m", "/kong/x", 100, 64)
DONE = Ending("chat", True, Usage(7, 3), Evidence.EXACT, finish="stop", ended=True, status=200, started_ms=1)


def data(admitted: Admitted, ending: Ending, evidence: Evidence, outcome: Outcome | None = None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(billing_event(admitted, ending, Usage(7, 3), evidence, outcome))["data"]
    return found


def test_choices_are_told_where_there_are_several() -> None:
    """An engine counts a prompt once for each of its choices, a bill once."""
    assert "choices" not in data(ADMITTED, DONE, Evidence.EXACT)
    assert data(replace(ADMITTED, choices=3), DONE, Evidence.EXACT)["choices"] == 3


@pytest.mark.parametrize(
    ("ending", "evidence", "outcome", "bounded"),
    [
        (DONE, Evidence.EXACT, None, False),
        (DONE, Evidence.TOKENIZED, None, True),
        (replace(DONE, status=504), Evidence.EXACT, None, True),
        (Ending(started_ms=1), Evidence.HELD, Outcome.EXPIRED, True),
        (Ending(started_ms=1, status=429), Evidence.EXACT, Outcome.DENIED, False),
    ],
)
def test_bounds_are_told_where_more_may_have_been_generated(
    ending: Ending, evidence: Evidence, outcome: Outcome | None, bounded: bool
) -> None:
    """Not for whole answers with the engine's own figures, and not for what never ran."""
    found = data(ADMITTED, ending, evidence, outcome)
    assert (found.get("prompt_bound"), found.get("completion_bound")) == ((100, 64) if bounded else (None, None))

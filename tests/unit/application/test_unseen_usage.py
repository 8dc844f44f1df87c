"""What is charged of a request whose usage nobody saw is never more than what its hold still holds."""

from __future__ import annotations

from kong_plugins.application.prompts import PromptsUnderWay
from kong_plugins.application.settle import UnknownUsage, UnknownUsagePolicy
from kong_plugins.domain.errors import CountUnavailable
from kong_plugins.domain.events import Admitted, Ending
from kong_plugins.domain.usage import Evidence, Usage

ADMITTED = Admitted("r1", "acme", "m", "node", prompt_bound=400, completion_bound=50)
LEFT = Ending("chat", status=499)


def uncountable() -> int:
    raise CountUnavailable("no tokenizer")


def decided(charge: UnknownUsage, lowered: int | None) -> tuple[Usage, Evidence]:
    prompts = PromptsUnderWay()
    if lowered is not None:
        prompts.lower("r1", lowered)
    prompts.remember("r1", 10, uncountable)
    return UnknownUsagePolicy(charge, prompts, lambda _model, text: len(text)).decide(ADMITTED, LEFT)


def test_a_tightened_hold_is_charged_as_tightened() -> None:
    """At its first bound it would take what others were let in for meanwhile."""
    assert decided(UnknownUsage.HOLD, 100) == (Usage(100, 50), Evidence.HELD)
    assert decided(UnknownUsage.PROMPT, 100) == (Usage(100, 0), Evidence.HELD)


def test_an_untouched_hold_is_charged_at_its_bound() -> None:
    """Also when a count came out above it."""
    assert decided(UnknownUsage.HOLD, None) == (Usage(400, 50), Evidence.HELD)
    assert decided(UnknownUsage.HOLD, 500) == (Usage(400, 50), Evidence.HELD)


def test_a_request_that_has_ended_is_not_tightened_any_more() -> None:
    """Its charge is decided: what it holds has to stand until that is posted."""
    prompts = PromptsUnderWay()
    assert prompts.lower("r1", 100)
    assert prompts.end("r1", 400)[0] == 100
    assert not prompts.lower("r1", 100)
    assert prompts.end("r1", 400)[0] == 400  # what was lowered went with its request

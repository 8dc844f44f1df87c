"""Whatever event we write, its JSON Schema and the CloudEvents SDK accept it; what a schema does not name is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cloudevents.core.bindings.http import from_binary, from_structured, to_binary, to_structured
from cloudevents.core.formats.json import JSONFormat
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, ValidationError

from kong_plugins.adapters.event_schemas import KINDS, schema_text, schemas
from kong_plugins.domain.demand import Endpoint
from kong_plugins.domain.events import (
    AdjustmentKind,
    Admitted,
    Ending,
    adjustment_event,
    billing_event,
    known_usage,
    reversal_event,
    usage_without_budget,
)
from kong_plugins.domain.holds import DecidedBy, Outcome
from kong_plugins.domain.usage import Evidence, Usage

CORPUS = Path(__file__).parents[2] / "data" / "events"

# Also what no UTF-8 ever said: a client's bytes come as lone surrogates.
text = st.text(st.characters(codec=None), max_size=40)
name = text.filter(bool)
maybe = st.none() | text
moment = st.integers(0, 4_102_444_800_000)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    prompt, completion = draw(st.integers(0, 2**32)), draw(st.integers(0, 2**32))
    return Usage(prompt, completion, draw(st.integers(0, prompt)), draw(st.integers(0, completion)))


admitted_requests = st.builds(
    Admitted,
    hold_id=name,
    tenant=name,
    model=text,
    source=name,
    prompt_bound=st.integers(0, 2**32),
    completion_bound=st.integers(0, 2**32),
    credential=maybe,
    consumer=maybe,
    service=maybe,
    route=maybe,
    budgets=st.lists(name, max_size=3).map(tuple),
    over=st.lists(name, max_size=3).map(tuple),
    attributes=st.dictionaries(name, text, max_size=3),
    choices=st.integers(1, 128),
    retriable=st.booleans(),
    by=st.sampled_from(DecidedBy),
)
endings = st.builds(
    Ending,
    endpoint=st.none() | st.sampled_from([each.value for each in Endpoint]),
    stream=st.booleans(),
    usage=st.none() | usages(),
    evidence=st.none() | st.sampled_from(Evidence),
    finish=maybe,
    error=st.booleans(),
    ended=st.booleans(),
    engine_id=maybe,
    status=st.integers(0, 599),
    upstream_status=maybe,
    source=st.none() | st.sampled_from(["service", "exit", "error"]),
    started_ms=moment,
    first_ms=st.none() | moment,
    last_ms=st.none() | moment,
    proxy_ms=st.none() | st.integers(0, 600_000),
)


def check(event: bytes) -> dict[str, Any]:
    """Valid by the schema that it names, and by the official SDK in both of its shapes."""
    document: dict[str, Any] = json.loads(event)
    Draft202012Validator(schemas()[document["dataschema"]]).validate(document)
    read = JSONFormat().read(None, event)
    assert (read.get_id(), read.get_type(), read.get_subject()) == (
        document["id"],
        document["type"],
        document["subject"],
    )
    assert read.get_data() == document["data"]
    for again in (
        from_structured(to_structured(read, JSONFormat()), JSONFormat()),
        from_binary(to_binary(read, JSONFormat()), JSONFormat()),
    ):
        assert again.get_attributes() == read.get_attributes()
        assert again.get_data() == read.get_data()
    return document


@given(admitted_requests, endings, usages(), st.sampled_from(Evidence), st.none() | st.sampled_from(Outcome))
def test_every_event_of_a_request_is_valid(
    admitted: Admitted, ending: Ending, usage: Usage, evidence: Evidence, outcome: Outcome | None
) -> None:
    """And so is its reversal, with the same time and counts."""
    event = check(billing_event(admitted, ending, usage, evidence, outcome))
    reversal = check(reversal_event(admitted, ending, usage, evidence))
    same = ("tenant", "model", "prompt", "completion", "cached", "reasoning", "evidence")
    assert {key: event["data"][key] for key in same} == {key: reversal["data"][key] for key in same}
    assert (event["time"], event["source"]) == (reversal["time"], reversal["source"])
    assert reversal["data"]["reverses"] == event["id"]


@given(
    st.fixed_dictionaries(
        {
            "event_id": name,
            "source": name,
            "time_ms": moment,
            "tenant": name,
            "kind": st.sampled_from(AdjustmentKind),
            "amount": st.integers(-(2**53), 2**53),
            "currency": st.sampled_from(["EUR", "USD", "JPY"]),
            "account": name,
            "reason": text,
            "reference": maybe,
        }
    )
)
def test_every_adjustment_is_valid(adjustment: dict[str, Any]) -> None:
    """Whatever an operator types."""
    check(adjustment_event(**adjustment))


@given(admitted_requests, endings)
def test_bounds_are_told_where_something_was_held(admitted: Admitted, ending: Ending) -> None:
    """Of a request that nothing was held for, a bound of 0 would say that nothing was generated."""
    usage, evidence = known_usage(ending) or (Usage(), Evidence.HELD)
    data = json.loads(billing_event(admitted, ending, usage, evidence))["data"]
    told = "prompt_bound" in data
    assert told == ("completion_bound" in data)
    if told:
        assert (data["prompt_bound"], data["completion_bound"]) != (0, 0)


@given(endings)
def test_without_a_budget_only_what_an_engine_answered_is_booked(ending: Ending) -> None:
    """Never more than it said, and nothing of an answer that a plugin gave."""
    booked = usage_without_budget(ending)
    if ending.upstream_status is None or ending.source == "exit":
        assert booked is None
    else:
        assert booked is not None
        assert booked[0] == (ending.usage or Usage())


def test_a_field_without_a_schema_is_found() -> None:
    """A field that is added to an event and not to its schema fails every test above: data takes nothing else."""
    event = json.loads(billing_event(Admitted("h", "t", "m", "/s", 1, 1), Ending(), Usage(), Evidence.EXACT))
    event["data"]["price"] = 1
    with pytest.raises(ValidationError, match="'price' was unexpected"):
        Draft202012Validator(schemas()[event["dataschema"]]).validate(event)


@pytest.mark.parametrize("kind", KINDS)
def test_the_schemas_are_schemas_and_name_every_field_with_a_meaning(kind: str) -> None:
    """Valid by their own meta-schema; a reader of one needs no other document."""
    schema = json.loads(schema_text(kind))
    Draft202012Validator.check_schema(schema)
    data = schema["properties"]["data"]
    assert set(data["required"]) <= data["properties"].keys()
    assert not data["additionalProperties"]


@pytest.mark.parametrize("line", [line for file in sorted(CORPUS.glob("*.jsonl")) for line in file.open()])
def test_events_of_old_stay_valid(line: str) -> None:
    """What was written once is in somebody's books: a schema of the same version takes it for ever."""
    check(line.encode())


def test_the_corpus_has_every_kind_and_every_field() -> None:
    """Else the test above would promise little."""
    events = [json.loads(line) for file in CORPUS.glob("*.jsonl") for line in file.open()]
    seen: dict[str, set[str]] = {}
    for event in events:
        seen.setdefault(event["dataschema"], set()).update(event["data"])
    assert {urn: set(schema["properties"]["data"]["properties"]) for urn, schema in schemas().items()} == seen

"""token-quota's configuration: what decK users write, and what they read when it cannot work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from scripted_kong import budget

from kong_plugins.adapters.kong_schema import field_map
from kong_plugins.domain.budgets import Dimension
from kong_plugins.domain.windows import FixedWindow, RollingWindow, TokenBucket, Unit
from kong_plugins.token_quota.config import ConfigError, parse_config
from kong_plugins.token_quota.reference import markdown
from kong_plugins.token_quota.schema import SCHEMA

LLAMA = {"model": "llama", "prompt": 1, "completion": 2}
URL = {"ledger_url": "redis://127.0.0.1/0"}


def test_kongs_own_keys_are_left_out_and_defaults_filled_in() -> None:
    """Kong adds keys of its own to a config and leaves out what is unset."""
    config = parse_config({**URL, "__key__": "x", "__seq__": 7, "service_id": "s", "consumer_id": "c", "budgets": []})
    assert config.budgets == ()
    assert (config.patience_us, config.hold_ttl_us, config.clamp_min) == (60_000_000, 3_600_000_000, None)
    assert config.rules.default_max_tokens == 4_096
    assert parse_config({**URL, "context_tokens": 8_192}).rules.default_max_tokens is None


def test_the_ledger_may_come_from_the_environment() -> None:
    """A row without one takes the plugin server's; without either the error names both."""
    assert parse_config({}, {"TOKEN_QUOTA_LEDGER_URL": "redis://l"}).ledger_url == "redis://l"
    with pytest.raises(ConfigError, match="set it, or TOKEN_QUOTA_LEDGER_URL"):
        parse_config({}, {})


def test_models_it_speaks_of_are_known() -> None:
    """Their tokenizers are loaded before a request needs them."""
    rows = [
        budget(models=["gpt-4o", "qwen"]),
        budget(name="money", counts="cost", prices=[LLAMA, {**LLAMA, "model": "*"}]),
    ]
    assert parse_config({**URL, "budgets": rows}).models == ("gpt-4o", "llama", "qwen")
    assert parse_config({**URL, "chat_template": "deepseek_r1", "budgets": []}).models == ("deepseek-r1",)


def test_windows_and_scopes_are_read() -> None:
    """Each kind of window, its length in units, its calendar."""
    budgets = [
        budget("m", window="month", time_zone="Europe/Berlin", anchor_day=31, scope=["route", "model"]),
        budget("r", window="hour", window_kind="rolling", window_count=6),
        budget("b", window="minute", window_kind="bucket"),
    ]
    windows = [rule.budget.window for rule in parse_config({**URL, "budgets": budgets}).budgets]
    assert windows == [FixedWindow(Unit.MONTH, "Europe/Berlin", 31), RollingWindow(21_600), TokenBucket(60)]
    assert parse_config({**URL, "budgets": budgets}).budgets[0].budget.scope == (Dimension.MODEL, Dimension.ROUTE)


PRICE = {"model": "a", "prompt": 1, "completion": 1}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "missing limit": ({"budgets": [{"name": "d"}]}, "config.budgets[1].limit: required field missing"),
    "misspelt": ({"budgets": [{**budget(), "lmit": 1}]}, "config.budgets[1].lmit: unknown field"),
    "negative": ({"budgets": [budget(limit=-1)]}, "config.budgets[1].limit: value should be between 0 and"),
    "bad name": ({"budgets": [budget("a|b")]}, "config.budgets[1].name: invalid value"),
    "twice": ({"budgets": [budget(), budget()]}, "config.budgets[2].name: 'daily' is there twice"),
    "no such zone": ({"budgets": [budget(time_zone="Mars/Base")]}, "config.budgets[1].window: unknown time zone"),
    "zone by path": ({"budgets": [budget(time_zone="../x")]}, "config.budgets[1].window: unknown time zone"),
    "weekday 8": ({"budgets": [budget(window="week", anchor_day=8)]}, "config.budgets[1].window: a week window"),
    "count on fixed": ({"budgets": [budget(window_count=2)]}, "config.budgets[1].window_count: a fixed window"),
    "rolling month": (
        {"budgets": [budget(window="month", window_kind="rolling")]},
        "use window day with window_count 30",
    ),
    "too long": ({"budgets": [budget(window_kind="rolling", window_count=99)]}, "config.budgets[1].window:"),
    "zone on bucket": (
        {"budgets": [budget(window_kind="bucket", time_zone="Europe/Berlin")]},
        "time_zone and anchor_day are for fixed windows",
    ),
    "cost without price": ({"budgets": [budget(counts="cost")]}, "config.budgets[1].prices: no price for *"),
    "cost of another": (
        {"budgets": [budget(counts="cost", prices=[PRICE], models=["b"])]},
        "config.budgets[1].prices: no price for b",
    ),
    "price without cost": ({"budgets": [budget(prices=[PRICE])]}, "config.budgets[1].prices: only for counts cost"),
    "dear cache": (
        {"budgets": [budget(counts="cost", prices=[{**PRICE, "model": "*", "cached": 2}])]},
        "config.budgets[1].prices[1]: a cached prompt token costs at most",
    ),
    "header unnamed": ({"identity": "header"}, "config.identity_header: required when identity is header"),
    "header unused": ({"identity_header": "x"}, "config.identity_header: has no effect"),
    "allowed without context": ({"allow_fields": ["chat_template"]}, "set context_tokens too"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_work_is_said_by_field(case: str) -> None:
    """At the start, not at the first request."""
    config, message = WRONG[case]
    with pytest.raises(ConfigError) as raised:
        parse_config({**URL, **config})
    assert message in str(raised.value)


def test_every_problem_is_named_at_once() -> None:
    """So that a file is mended in one go."""
    with pytest.raises(ConfigError) as raised:
        parse_config({**URL, "identity": "header", "budgets": [budget(window_count=2), budget("x", anchor_day=3)]})
    assert len(raised.value.problems) == 3


def fields(schema: Any, path: str = "") -> list[tuple[str, dict[str, Any]]]:
    found = []
    for name, attributes in field_map(schema):
        found.append((f"{path}{name}", dict(attributes)))
        elements: Any = attributes.get("elements", {})
        if isinstance(elements, dict) and elements.get("type") == "record":
            found += fields(elements["fields"], f"{path}{name}[].")
    return found


# Of Kong 3.9's metaschema: attributes by the types that may have them.
ATTRIBUTES = {
    "type",
    "required",
    "default",
    "description",
    "elements",
    "keys",
    "values",
    "fields",
    "len_min",
    "len_max",
}
ATTRIBUTES_OF = {"between": {"integer"}, "one_of": {"string"}, "match": {"string"}, "referenceable": {"string"}}


def test_kong_takes_the_schema() -> None:
    """Only attributes that Kong's metaschema knows for the type, and descriptions of 10 to 500 bytes."""
    for path, attributes in fields(SCHEMA):
        assert 10 <= len(attributes["description"].encode()) <= 500, path
        for name in attributes.keys() - ATTRIBUTES - {"encrypted"}:
            assert attributes["type"] in ATTRIBUTES_OF[name], (path, name)
        assert not (attributes.get("required") and "default" in attributes), path


def test_the_reference_has_every_field() -> None:
    """One row each, and no cell of a description ends a row."""
    rows = markdown().splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == [path for path, _ in fields(SCHEMA)]
    assert all(row.replace("\\|", "").count("|") == 5 for row in rows)


def test_the_rows_of_the_shipped_deck_file_work() -> None:
    """kong/kong.yaml's own token-quota rows."""
    deck = yaml.safe_load((Path(__file__).parents[3] / "kong" / "kong.yaml").read_text())
    rows = [*deck["services"][0]["plugins"], *(row for consumer in deck["consumers"] for row in consumer["plugins"])]
    configs = [parse_config({**URL, **row["config"]}) for row in rows if row["name"] == "token-quota"]
    assert len(configs) == 3
    assert all(config.budgets for config in configs)

"""decK files: Kong's ids, readable errors, keys from the environment."""

from __future__ import annotations

import pytest

from kong_plugins.adapters.deck_file import DeckError, read_deck, render

RECORDED = """
_format_version: "3.0"
consumers:
- username: tenant_a
  keyauth_credentials: [{key: k-a}]
- username: tenant_b
  custom_id: cust-b-7
  tags: [gold]
  keyauth_credentials: [{key: k-b, tags: [t]}]
  plugins: [{name: probe, config: {tag: b}}]
services:
- name: llm
  url: http://127.0.0.1:17080/v1
  read_timeout: 1500
  routes: [{name: chat, paths: ["/v1", "~/re/\\\\d+"], strip_path: false}]
  plugins: [{name: probe, config: {on: true}}]
plugins: [{name: probe}]
"""


def test_ids_are_those_kong_was_recorded_to_give() -> None:
    """Services, routes, consumers and plugin rows have the same ids in Kong 3.9.1 and here, on every load."""
    config = read_deck(RECORDED, {})
    assert config.services[0].id == "c01215fb-acce-5a3f-8bfa-a00f3f3c9618"
    assert config.routes[0].id == "e4b88d1c-623f-5a40-b298-b23cfabd46de"
    assert [consumer.id[:8] for consumer in config.consumers] == ["2cf5ee6c", "cfca5912"]
    assert {row.id[:8] for row in config.plugins} == {"40fd8cf3", "cf358214", "07b3f432"}
    again = read_deck(RECORDED, {})
    assert again.plugins == config.plugins
    assert not {one.id for one in config.credentials} & {one.id for one in again.credentials}


def test_nesting_gives_the_scope() -> None:
    config = read_deck(RECORDED, {})
    scopes = {(row.service_id is not None, row.consumer_id is not None) for row in config.plugins}
    assert scopes == {(True, False), (False, True), (False, False)}
    assert config.credentials[1].consumer_id == config.consumers[1].id
    assert config.routes[0].service_id == config.services[0].id


def test_rows_can_name_their_scope_and_on_stays_a_key() -> None:
    """Top-level rows refer by name or id; YAML 1.1's `on` is a field's name here, not a boolean."""
    config = read_deck(
        RECORDED.replace(
            "plugins: [{name: probe}]",
            "plugins: [{name: probe}, {name: probe, service: llm, route: {name: chat}, consumer: tenant_a}]",
        ),
        {},
    )
    row = config.plugins[-1]
    assert (row.service_id, row.route_id) == (config.services[0].id, config.routes[0].id)
    assert row.consumer_id == config.consumers[0].id
    assert config.plugins[0].config == {"on": True}


def test_a_url_is_taken_apart_and_can_be_moved() -> None:
    config = read_deck(RECORDED, {})
    service = config.services[0]
    assert (service.protocol, service.host, service.port, service.path) == ("http", "127.0.0.1", 17080, "/v1")
    assert (service.read_timeout, service.connect_timeout, service.retries) == (1500, 60000, 5)
    moved = config.with_upstreams({"llm": "https://engine"}).services[0]
    assert (moved.protocol, moved.host, moved.port, moved.path) == ("https", "engine", 443, None)
    assert (moved.id, moved.read_timeout) == (service.id, 1500)
    with pytest.raises(DeckError, match="no service named 'lm' to move: the file has llm"):
        config.with_upstreams({"lm": "http://x"})


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("paths:", "pathes:", r"services\[1\] \(llm\).routes\[1\] \(chat\).pathes: unknown field"),
        ("read_timeout: 1500", "read_timeout: x", r"services\[1\] \(llm\).read_timeout: expected an integer"),
        ("read_timeout: 1500", "host: h", r"services\[1\] \(llm\).host: give either url or host"),
        ("http://127", "ftp://127", r"services\[1\] \(llm\).url: 'ftp://127.* is no http"),
        (
            "plugins: [{name: probe}]",
            "plugins: [{name: p, service: x}]",
            r"plugins\[1\] \(p\).service: no service named 'x'",
        ),
        ("plugins: [{name: probe}]", "plugins: [{name: probe}, {name: probe}]", r"'probe' is there twice for the same"),
        ('"3.0"', '"4.0"', "_format_version: expected one of: 1.1, 2.1, 3.0"),
        ("key: k-b", "key: k-a", r"keyauth_credentials\[1\].key: another credential has this key"),
        ("~/re/", "~/re(/", r"paths\[2\]: not a valid regex"),
        ("username: tenant_b", "username: tenant_a", r"username: 'tenant_a' is there twice"),
        ("custom_id: cust-b-7", "custom_id: c\n  custom_id: d", "key 'custom_id' is there twice"),
        ("services:", "service:", r"service: unknown field \(this reader knows services"),
    ],
)
def test_an_error_says_where_and_what(before: str, after: str, message: str) -> None:
    assert before in RECORDED
    with pytest.raises(DeckError, match=message):
        read_deck(RECORDED.replace(before, after), {})


def test_all_errors_come_at_once() -> None:
    with pytest.raises(DeckError) as caught:
        read_deck(RECORDED.replace("paths:", "pathes:").replace("key: k-b", "kee: k-b"), {})
    assert len(str(caught.value).splitlines()) >= 3


def test_keys_come_from_the_mapping_the_caller_gives() -> None:
    text = RECORDED.replace("k-a", '${{ env "DECK_KEY_A" }}').replace(
        "read_timeout: 1500", 'retries: ${{ env "DECK_N" | toInt }}'
    )
    config = read_deck(text, {"DECK_KEY_A": "made-up", "DECK_N": "3"})
    assert config.credentials[0].key == "made-up"
    assert config.services[0].retries == 3
    assert "made-up" not in repr(config)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ('env "DECK_GONE"', "line 2: environment variable DECK_GONE is not set: export DECK_GONE=… and start again"),
        ('env "HOME"', "line 2: environment variables in a decK file must start with DECK_, not 'HOME'"),
        ("printenv", "line 2: cannot render"),
        ('env "DECK_X" | toInt', "line 2: DECK_X does not pass 'toInt'"),
    ],
)
def test_a_variable_that_cannot_be_rendered_is_named(expression: str, message: str) -> None:
    with pytest.raises(DeckError, match=message):
        render(f"a: 1\nb: ${{{{ {expression} }}}}\n", {"DECK_X": "no number"})

"""Routes are tried in Kong's order, paths are seen as Kong's router sees them."""

from __future__ import annotations

import pytest

from kong_plugins.adapters.deck_file import read_deck
from kong_plugins.local_gateway.paths import escape, normalise, upstream_path
from kong_plugins.local_gateway.router import Router


def router(*routes: str) -> Router:
    lines = "".join(f"  - {route}\n" for route in routes)
    return Router(read_deck(f'_format_version: "3.0"\nservices:\n- name: s\n  host: h\n  routes:\n{lines}', {}))


def taken(of: Router, path: str, method: str = "GET", host: str = "h", **headers: str) -> str | None:
    match = of.match(method, host, path.encode(), {name.replace("_", "-"): [value] for name, value in headers.items()})
    return match.route.name if match else None


def test_the_longer_prefix_goes_first_whatever_the_files_order() -> None:
    of = router("{name: a, paths: [/v1]}", "{name: b, paths: [/v1/chat]}", "{name: c, paths: [/]}")
    assert [taken(of, path) for path in ("/v1/chat/x", "/v1/x", "/x")] == ["b", "a", "c"]


def test_a_regex_goes_before_a_prefix_and_the_higher_priority_before_the_lower() -> None:
    of = router(
        "{name: prefix, paths: [/v1/long/prefix]}",
        '{name: low, paths: ["~/v1/l.*"]}',
        '{name: high, paths: ["~/v1/long/(?P<what>[a-z]+)"], regex_priority: 5}',
    )
    assert taken(of, "/v1/long/prefix") == "high"
    match = of.match("GET", "h", b"/v1/long/prefix", {})
    assert match is not None
    assert match.named == {"what": "prefix"}
    assert taken(of, "/v1/longer") == "low"


def test_more_conditions_go_first() -> None:
    of = router(
        "{name: path, paths: [/v1/chat/completions]}",
        "{name: method, paths: [/v1], methods: [POST]}",
        '{name: host, paths: [/v1], methods: [POST], hosts: ["*.api.test"]}',
        "{name: header, paths: [/v1], methods: [POST], hosts: [x.api.test], headers: {X-Tier: [gold]}}",
    )
    path = "/v1/chat/completions"
    assert taken(of, path) == "path"
    assert taken(of, path, "POST") == "method"
    assert taken(of, path, "POST", "x.api.test") == "host"
    assert taken(of, path, "POST", "x.api.test", x_tier="Gold") == "header"
    assert taken(of, "/other") is None


@pytest.mark.parametrize(
    ("path", "seen"),
    [
        (b"/v1/x/../chat//comp%6cetions/%2f", b"/v1/chat/completions/%2F"),
        (b"/v1/%2e%2e/a", b"/a"),
        (b"/a/./b/.", b"/a/b/"),
        (b"/..", b"/"),
        (b"/%E2%82%AC", b"/\xe2\x82\xac"),
        (b"/plain", b"/plain"),
    ],
)
def test_a_path_is_normalised_as_recorded(path: bytes, seen: bytes) -> None:
    assert normalise(path) == seen


def test_a_path_goes_upstream_escaped() -> None:
    assert escape(b"/\xe2\x82\xac a%2F") == b"/%E2%82%AC%20a%2F"


@pytest.mark.parametrize(
    ("base", "path", "postfix", "strip", "to"),
    [
        (b"", b"/v1/chat", b"chat", False, b"/v1/chat"),
        (b"/v1", b"/chat", b"", False, b"/v1/chat"),
        (b"/v1/", b"/chat", b"", False, b"/v1/chat"),
        (b"", b"/open/x", b"x", True, b"/x"),
        (b"/base", b"/open/x", b"x", True, b"/base/x"),
        (b"/base/", b"/open", b"", True, b"/base"),
        (b"/base", b"/open/", b"", True, b"/base/"),
    ],
)
def test_the_upstream_path_is_kongs_v0(base: bytes, path: bytes, postfix: bytes, strip: bool, to: bytes) -> None:
    assert upstream_path(base, path, postfix, strip) == to

"""Every rule: a file that breaks it and no other, at its line; the same file without that passes all of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from kong_plugins.adapters.deck_check import Finding, check_text, rules
from kong_plugins.cli.check import plugin_checks

ROOT = Path(__file__).parents[3]

GOOD = """\
_format_version: "3.0"
services:
  - name: engine
    url: http://engine:8000/v1
    read_timeout: 600000
    retries: 0
    routes:
      - {name: v1, paths: [/v1], response_buffering: false}
    plugins:
      - name: key-auth
        config: {key_names: [apikey], key_in_query: false, hide_credentials: true}
      - name: usage-gate
        config: {headers: [x-team]}
      - name: token-quota
        config:
          context_tokens: 8192
          event_headers: [x-team]
          budgets:
            - {name: daily, limit: 100000}
            - name: cost
              limit: 5000000
              counts: cost
              models: [deepseek-r1]
              prices: [{model: deepseek-r1, prompt: 1, completion: 2}]
      - name: usage-tap
      - name: billing-events
consumers:
  - username: a
    keyauth_credentials: [{key: '${{ env "DECK_A" }}'}]
"""

TAP = "      - name: usage-tap\n"
GATE = "      - name: usage-gate\n        config: {headers: [x-team]}\n"
QUOTA = GOOD[GOOD.index("      - name: token-quota") : GOOD.index(TAP)]
AUTH = GOOD[GOOD.index("      - name: key-auth") : GOOD.index(GATE)]
BILLING = "      - name: billing-events\n"
ROUTE = "{name: v1, paths: [/v1], response_buffering: false}"
DAILY = "{name: daily, limit: 100000}"
HEADERS = "          event_headers: [x-team]\n"
USER = "  - username: a\n"

# Rule, what is replaced, by what, and a piece of the line that is named. What a change breaks besides is left out.
BROKEN: list[tuple[str, str, str, str]] = [
    ("not-readable", "services:", "services: [", "- name: engine"),
    ("not-readable", GOOD, "- a list\n", "- a list"),
    ("not-readable", "DECK_A", "HOME", "${{"),
    ("format-version", '"3.0"', '"4.0"', "_format_version"),
    ("unknown-field", "    retries: 0", "    retrys: 0\n    retries: 0", "retrys"),
    ("unknown-field", "consumers:\n", "consumer:\n", "consumer:"),
    ("unknown-field", "context_tokens", "context_token", "context_token"),
    ("unknown-field", DAILY, "{name: daily, limit: 100000, size: 1}", "size"),
    ("field", "read_timeout: 600000", "read_timeout: soon", "read_timeout"),
    ("field", f"      - {ROUTE}\n", f"      - {ROUTE}\n      - {{paths: [/x], response_buffering: false}}\n", "/x"),
    ("reference", USER, "  - username: a\n    plugins: [{name: cors, route: v2}]\n", "v2"),
    ("plugin-config", DAILY, "{name: daily, limit: many}", "many"),
    ("plugin-config", DAILY, "{name: daily, limit: 100000, time_zone: Mars/North}", "Mars"),
    (
        "plugin-config",
        GATE,
        "      - name: usage-gate\n        config: {headers: [x-team], max_body_bytes: 0}\n",
        "max_body",
    ),
    ("price-missing", "models: [deepseek-r1]", "models: [deepseek-r1, other]", "prices:"),
    ("duplicate-name", USER, "  - username: a\n  - username: a\n", "- username: a"),
    (
        "duplicate-name",
        USER,
        "  - {username: b, keyauth_credentials: [{key: '${{ env \"DECK_A\" }}'}]}\n  - username: a\n",
        "    keyauth_credentials",
    ),
    ("duplicate-name", BILLING, BILLING + BILLING, "billing-events"),
    ("unknown-plugin", BILLING, BILLING + "      - name: token-quotas\n", "token-quotas"),
    ("regex-without-tilde", "paths: [/v1]", "paths: [/v1, /v2$]", "/v2$"),
    ("budget-never-admits", DAILY, "{name: daily, limit: 1}", "daily"),
    ("budget-below-one-answer", DAILY, "{name: daily, limit: 8191}", "daily"),
    ("open-hard-budget", HEADERS, HEADERS + "          store_outage: open\n", "store_outage"),
    (
        "lease-below-one-answer",
        HEADERS,
        HEADERS + "          store_outage: lease\n          lease_percent: 8\n",
        "daily",
    ),
    (
        "clamp-never-helps",
        HEADERS,
        HEADERS + "          on_short: clamp\n          clamp_min_tokens: 9000\n",
        "clamp_min_tokens",
    ),
    (
        "budget-names-collide",
        USER,
        USER
        + QUOTA.replace("      - name: token", "    plugins:\n      - name: token").replace(
            DAILY, "{name: daily, limit: 100000, counts: prompt}"
        ),
        "counts: prompt",
    ),
    ("scope-of-one-model", "counts: cost", "counts: cost\n              scope: [model]", "scope"),
    (
        "engine-places-differ",
        USER,
        USER
        + QUOTA.replace("      - name: token", "    plugins:\n      - name: token")
        + "          engine_places: 20\n",
        "engine_places",
    ),
    (
        "engine-places-differ",
        GOOD[GOOD.index(HEADERS) :],
        "          engine_places: 20\n"
        + GOOD[GOOD.index(HEADERS) :]
        + "    plugins: [{name: token-quota, config: {context_tokens: 8192, budgets: []}}]\n",
        "    plugins: [",
    ),
    (
        "limit-above-engine",
        HEADERS,
        HEADERS + "          engine_places: 20\n          max_concurrent_requests: 21\n",
        "max_concurrent_requests",
    ),
    ("secret-in-file", HEADERS, HEADERS + "          ledger_url: redis://:hunter2@ledger/0\n", "ledger_url"),
    ("no-context", "          context_tokens: 8192\n", "", "token-quota"),
    ("quota-without-gate", GATE, "", "token-quota"),
    ("quota-without-tap", TAP, "", "token-quota"),
    ("tap-without-quota", QUOTA, "", "usage-tap"),
    ("gate-without-tap", QUOTA + TAP, "", "usage-gate"),
    ("billing-without-tap", TAP, "", "billing-events"),
    ("quota-without-billing", BILLING, "", "token-quota"),
    ("auth-missing", AUTH, "", "token-quota"),
    ("auth-optional", "key_in_query: false", "key_in_query: false, anonymous: a", "anonymous"),
    ("auth-after-us", GATE, GATE + "        ordering: {before: {access: [key-auth]}}\n", "ordering"),
    ("auth-after-us", AUTH, AUTH + "        ordering: {after: {access: [usage-gate]}}\n", "ordering"),
    ("key-in-query", "key_in_query: false, ", "", "key-auth"),
    (
        "key-reaches-engine",
        "[apikey], key_in_query: false, hide_credentials: true",
        "[my-key], key_in_query: false",
        "key-auth",
    ),
    (
        "identity-header-not-handed-on",
        HEADERS,
        HEADERS + "          identity: header\n          identity_header: X-Tenant\n",
        "identity_header",
    ),
    ("event-header-not-handed-on", HEADERS, "          event_headers: [x-team, X-Cost]\n", "event_headers"),
    ("event-header-not-handed-on", HEADERS, HEADERS + "          event_claims: [team]\n", "event_claims"),
    ("response-phase", BILLING, BILLING + "      - name: response-transformer\n", "response-transformer"),
    ("rate-limit-headers", BILLING, BILLING + "      - {name: rate-limiting, config: {minute: 5}}\n", "rate-limiting"),
    ("response-buffering", ", response_buffering: false", "", "name: v1"),
    ("retries", "    retries: 0\n", "    retries: 3\n", "retries"),
    ("retries", "    retries: 0\n", "", "name: engine"),
    ("hold-shorter-than-answer", HEADERS, HEADERS + "          hold_ttl_s: 599\n", "hold_ttl_s"),
]

# Near to breaking a rule, and right.
FINE: list[tuple[str, str, str]] = [
    ("budget-never-admits", DAILY, "{name: daily, limit: 0, mode: shadow}"),
    ("budget-below-one-answer", DAILY, "{name: daily, limit: 8192}"),
    ("budget-below-one-answer", DAILY, "{name: daily, limit: 500}\n          on_short: clamp"),
    ("budget-below-one-answer", "context_tokens: 8192", "context_tokens: 900000\n          default_max_tokens: 4096"),
    ("lease-below-one-answer", HEADERS, HEADERS + "          store_outage: lease\n"),
    ("lease-below-one-answer", HEADERS, HEADERS + "          lease_percent: 1\n"),
    ("auth-missing", AUTH, "      - name: jwt\n"),
    ("auth-missing", "key-auth\n", "basic-auth\n"),
    ("tap-without-quota", QUOTA + TAP, "      - {name: usage-tap, config: {guard: false}}\n"),
    (
        "rate-limit-headers",
        BILLING,
        BILLING + "      - {name: rate-limiting, config: {minute: 5, hide_client_headers: true}}\n",
    ),
    ("key-reaches-engine", ", hide_credentials: true", ""),
    ("response-phase", BILLING, BILLING + "      - {name: response-transformer, enabled: false}\n"),
    ("unknown-field", "    retries: 0", "    retries: 0\n    tls_verify: true\n    tags: [x]"),
    ("unknown-field", "consumers:\n", "upstreams: [{name: u, targets: [{target: 'x:1'}]}]\nconsumers:\n"),
    ("regex-without-tilde", "paths: [/v1]", "paths: [/v1, '~/v2$']"),
    ("secret-in-file", HEADERS, HEADERS + "          ledger_url: '{vault://env/ledger}'\n"),
    ("format-version", '"3.0"', '"1.1"'),
    ("format-version", '"3.0"', '"2.1"'),
    ("duplicate-name", USER, "  - username: b\n  - username: a\n"),
    ("hold-shorter-than-answer", HEADERS, HEADERS + "          hold_ttl_s: 600\n"),
    (
        "limit-above-engine",
        HEADERS,
        HEADERS + "          engine_places: 20\n          max_concurrent_requests: 20\n",
    ),
    (
        "engine-places-differ",
        GOOD[GOOD.index(HEADERS) :],
        "          engine_places: 20\n"
        + GOOD[GOOD.index(HEADERS) :]
        + "    plugins: [{name: token-quota, config: {engine_places: 20, engine_weight: 2, budgets: []}}]\n",
    ),
]


def check(text: str, env: Mapping[str, str] | None = None) -> list[Finding]:
    return check_text(text, "kong.yaml", plugin_checks(), env or {})


def changed(before: str, after: str) -> str:
    assert before in GOOD
    return GOOD.replace(before, after, 1)


def test_a_right_file_passes_every_rule() -> None:
    """The one that the others are made from, and the one that is shipped."""
    assert check(GOOD) == []
    assert check((ROOT / "kong" / "kong.yaml").read_text()) == []


@pytest.mark.parametrize(("rule", "before", "after", "line"), BROKEN)
def test_a_broken_rule_is_named_at_its_line(rule: str, before: str, after: str, line: str) -> None:
    """One finding of it, where it is to be mended."""
    text = changed(before, after)
    found = [each for each in check(text) if each.rule == rule]
    assert len(found) == 1, check(text)
    assert line in text.splitlines()[found[0].line - 1]


@pytest.mark.parametrize(("rule", "before", "after"), FINE)
def test_what_is_near_to_a_rule_and_right_passes(rule: str, before: str, after: str) -> None:
    """No false alarm."""
    assert [each for each in check(changed(before, after)) if each.rule == rule] == []


def test_every_rule_has_a_file_that_breaks_it() -> None:
    """And a reason that `--rules` prints."""
    assert {rule for rule, *_ in BROKEN} == set(rules())
    assert all(rules().values())


def test_a_consumers_row_is_checked_where_it_applies() -> None:
    """It replaces the service's for that consumer, on every route."""
    own = "    plugins: [{name: usage-tap, config: {guard: false}, enabled: true}]\n"
    assert check(changed(USER, USER + own)) == []
    off = changed(TAP, "      - {name: usage-tap, enabled: false}\n")
    assert "quota-without-tap" in {each.rule for each in check(off)}
    mended = off.replace(USER, USER + "    plugins: [{name: usage-tap}]\n")
    (found,) = (each for each in check(mended) if each.rule == "quota-without-tap")
    assert "consumer" not in found.message


def test_secrets_are_neither_needed_nor_told() -> None:
    """A variable that is not set stands for itself; one that is set is used and never printed."""
    text = changed(USER, "  - {username: b, keyauth_credentials: [{key: '${{ env \"DECK_B\" }}'}]}\n  - username: a\n")
    assert check(text) == []
    found = check(text, {"DECK_A": "hunter2", "DECK_B": "hunter2"})
    assert [each.rule for each in found] == ["duplicate-name"]
    assert "hunter2" not in found[0].message


def test_a_number_from_the_environment_is_a_number() -> None:
    """Whether it is set or not."""
    text = changed("100000", '${{ env "DECK_LIMIT" | toInt }}')
    assert {each.rule for each in check(text)} <= {"budget-never-admits", "budget-below-one-answer"}
    assert check(text, {"DECK_LIMIT": "90000"}) == []

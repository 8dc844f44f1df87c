"""Rules over what a request meets on a route: our plugins belong together, and others can undo what they do."""

from __future__ import annotations

from collections.abc import Iterator

from kong_plugins.adapters.deck_check.findings import Problem, Severity, way_rule
from kong_plugins.adapters.deck_check.kong_facts import AUTHENTICATION, HOLDS_ANSWERS, RATE_LIMITS
from kong_plugins.adapters.deck_check.ways import OURS, Way

NEEDS_CONSUMER = {"consumer", "credential"}


@way_rule("quota-without-gate")
def _(way: Way) -> Iterator[Problem]:
    """token-quota reads what usage-gate hands over: without it every request is a 503."""
    if way.metered and "usage-gate" not in way.rows:
        yield Problem(way.anchor, f"{way.described}: token-quota without usage-gate answers 503: add usage-gate")


@way_rule("quota-without-tap")
def _(way: Way) -> Iterator[Problem]:
    """Nothing settles without usage-tap, so nothing is generated: every request is a 404."""
    if way.metered and "usage-tap" not in way.rows:
        yield Problem(way.anchor, f"{way.described}: token-quota without usage-tap answers 404: add usage-tap")


@way_rule("tap-without-quota")
def _(way: Way) -> Iterator[Problem]:
    """usage-tap's guard refuses what nobody decided; with guard: false it only bills."""
    if "usage-tap" in way.rows and not way.metered and way.config("usage-tap").get("guard", True):
        yield Problem(
            way.rows["usage-tap"].path,
            f"{way.described}: usage-tap without token-quota answers 503: add token-quota, or set guard: false to bill"
            " without budgets",
        )


@way_rule("gate-without-tap")
def _(way: Way) -> Iterator[Problem]:
    """usage-gate points requests at nothing until usage-tap lets them through."""
    if "usage-gate" in way.rows and "usage-tap" not in way.rows and not way.metered:
        yield Problem(way.rows["usage-gate"].path, f"{way.described}: usage-gate without usage-tap answers 404")


@way_rule("billing-without-tap", Severity.WARNING)
def _(way: Way) -> Iterator[Problem]:
    """billing-events knows usage from usage-tap alone."""
    if "billing-events" in way.rows and "usage-tap" not in way.rows:
        yield Problem(
            way.rows["billing-events"].path, f"{way.described}: billing-events without usage-tap sees no usage"
        )


@way_rule("quota-without-billing", Severity.WARNING)
def _(way: Way) -> Iterator[Problem]:
    """billing-events settles what a token-quota that died cannot."""
    if way.metered and "billing-events" not in way.rows:
        yield Problem(
            way.anchor,
            f"{way.described}: without billing-events a request whose token-quota process dies stays held until"
            " hold_ttl_s: add billing-events",
        )


@way_rule("auth-missing")
def _(way: Way) -> Iterator[Problem]:
    """A tenant by consumer or credential needs a plugin that authenticates."""
    by_consumer = way.config("token-quota").get("identity", "consumer") in NEEDS_CONSUMER
    if way.metered and by_consumer and not AUTHENTICATION.keys() & way.rows.keys():
        yield Problem(
            way.anchor, f"{way.described}: nothing names the consumer, so every request is a 401: add key-auth"
        )


@way_rule("auth-optional", Severity.WARNING)
def _(way: Way) -> Iterator[Problem]:
    """A request without a key becomes the anonymous consumer: one tenant for everybody."""
    for name in AUTHENTICATION.keys() & way.rows.keys():
        if way.metered and way.config(name).get("anonymous"):
            yield Problem(
                (*way.rows[name].path, "config", "anonymous"),
                f"{way.described}: requests without a key share the anonymous consumer's budgets",
            )


@way_rule("auth-after-us")
def _(way: Way) -> Iterator[Problem]:
    """An ordering that lets our plugins decide before anybody is authenticated."""
    for name, row in way.rows.items():
        ordering = row.data.get("ordering")
        if not isinstance(ordering, dict) or not way.metered:
            continue
        earlier, later = _ordered(ordering, "before"), _ordered(ordering, "after")
        first_ours = name in OURS and earlier & AUTHENTICATION.keys()
        last_auth = name in AUTHENTICATION and later & set(OURS)
        if first_ours or last_auth:
            yield Problem(
                (*row.path, "ordering"), f"{way.described}: {name} is ordered so that budgets come before keys"
            )


@way_rule("key-in-query", Severity.WARNING)
def _(way: Way) -> Iterator[Problem]:
    """A key in a URL stays in access logs, hidden from the engine or not."""
    if way.metered and "key-auth" in way.rows and way.config("key-auth").get("key_in_query", True):
        yield Problem(
            way.rows["key-auth"].path, f"{way.described}: keys in URLs end up in logs: set key_in_query: false"
        )


@way_rule("key-reaches-engine")
def _(way: Way) -> Iterator[Problem]:
    """A header that carries keys goes to the engine unless key-auth hides it or usage-gate strips it."""
    auth, gate = way.config("key-auth"), way.config("usage-gate")
    if not way.ours or "key-auth" not in way.rows or auth.get("hide_credentials"):
        return
    stripped = {str(name).lower() for name in gate.get("strip_credentials") or ()}
    for name in auth.get("key_names") or ["apikey"]:
        if str(name).lower() not in stripped:
            yield Problem(
                way.rows["key-auth"].path,
                f"{way.described}: the engine gets the client's {name}: set hide_credentials: true",
            )


@way_rule("identity-header-not-handed-on")
def _(way: Way) -> Iterator[Problem]:
    """usage-gate hands on only the headers that it names."""
    quota = way.config("token-quota")
    header = str(quota.get("identity_header") or "").lower()
    if quota.get("identity") == "header" and header and header not in _handed_on(way):
        yield Problem(
            (*way.rows["token-quota"].path, "config", "identity_header"),
            f"{way.described}: no request has an identity: name {header} in usage-gate's headers",
        )


@way_rule("event-header-not-handed-on", Severity.WARNING)
def _(way: Way) -> Iterator[Problem]:
    """An attribute that usage-gate does not hand on is missing in every event."""
    for plugin in ("token-quota", "billing-events"):
        for field, handed_on in (("event_headers", _handed_on(way)), ("event_claims", _claims(way))):
            for name in way.config(plugin).get(field) or ():
                known = str(name).lower() if field == "event_headers" else str(name)
                if known not in handed_on and "usage-gate" in way.rows:
                    yield Problem(
                        (*way.rows[plugin].path, "config", field),
                        f"{way.described}: no event has {name}: name it in usage-gate's {field.removeprefix('event_')}",
                    )


@way_rule("response-phase")
def _(way: Way) -> Iterator[Problem]:
    """A plugin that waits for a whole answer holds a stream back to its end."""
    for name in HOLDS_ANSWERS.keys() & way.rows.keys():
        if way.ours:
            yield Problem(
                way.rows[name].path, f"{way.described}: {name} {HOLDS_ANSWERS[name]}: streams do not pass through it"
            )


@way_rule("rate-limit-headers", Severity.WARNING)
def _(way: Way) -> Iterator[Problem]:
    """Kong's rate limits write RateLimit headers too, of requests and not of tokens."""
    for name in RATE_LIMITS & way.rows.keys():
        if way.metered and not way.config(name).get("hide_client_headers"):
            yield Problem(
                way.rows[name].path,
                f"{way.described}: {name} and token-quota both send RateLimit headers: set hide_client_headers: true",
            )


@way_rule("response-buffering", Severity.WARNING)
def _(way: Way) -> Iterator[Problem]:
    """With Kong's default the last chunk of a burst waits for the next."""
    if way.ours and way.route.data.get("response_buffering") is not False:
        yield Problem(way.route.path, f"{way.route.described}: set response_buffering: false, or streams stutter")


@way_rule("retries")
def _(way: Way) -> Iterator[Problem]:
    """A request that Kong sends again is generated again, and billed once."""
    if way.ours and way.service is not None and way.service.data.get("retries", 5) != 0:
        place = "retries" if "retries" in way.service.data else "name"
        yield Problem(
            (*way.service.path, place),
            f"{way.service.described}: set retries: 0 (Kong's default is 5): a retried request is generated twice",
        )


@way_rule("hold-shorter-than-answer", Severity.WARNING)
def _(way: Way) -> Iterator[Problem]:
    """A hold that ends while its answer still streams frees budget that is in use."""
    hold_s = way.config("token-quota").get("hold_ttl_s")
    silence_ms = way.service.data.get("read_timeout", 60_000) if way.service else 0
    if isinstance(hold_s, int) and isinstance(silence_ms, int) and way.metered and hold_s * 1000 < silence_ms:
        yield Problem(
            (*way.rows["token-quota"].path, "config", "hold_ttl_s"),
            f"{way.described}: hold_ttl_s {hold_s} is less than the service's read_timeout of {silence_ms / 1000:g} s",
        )


def _handed_on(way: Way) -> set[str]:
    return {str(name).lower() for name in way.config("usage-gate").get("headers") or ()}


def _claims(way: Way) -> set[str]:
    return {str(name) for name in way.config("usage-gate").get("claims") or ()}


def _ordered(ordering: dict[str, object], when: str) -> set[str]:
    phases = ordering.get(when)
    names = phases.get("access") if isinstance(phases, dict) else None
    return {str(name) for name in names} if isinstance(names, list) else set()

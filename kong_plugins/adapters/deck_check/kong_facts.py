"""What Kong Gateway 3.9's own plugins do, as far as rules speak of it. Read off its source."""

from __future__ import annotations

from collections.abc import Mapping

# Priority of the access phase of those that answer "who is it": all run before usage-gate (906).
AUTHENTICATION = {
    "session": 1900,
    "jwt": 1450,
    "oauth2": 1400,
    "key-auth": 1250,
    "ldap-auth": 1200,
    "basic-auth": 1100,
    "hmac-auth": 1030,
}

# Hold a whole answer back, in a body_filter that waits for its end or by asking nginx to buffer.
HOLDS_ANSWERS = {
    "ai-proxy": "parses and rewrites answers",
    "ai-response-transformer": "sends each answer to another model",
    "aws-lambda": "answers in the engine's place",
    "azure-functions": "answers in the engine's place",
    "response-transformer": "parses whole JSON bodies",
}

# Their own RateLimit-… and Retry-After headers are written over ours, or ours over theirs.
RATE_LIMITS = {"rate-limiting", "response-ratelimiting"}

BUNDLED = {
    *AUTHENTICATION,
    *HOLDS_ANSWERS,
    *RATE_LIMITS,
    *("acl", "acme", "ai-prompt-decorator", "ai-prompt-guard", "ai-prompt-template", "ai-request-transformer"),
    *("bot-detection", "correlation-id", "cors", "datadog", "file-log", "grpc-gateway", "grpc-web", "http-log"),
    *("ip-restriction", "loggly", "opentelemetry", "post-function", "pre-function", "prometheus", "proxy-cache"),
    *(
        "redirect",
        "standard-webhooks",
        "request-size-limiting",
        "request-termination",
        "request-transformer",
        "statsd",
        "syslog",
        "tcp-log",
    ),
    *("udp-log", "zipkin"),
}

# Of decK's file, at the top; those of Kong's commercial editions included.
TOP_LEVEL = {
    *("_format_version", "_transform", "_info", "_comment", "_ignore", "_workspace", "_konnect", "_plugin_configs"),
    *("services", "routes", "consumers", "consumer_groups", "plugins", "upstreams", "targets", "certificates"),
    *("ca_certificates", "snis", "vaults", "keys", "key_sets", "filter_chains", "licenses", "partials"),
    *("keyauth_credentials", "basicauth_credentials", "hmacauth_credentials", "jwt_secrets", "acls"),
    *("oauth2_credentials", "mtls_auth_credentials", "service_packages", "rbac_roles", "degraphql_routes"),
}

_Attributes = Mapping[str, object]
_PROTOCOLS = ("http", "https", "grpc", "grpcs", "tcp", "tls", "tls_passthrough", "udp", "ws", "wss")


def _any(*names: str) -> dict[str, _Attributes]:
    return {name: {"type": "any"} for name in names}


# Fields of entities beyond those that the local gateway acts on.
MORE_FIELDS: Mapping[str, Mapping[str, _Attributes]] = {
    "services": {
        **_any("client_certificate", "tls_verify", "tls_verify_depth", "tls_sans", "ca_certificates", "filter_chains"),
        "protocol": {"type": "string", "one_of": list(_PROTOCOLS)},
    },
    "routes": {
        **_any("snis", "sources", "destinations", "expression", "priority", "filter_chains"),
        "path_handling": {"type": "string", "one_of": ["v0", "v1"]},
        "protocols": {"type": "array", "elements": {"type": "string", "one_of": list(_PROTOCOLS)}},
    },
    "consumers": {
        **_any("basicauth_credentials", "hmacauth_credentials", "jwt_secrets", "acls", "oauth2_credentials"),
        **_any("mtls_auth_credentials", "groups"),
    },
    "plugins": _any("ordering", "run_on", "consumer_group", "_config", "condition", "partials"),
    "keyauth_credentials": {"ttl": {"type": "integer"}},
}

"""What Kong answers by itself, and how a plugin ends a request."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

MESSAGES: Mapping[int, str] = {
    400: "Bad request",
    404: "Not found",
    405: "Method not allowed",
    408: "Request timeout",
    411: "Length required",
    412: "Precondition failed",
    413: "Payload too large",
    414: "URI too long",
    417: "Expectation failed",
    494: "Request header or cookie too large",
    500: "An unexpected error occurred",
    502: "An invalid response was received from the upstream server",
    503: "The upstream server is currently unavailable",
    504: "The upstream server is timing out",
}

_JSON = "application/json; charset=utf-8"
_TEMPLATES: Mapping[str, str] = {
    _JSON: '{\n  "message":"%s",\n  "request_id":"%s"\n}',
    "text/plain; charset=utf-8": "%s\nrequest_id: %s\n",
    "application/xml; charset=utf-8": (
        '<?xml version="1.0" encoding="UTF-8"?>\n<error>\n  <message>%s</message>\n'
        "  <requestid>%s</requestid>\n</error>\n"
    ),
    "text/html; charset=utf-8": (
        '<!doctype html>\n<html>\n  <head>\n    <meta charset="utf-8">\n    <title>Error</title>\n  </head>\n'
        "  <body>\n    <h1>Error</h1>\n    <p>%s.</p>\n    <p>request_id: %s</p>\n  </body>\n</html>\n"
    ),
}
_ACCEPTED = re.compile(r"([a-z0-9*][\w.+*-]*/[\w.+*-]+)(?:.*?;\s*q=([01](?:\.\d{0,3})?))?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Exit:
    """The request ends here with this answer. ``source`` as ``kong.response.get_source()`` will say it;
    ``nginx``: a page of nginx's own, whose length stands in nginx's place among the headers."""

    status: int
    body: bytes | None = None
    headers: tuple[tuple[bytes, bytes], ...] = field(default=())
    source: str = "exit"
    nginx: bool = False


_REASONS = {
    200: "OK",
    201: "Created",
    202: "Accepted",
    204: "No Content",
    206: "Partial Content",
    301: "Moved Permanently",
    302: "Moved Temporarily",
    303: "See Other",
    304: "Not Modified",
    307: "Temporary Redirect",
    308: "Permanent Redirect",
    400: "Bad Request",
    401: "Unauthorized",
    402: "Payment Required",
    403: "Forbidden",
    404: "Not Found",
    405: "Not Allowed",
    406: "Not Acceptable",
    408: "Request Time-out",
    409: "Conflict",
    410: "Gone",
    411: "Length Required",
    412: "Precondition Failed",
    413: "Request Entity Too Large",
    414: "Request-URI Too Large",
    415: "Unsupported Media Type",
    416: "Requested Range Not Satisfiable",
    421: "Misdirected Request",
    429: "Too Many Requests",
    500: "Internal Server Error",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Temporarily Unavailable",
    504: "Gateway Time-out",
    505: "HTTP Version Not Supported",
    507: "Insufficient Storage",
}


def error_exit(
    status: int,
    request_id: str,
    accept: str | None,
    message: str | None = None,
    headers: tuple[tuple[bytes, bytes], ...] = (),
) -> Exit:
    """Kong's own error in the form the client accepts (`kong.response.error`)."""
    mime = _mime(accept)
    said = message if message is not None else MESSAGES.get(status, f"The upstream server responded with {status}")
    template = _TEMPLATES[mime]
    body = template % (said, request_id)
    return Exit(status, body.encode("utf-8", "surrogateescape"), ((b"Content-Type", mime.encode()), *headers))


def nginx_page(status: int) -> bytes:
    """nginx's own page for a status without a body."""
    name = f"{status} {reason(status)}"
    head, body = f"<head><title>{name}</title></head>", f"<center><h1>{name}</h1></center>"
    return "".join(f"{line}\r\n" for line in ("<html>", head, "<body>", body, "</body>", "</html>")).encode()


def reason(status: int) -> str:
    """nginx's reason phrase of a status line; it has none for what is not here."""
    return _REASONS.get(status, "")


def _mime(accept: str | None) -> str:
    chosen, best = _JSON, 0.0
    for part in (accept or "").split(","):
        found = _ACCEPTED.search(part.strip())
        if found is None:
            continue
        quality = float(found[2]) if found[2] else 1.0
        if quality > best:
            best = quality
            wanted = found[1].lower()
            chosen = next((mime for mime in _TEMPLATES if mime.startswith(f"{wanted};")), chosen)
    return chosen

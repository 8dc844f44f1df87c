"""A sink's name: that of its group in the outbox, hence of its position. The same URL has the same name tomorrow."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlencode, urlsplit

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,199}")
RESERVED = frozenset({"released"})


def name_and_url(url: str) -> tuple[str, str]:
    """The sink's name, and its URL without ``name=``. Without that option the name is scheme, host and path: what says
    where events go, without user, password and settings.

    Raises:
        ValueError: not a URL, or not a name.
    """
    parts = urlsplit(url)
    if not parts.scheme:
        raise ValueError(f"a sink is a URL, duckdb:///path/books.duckdb say, not {url!r}")
    options = parse_qsl(parts.query, keep_blank_values=True)
    given = [value for option, value in options if option == "name"]
    name = given[-1] if given else f"{parts.scheme}:{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")
    if not _NAME.fullmatch(name) or name in RESERVED:
        raise ValueError(
            f"{name!r} does not do as a sink's name: give it one of letters, digits and . _ : / @ + - with ?name=…"
        )
    rest = urlencode([(option, value) for option, value in options if option != "name"])
    return name, f"{parts.scheme}://{parts.netloc}{parts.path}{'?' + rest if rest else ''}" if given else url

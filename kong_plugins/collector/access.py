"""Who may post to the collector."""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

TOKEN_ENV = "TOKEN_QUOTA_COLLECTOR_TOKEN"  # noqa: S105 - its name
TOKEN_HEADER = "x-collector-token"  # noqa: S105 - for an http-log whose Authorization header is taken
TOKEN_CHARS_MIN = 16


@dataclass(frozen=True, slots=True)
class Tokens:
    """Any of these opens the door: while a token is replaced there are two. None: nobody may post."""

    accepted: tuple[bytes, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.accepted)

    def allow(self, headers: Mapping[str, str]) -> bool:
        """By ``Authorization: Bearer``, the password of ``Basic`` (http-log sends that for a URL with user info) or
        ``X-Collector-Token``. Takes as long for a wrong token as for a right one."""
        given = _given(headers)
        if given is None:
            return False
        right = [hmac.compare_digest(given, token) for token in self.accepted]  # all of them, whichever it is
        return any(right)


def read_tokens(file: Path | None, environment: Mapping[str, str]) -> Tokens:
    """A token on each line of ``file``, or the one of the environment.

    Raises:
        ValueError: a token is too short to be one, or the file cannot be read or is empty.
    """
    if file is not None:
        try:
            lines = file.read_text().split()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"cannot read the token file {file}: {error}") from error
        if not lines:
            raise ValueError(f"there is no token in {file}: write one into it, `openssl rand -hex 32` makes one")
    else:
        lines = [token] if (token := environment.get(TOKEN_ENV, "").strip()) else []
    if any(len(token) < TOKEN_CHARS_MIN for token in lines):
        raise ValueError(
            f"a token has at least {TOKEN_CHARS_MIN} characters, or it is guessed: `openssl rand -hex 32` makes one"
        )
    return Tokens(tuple(token.encode() for token in lines))


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _given(headers: Mapping[str, str]) -> bytes | None:
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).partition(b":")[2]
        except binascii.Error:
            return None
    token = headers.get(TOKEN_HEADER)
    return token.strip().encode() if token is not None else None

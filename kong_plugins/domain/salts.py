"""Salts: whose cached prefixes a request may find in the engine, and leave there.

vLLM mixes a request's salt into the hash of its first block, and every block's hash into that of the next. So two
requests share either all of their common prefix or nothing of it: a public beginning cannot be shared and the rest kept
apart. Who shares a salt can learn, by how long a first token takes, whether another of them sent the same beginning.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b, sha256

KEY_CHARS_MIN = 16  # of a secret; anything shorter can be guessed
_WITH_ID = re.compile(r"([a-z0-9][a-z0-9-]{0,15}):(.*)", re.DOTALL)


class Sharing(StrEnum):
    """Who shares a salt. The values set their salts apart: no tenant can take a name that gives a group's."""

    TENANT = "token-quota"
    GROUP = "token-quota:grp"
    PROMPT = "token-quota:sys"  # everybody whose request begins with this public prompt


@dataclass(frozen=True, slots=True)
class SaltKey:
    """What salts are made with. ``key_id`` says in the open which one made a salt; it may be empty, as both may."""

    key_id: str = ""
    secret: str = ""

    def __repr__(self) -> str:
        return f"SaltKey({self.key_id!r})"


NO_KEY = SaltKey()


def salt_keys(text: str) -> tuple[SaltKey, ...]:
    """Keys as configured: ``ID:SECRET``, one or more with spaces between; the first makes salts, the others made those
    of before. A single one may have no id. An id is 1 to 16 of ``a-z 0-9 -``.

    Raises:
        ValueError: what is wrong, without the secret.
    """
    found = [_WITH_ID.fullmatch(part) for part in text.split(" ") if part]
    if not any(found):
        if 0 < len(text) < KEY_CHARS_MIN:
            raise ValueError(f"a key has at least {KEY_CHARS_MIN} characters, such as `openssl rand -hex 32` makes")
        return (SaltKey("", text),) if text else ()
    keys = [SaltKey(*match.groups()) for match in found if match]
    if len(keys) < len(found):
        raise ValueError("of several keys each is ID:SECRET")
    if len({key.key_id for key in keys}) < len(keys):
        raise ValueError("each key has an id of its own: a new key under an old id would look like the old one")
    if any(len(key.secret) < KEY_CHARS_MIN for key in keys):
        raise ValueError(f"a key has at least {KEY_CHARS_MIN} characters behind its id")
    return tuple(keys)


def salt_of(sharing: Sharing, name: str, key: SaltKey = NO_KEY) -> str:
    """32 hexadecimal digits, behind the key's id and a dot where it has one. ``name`` is the tenant, the group or the
    digest of the prompt.

    Without a key anybody can compute it who knows the name: enough where only the gateway reaches the engine, for it
    drops a client's own salt. Another key is another salt for everybody: caches are cold once, nothing else happens.
    """
    secret = key.secret.encode("utf-8", "surrogatepass")
    if len(secret) > blake2b.MAX_KEY_SIZE:
        secret = blake2b(secret).digest()
    data = name.encode("utf-8", "surrogatepass")
    digest = blake2b(data, digest_size=16, key=secret, person=sharing.value.encode()).hexdigest()
    return f"{key.key_id}.{digest}" if key.key_id else digest


def prompt_digest(text: str) -> str:
    """How a public prompt is named in a configuration: SHA-256 of its text in UTF-8, as sha256sum prints it."""
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

"""Salts: whose cached prefixes a request may find in the engine, and leave there.

vLLM mixes a request's salt into the hash of its first block, and every block's hash into that of the next. So two
requests share either all of their common prefix or nothing of it: a public beginning cannot be shared and the rest kept
apart. Who shares a salt can learn, by how long a first token takes, whether another of them sent the same beginning.
"""

from __future__ import annotations

from enum import StrEnum
from hashlib import blake2b, sha256

KEY_CHARS_MIN = 16  # of a secret; anything shorter can be guessed


class Sharing(StrEnum):
    """Who shares a salt. The values set their salts apart: no tenant can take a name that gives a group's."""

    TENANT = "token-quota"
    GROUP = "token-quota:grp"
    PROMPT = "token-quota:sys"  # everybody whose request begins with this public prompt


def salt_of(sharing: Sharing, name: str, key: str = "") -> str:
    """32 hexadecimal digits. ``name`` is the tenant, the group or the digest of the prompt.

    Without a key anybody can compute it who knows the name: enough where only the gateway reaches the engine, for it
    drops a client's own salt. Another key is another salt for everybody: caches are cold once, nothing else happens.
    """
    secret = key.encode("utf-8", "surrogatepass")
    if len(secret) > blake2b.MAX_KEY_SIZE:
        secret = blake2b(secret).digest()
    data = name.encode("utf-8", "surrogatepass")
    return blake2b(data, digest_size=16, key=secret, person=sharing.value.encode()).hexdigest()


def prompt_digest(text: str) -> str:
    """How a public prompt is named in a configuration: SHA-256 of its text in UTF-8, as sha256sum prints it."""
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

"""Whose cached prefixes a request may find."""

from __future__ import annotations

from hashlib import sha256

from kong_plugins.domain.salts import Sharing, prompt_digest, salt_of

KEY = "0123456789abcdef0123456789abcdef"


def test_salts_differ_by_name_by_what_is_shared_and_by_key() -> None:
    """No tenant can be named so that it has a group's or a prompt's salt."""
    salts = [salt_of(sharing, name, key) for sharing in Sharing for name in ("acme", "globex") for key in ("", KEY)]
    assert len(set(salts)) == len(salts) == 12


def test_a_salt_is_the_same_everywhere_and_what_an_engine_takes() -> None:
    """As earlier versions made it without a key: their caches stay warm. 32 hexadecimal digits."""
    assert salt_of(Sharing.TENANT, "acme") == "5f0988362f6b8998c01246440a3996d0"
    assert salt_of(Sharing.TENANT, "acme", KEY) == "0fc6f046ee306dd3e4e8bb18cafc3492"


def test_every_character_of_a_long_key_counts() -> None:
    """Beyond the 64 bytes that the hash takes as its key."""
    assert salt_of(Sharing.TENANT, "acme", KEY * 4 + "a") != salt_of(Sharing.TENANT, "acme", KEY * 4 + "b")


def test_a_prompt_is_named_as_sha256sum_does() -> None:
    assert prompt_digest("Du bist nützlich.") == sha256("Du bist nützlich.".encode()).hexdigest()

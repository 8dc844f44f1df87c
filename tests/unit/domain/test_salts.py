"""Whose cached prefixes a request may find."""

from __future__ import annotations

from hashlib import sha256

import pytest

from kong_plugins.domain.salts import NO_KEY, SaltKey, Sharing, prompt_digest, salt_keys, salt_of

SECRET = "0123456789abcdef0123456789abcdef"
KEY = SaltKey("", SECRET)


def test_salts_differ_by_name_by_what_is_shared_and_by_key() -> None:
    """No tenant can be named so that it has a group's or a prompt's salt."""
    salts = [salt_of(sharing, name, key) for sharing in Sharing for name in ("acme", "globex") for key in (NO_KEY, KEY)]
    assert len(set(salts)) == len(salts) == 12


def test_a_salt_is_the_same_everywhere_and_what_an_engine_takes() -> None:
    """As earlier versions made it without a key: their caches stay warm. 32 hexadecimal digits."""
    assert salt_of(Sharing.TENANT, "acme") == "5f0988362f6b8998c01246440a3996d0"
    assert salt_of(Sharing.TENANT, "acme", KEY) == "0fc6f046ee306dd3e4e8bb18cafc3492"


def test_every_character_of_a_long_key_counts() -> None:
    """Beyond the 64 bytes that the hash takes as its key."""
    assert salt_of(Sharing.TENANT, "acme", SaltKey("", SECRET * 4 + "a")) != salt_of(
        Sharing.TENANT, "acme", SaltKey("", SECRET * 4 + "b")
    )


def test_a_prompt_is_named_as_sha256sum_does() -> None:
    assert prompt_digest("Du bist nützlich.") == sha256("Du bist nützlich.".encode()).hexdigest()


def test_a_salt_says_which_key_made_it() -> None:
    """Behind the id it is what the secret alone gives; the first of several keys makes it, and none is shown."""
    new, old = salt_keys(f"2026-12:{SECRET}  k1:{SECRET[::-1]}")
    assert (new.key_id, old.key_id) == ("2026-12", "k1")
    assert salt_of(Sharing.TENANT, "acme", new) == "2026-12.0fc6f046ee306dd3e4e8bb18cafc3492"
    assert salt_of(Sharing.TENANT, "acme", old).startswith("k1.")
    assert SECRET not in repr(new)


def test_a_key_without_an_id_is_as_it_was() -> None:
    """Also one with spaces or a colon in it that begins with no id."""
    assert salt_keys("") == ()
    for secret in (SECRET, "a secret of more than 16 characters", f"NO ID:{SECRET}"):
        assert salt_keys(secret) == (SaltKey("", secret),)


@pytest.mark.parametrize(
    "text", ["short", "k1:short", f"k1:{SECRET} k1:{SECRET[::-1]}", f"k1:{SECRET} {SECRET}", f"k1:{SECRET} K2:{SECRET}"]
)
def test_keys_that_cannot_work_are_named_without_their_secrets(text: str) -> None:
    with pytest.raises(ValueError, match="key") as refused:
        salt_keys(text)
    assert SECRET not in str(refused.value)

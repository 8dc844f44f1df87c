"""`token-quota salt`: a name's cache salts under every key known, to tell which one a request in the engine carries."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from kong_plugins.domain.salts import NO_KEY, Sharing, salt_keys, salt_of

SALT_KEY = "TOKEN_QUOTA_CACHE_SALT_KEY"
KINDS = {"tenant": Sharing.TENANT, "group": Sharing.GROUP, "prompt": Sharing.PROMPT}


def salt(
    name: Annotated[str, typer.Argument(help="The tenant, the cache_group, or the SHA-256 of a shared prompt.")],
    kind: Annotated[str, typer.Option(help="What the name is of: tenant, group or prompt.")] = "tenant",
    keys: Annotated[
        str,
        typer.Option(envvar=SALT_KEY, help="As cache_salt_key. A secret: better in the environment.", show_envvar=True),
    ] = "",
) -> None:
    """Show a name's cache salts: a line for each key, the one in use first.

    TOKEN_QUOTA_CACHE_SALT_KEY="k2:… k1:…" token-quota salt acme
    """
    if kind not in KINDS:
        sys.stderr.write(f"token-quota salt: --kind is {', '.join(KINDS)}, not {kind!r}\n")
        raise typer.Exit(2)
    try:
        known = salt_keys(keys) or (NO_KEY,)
    except ValueError as error:
        sys.stderr.write(f"token-quota salt: {error}\n")
        raise typer.Exit(2) from None
    for key in known:
        sys.stdout.write(f"{salt_of(KINDS[kind], name, key)}\n")

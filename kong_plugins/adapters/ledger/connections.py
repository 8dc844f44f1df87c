"""What a Redis ledger needs of a connection: to run scripts by their hash."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Protocol

from kong_plugins.application.ports import LedgerFault, LedgerUnavailable

Argument = bytes | str | int


@dataclass(frozen=True, slots=True)
class Script:
    """One Lua file and the hash by which a server knows it."""

    name: str
    source: bytes
    sha: str


def load_script(name: str, parts: Sequence[str] = ("attempts", "holds", "leases")) -> Script:
    """``lua/NAME.lua`` with what every script needs in front, and these parts."""
    folder = files("kong_plugins.adapters.ledger") / "lua"
    source = b"\n".join((folder / f"{part}.lua").read_bytes() for part in ("common", *parts, name))
    return Script(name, source, hashlib.sha1(source, usedforsecurity=False).hexdigest())


class Connections(Protocol):
    """Scripts are idempotent by the ids in them, so one whose answer was lost with its connection is run once more when
    there is time left. Nothing else is repeated."""

    def call(self, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> bytes:
        """The script's answer.

        Raises:
            LedgerUnavailable: no answer in time, or an error.
        """

    def close(self) -> None:
        """Callers that wait are told that the ledger is not available."""


Command = Sequence[Argument]


def by_hash(script: Script, keys: Sequence[str], args: Sequence[Argument]) -> Command:
    return ("EVALSHA", script.sha, len(keys), *keys, *args)


def by_source(script: Script, keys: Sequence[str], args: Sequence[Argument]) -> Command:
    """For a server that does not know the script yet; it does from then on."""
    return ("EVAL", script.source, len(keys), *keys, *args)


# Errors that another try, another node or more room would not mend.
_FAULTS = frozenset({"NOAUTH", "WRONGPASS", "NOPERM", "ERR", "WRONGTYPE", "MOVED", "CROSSSLOT"})
_FULL = "max number of clients"  # an ERR that is over when somebody leaves


def refused(what: str, error: str, code: str | None = None) -> LedgerUnavailable:
    """For a server's error, which begins with its ``code`` where that is not given."""
    fault = (code or error.partition(" ")[0]) in _FAULTS and _FULL not in error
    return (LedgerFault if fault else LedgerUnavailable)(f"{what}: {advice(error)}")


def advice(error: str) -> str:
    """What to do about a server's error."""
    hints: dict[str, str] = {
        "NOAUTH": "give the password in the ledger's URL",
        "WRONGPASS": "check user name and password in the ledger's URL",
        "NOPERM": "allow this user the scripting commands and all keys",
        "OOM": "give the server more memory (it must not evict: maxmemory-policy noeviction)",
        "READONLY": "this is a replica: name the primary, or use redis+sentinel://",
        "MOVED": "this is a cluster: use redis+cluster://",
        "CROSSSLOT": "this is a cluster: use redis+cluster://",
        "MISCONF": "the server cannot write to its disk",
    }
    hint = hints.get(error.partition(" ")[0])
    return f"{error} ({hint})" if hint else error

"""Request paths as Kong's router sees them, and the path that goes upstream."""

from __future__ import annotations

import re

_RESERVED = frozenset(b"!*'();:@&=+$,/?%#[]")
_TRIPLET = re.compile(rb"%([0-9A-Fa-f]{2})")
_UNSAFE = re.compile(rb"[^!#$&'()*+,/:;=?@\[\]A-Z0-9a-z\-_.~%]")
_SLASHES = re.compile(rb"//+")


def normalise(path: bytes) -> bytes:
    """Percent triplets of unreserved bytes decoded (others in upper case), slashes merged, dot segments removed."""
    if b"%" in path:
        path = _TRIPLET.sub(_decode, path)
    if b"//" in path:
        path = _SLASHES.sub(b"/", path)
    if b"/." not in path:
        return path
    segments: list[bytes] = []
    parts = path.split(b"/")[1:]
    for part in parts:
        if part == b"..":
            del segments[-1:]
        elif part != b".":
            segments.append(part)
    slash = b"/" if parts[-1] in (b".", b"..") and segments else b""
    return b"/" + b"/".join(segments) + slash


def _decode(match: re.Match[bytes]) -> bytes:
    value = int(match[1], 16)
    return match[0].upper() if value in _RESERVED else bytes((value,))


def escape(path: bytes) -> bytes:
    """Bytes that may not stand in a request line as percent triplets; nothing is decoded."""
    return _UNSAFE.sub(lambda match: b"%%%02X" % match[0][0], path)


def upstream_path(base: bytes, path: bytes, postfix: bytes, strip: bool) -> bytes:
    """Kong's path handling ``v0``. ``postfix`` is what follows the matched prefix, without a leading slash."""
    if not strip:
        if base.endswith(b"/"):
            return base + path[1:]
        return base if path == b"/" and base else base + path
    if postfix:
        if base.endswith(b"/"):
            return base[:-1] + postfix if postfix.startswith(b"/") else base + postfix
        return base + postfix if postfix.startswith(b"/") else base + b"/" + postfix
    if base.endswith(b"/"):
        return base if base == b"/" or path.endswith(b"/") else base[:-1]
    return base + b"/" if len(path) > 1 and path.endswith(b"/") else base

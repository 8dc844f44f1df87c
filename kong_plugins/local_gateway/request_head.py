"""What nginx refuses in a request's head before anything else sees it."""

from __future__ import annotations

import re

LINE_BYTES_MAX = 8192  # large_client_header_buffers 4 8k
HEAD_BYTES_MAX = 4 * LINE_BYTES_MAX
# Headers nginx takes once; the others of its list are answers' headers or never sent twice by anyone.
SINGLE = frozenset((b"host", b"content-length", b"authorization", b"transfer-encoding", b"if-modified-since", b"range"))
_REQUEST_LINE = re.compile(rb"[A-Z_-]+ [^ \x00-\x1f]+ HTTP/1\.[0-9]\r\n")
_METHOD_START = re.compile(rb"[\r\n]*[A-Z_-]*(?: |$)")
_HIGH = re.compile(rb"[\x80-\xff]")


def head_problem(head: bytes, complete: bool) -> int | None:
    """The status nginx refuses this head with: 400, 494 (too large), or None. An incomplete head is only looked at
    for what can already be told."""
    if not complete:
        return None if _METHOD_START.match(head) else 400
    if any(len(line) > LINE_BYTES_MAX for line in head.split(b"\r\n")):
        return 494
    line_end = head.find(b"\r\n") + 2
    if not _REQUEST_LINE.fullmatch(head[:line_end]) or b"\0" in head:
        return 400
    names = [line.partition(b":")[0].strip().lower() for line in head[line_end:-4].split(b"\r\n")]
    seen: set[bytes] = set()
    for name in names:
        if name in seen and name in SINGLE:
            return 400
        seen.add(name)
    return 400 if {b"content-length", b"transfer-encoding"} <= seen else None


def plain_head(head: bytes) -> bytes:
    """The head with a request target a strict parser takes: bytes beyond ASCII as percent triplets."""
    line_end = head.find(b"\r\n")
    if head[:line_end].isascii():
        return head
    return _HIGH.sub(lambda match: b"%%%02X" % match[0][0], head[:line_end]) + head[line_end:]

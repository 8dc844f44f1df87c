"""Which metered endpoint a request path reaches."""

from __future__ import annotations

from urllib.parse import unquote

from kong_plugins.domain.demand import Endpoint

_LAST = {
    "completions": Endpoint.COMPLETIONS,
    "embeddings": Endpoint.EMBEDDINGS,
    "responses": Endpoint.RESPONSES,
    "messages": Endpoint.MESSAGES,
}
_INVISIBLE = dict.fromkeys([*range(0x21), 0x7F])
_DECODINGS = 3  # Kong, its upstream connection and the engine could each decode once.


def endpoint_of(path: str) -> Endpoint | None:
    """The endpoint by the path's last segments, after any route prefix; None for everything else.

    Some spellings (an encoded letter or slash, a dot segment, a doubled or trailing slash, another case, a newline at
    the end, which a route's `$` lets pass) reach the engine's handler through one proxy and not through another. They
    count as the endpoint they could reach: metering a request that then gets a 404 costs its hold for a moment, not
    metering one that is answered costs its tokens.
    """
    for _ in range(_DECODINGS):
        if "%" not in path:
            break
        path = unquote(path, errors="replace")
    segments: list[str] = []
    for segment in path.replace("\\", "/").translate(_INVISIBLE).lower().split("/"):
        if segment == "..":
            del segments[-1:]
        elif segment not in {"", "."}:
            segments.append(segment)
    if not segments:
        return None
    if segments[-2:] == ["chat", "completions"]:
        return Endpoint.CHAT
    return _LAST.get(segments[-1])

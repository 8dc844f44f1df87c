"""A header block that keeps order and spelling, with nginx's way of setting: in the first one's place, the rest go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

Pairs = Sequence[tuple[bytes, bytes]]


class Headers:
    """Ordered (name, value) pairs; lookups ignore case."""

    __slots__ = ("_items",)

    def __init__(self, pairs: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self._items: list[tuple[bytes, bytes, bytes]] = [(name.lower(), name, value) for name, value in pairs]

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        return ((name, value) for _, name, value in self._items)

    def __len__(self) -> int:
        return len(self._items)

    def get(self, name: bytes) -> bytes | None:
        """The first value; ``name`` in lower case."""
        for lower, _, value in self._items:
            if lower == name:
                return value
        return None

    def get_all(self, name: bytes) -> list[bytes]:
        return [value for lower, _, value in self._items if lower == name]

    def add(self, name: bytes, value: bytes) -> None:
        self._items.append((name.lower(), name, value))

    def set(self, name: bytes, values: bytes | Sequence[bytes]) -> None:
        """One header with these values, where the first one of its name was, else at the end."""
        lower = name.lower()
        new = [(lower, name, value) for value in ([values] if isinstance(values, bytes) else values)]
        for index, item in enumerate(self._items):
            if item[0] == lower:
                rest = [other for other in self._items[index + 1 :] if other[0] != lower]
                self._items[index:] = new + rest
                return
        self._items += new

    def remove(self, name: bytes) -> None:
        lower = name.lower()
        self._items = [item for item in self._items if item[0] != lower]

    def replace(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        """All of it anew."""
        self._items = [(name.lower(), name, value) for name, value in pairs]

    def as_map(self, limit: int) -> dict[str, str | list[str]]:
        """As Kong's ``get_headers``: lower-cased names, a list where a name comes twice; only ``limit`` headers."""
        result: dict[str, str | list[str]] = {}
        for lower, _, raw in self._items[:limit]:
            name, value = text(lower), text(raw)
            before = result.get(name)
            if before is None:
                result[name] = value
            elif isinstance(before, list):
                before.append(value)
            else:
                result[name] = [before, value]
        return result


def text(value: bytes) -> str:
    """Bytes of the wire as a string that gives them back unchanged."""
    return value.decode("utf-8", "surrogateescape")


def raw(value: object) -> bytes:
    """A Lua header value as bytes: strings as they are, numbers as Lua prints them, booleans as words."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, bool):
        return b"true" if value else b"false"
    if isinstance(value, float):
        return b"%.14g" % value
    return str(value).encode("utf-8", "surrogateescape")


def flat(headers: Mapping[str, object]) -> list[tuple[bytes, bytes | list[bytes]]]:
    """A Lua table of headers as :meth:`Headers.set` takes them."""
    return [
        (raw(name), [raw(item) for item in value] if isinstance(value, list) else raw(value))
        for name, value in headers.items()
    ]

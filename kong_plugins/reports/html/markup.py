"""HTML put together from parts. Text is escaped unless it is markup already, so that a tenant's name stays a name."""

from __future__ import annotations

from html import escape


class Markup(str):
    """HTML that is safe as it stands."""

    __slots__ = ()


Part = str | int | None


def join(*parts: Part) -> Markup:
    """Parts one after the other; None is left out, whatever is no markup is escaped."""
    return Markup(
        "".join(part if isinstance(part, Markup) else escape(str(part)) for part in parts if part is not None)
    )


def tag(name: str, *parts: Part, **attributes: Part) -> Markup:
    """An element. An attribute's ``_`` is a ``-``, but for a last one, which keeps it from being a word of Python's:
    ``class_``, ``aria_label``. One that is None is left out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{written}>{join(*parts)}</{name}>")


def lone(name: str, **attributes: Part) -> Markup:
    """An element of SVG that is closed at once."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"' for key, value in attributes.items()
    )
    return Markup(f"<{name}{written}/>")

"""Answers Kong makes for a request it has seen: error pages in the client's form, exits without a body."""

from __future__ import annotations

from kong_plugins.local_gateway.errors import MESSAGES, Exit, error_exit, nginx_page
from kong_plugins.local_gateway.exchange import Exchange
from kong_plugins.local_gateway.headers import text
from kong_plugins.local_gateway.lua_host import Exit as LuaExit


def bodiless_exit(status: int, exchange: Exchange, headers: tuple[tuple[bytes, bytes], ...]) -> Exit:
    """An exit without a body: nothing below 300, Kong's error or nginx's own page above."""
    if status < 300:
        return Exit(status, None, headers)
    if status in MESSAGES:
        return handler_exit(status, exchange)
    return Exit(status, nginx_page(status), ((b"Content-Type", b"text/html; charset=UTF-8"), *headers), nginx=True)


def handler_exit(status: int, exchange: Exchange) -> Exit:
    """Kong's error page: JSON, or whatever the client accepts or else sent; plain text when it said neither."""
    accept = exchange.headers.get(b"accept") or exchange.headers.get(b"content-type") or b"text/plain"
    answer = error_exit(400 if status == 494 else status, exchange.id, text(accept), MESSAGES.get(status))
    return Exit(answer.status, answer.body, answer.headers, source="error")


def plugin_failure(exchange: Exchange) -> Exit:
    """What a client gets when a plugin's code fails in access."""
    answer = error_exit(500, exchange.id, exchange.client_wants())
    return Exit(answer.status, answer.body, answer.headers, source="error")


def from_lua(answer: LuaExit, exchange: Exchange) -> Exit:
    """A Lua plugin's exit."""
    if answer.body is None:
        headers = tuple(pair for pair in answer.headers if pair[0].lower() != b"content-length")
        return bodiless_exit(answer.status, exchange, headers)
    return Exit(answer.status, answer.body, answer.headers)

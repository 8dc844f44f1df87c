"""Errors as vLLM words them. Everything the engine refuses is an `ApiError`, turned into bytes in one place."""

from __future__ import annotations

from typing import Any

ENGINE_DIED = "EngineCore encountered an issue. See stack trace (above) for the root cause."


class ApiError(Exception):
    """An answer of the shape ``{"error": {"message", "type", "param", "code"}}``."""

    def __init__(self, status: int, message: str, kind: str = "BadRequestError", param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param

    def body(self) -> dict[str, Any]:
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.status}}


class ConnectionCut(Exception):  # noqa: N818  # not an error of ours: the fault that was asked for
    """The connection ends here, without another byte. ``reset``: with RST instead of FIN."""

    def __init__(self, reset: bool) -> None:
        super().__init__("reset" if reset else "eof")
        self.reset = reset


def bad_parameter(message: str, parameter: str, value: object = None) -> ApiError:
    """vLLM's own check of a parameter; the value is named when there is one."""
    named = f"parameter={parameter}" if value is None else f"parameter={parameter}, value={value}"
    return ApiError(400, f"{message} ({named})", param=parameter)


def invalid_field(kind: str, loc: str, msg: str, value: object, ctx: dict[str, object] | None = None) -> ApiError:
    """A field of the body that has the wrong shape, in the words of the schema check before vLLM's own code."""
    shown = f"<dict of {len(value)} items>" if isinstance(value, dict) else value
    detail: dict[str, object] = {"type": kind, "loc": loc, "msg": msg, "input": shown}
    if ctx:
        detail["ctx"] = ctx
    return ApiError(400, f"1 validation error:\n  {detail!r}", "Bad Request", loc)


def engine_died() -> ApiError:
    return ApiError(500, ENGINE_DIED, "InternalServerError")

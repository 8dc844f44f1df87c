"""A request's JSON body, read field by field with the refusals of vLLM's schema check."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

from kong_plugins.engine_sim.errors import ApiError, invalid_field

_TRUE = {"true", "1", "yes", "on", "t", "y"}
_FALSE = {"false", "0", "no", "off", "f", "n"}


class Fields:
    """Typed access to a JSON object. Null counts as absent, as in vLLM's optional fields.

    Raises:
        ApiError: from every method, a 400 that names the field.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.data = data

    def has(self, name: str) -> bool:
        return self.data.get(name) is not None

    def required(self, name: str) -> Any:
        if name not in self.data:
            raise invalid_field("missing", f"body.{name}", "Field required", self.data)
        return self.data[name]

    def integer(self, name: str) -> int | None:
        value = self.data.get(name)
        if value is None:
            return None
        if isinstance(value, bool):
            return int(value)
        if isinstance(value, int):
            return value
        if isinstance(value, float):
            if value.is_integer():
                return int(value)
            message = "Input should be a valid integer, got a number with a fractional part"
            raise invalid_field("int_from_float", f"body.{name}", message, value)
        if isinstance(value, str):
            try:
                return int(value)
            except ValueError:
                message = "Input should be a valid integer, unable to parse string as an integer"
                raise invalid_field("int_parsing", f"body.{name}", message, value) from None
        raise invalid_field("int_type", f"body.{name}", "Input should be a valid integer", value)

    def number(self, name: str) -> float | None:
        value = self.data.get(name)
        if value is None or isinstance(value, int | float):
            try:
                return None if value is None else float(value)
            except OverflowError:  # an integer of 400 digits
                raise invalid_field("finite_number", f"body.{name}", "Input should be a finite number", value) from None
        try:
            return float(str(value))
        except ValueError:
            message = "Input should be a valid number, unable to parse string as a number"
            raise invalid_field("float_parsing", f"body.{name}", message, value) from None

    def boolean(self, name: str) -> bool:
        value = self.data.get(name)
        if value is None or isinstance(value, bool):
            return bool(value)
        if str(value).lower() in _TRUE | _FALSE:
            return str(value).lower() in _TRUE
        message = "Input should be a valid boolean, unable to interpret input"
        raise invalid_field("bool_parsing", f"body.{name}", message, value)

    def string(self, name: str) -> str | None:
        value = self.data.get(name)
        if value is None or isinstance(value, str):
            return value
        raise invalid_field("string_type", f"body.{name}", "Input should be a valid string", value)

    def mapping(self, name: str) -> Fields | None:
        value = self.data.get(name)
        if value is None:
            return None
        if isinstance(value, dict):
            return Fields(value)
        raise invalid_field("dict_type", f"body.{name}", "Input should be a valid dictionary", value)

    def items(self, name: str) -> list[Any]:
        value = self.data.get(name)
        if value is None:
            return []
        if isinstance(value, list):
            return value
        raise invalid_field("list_type", f"body.{name}", "Input should be a valid list", value)


async def read_fields(request: Request) -> Fields:
    """The body of a JSON request.

    Raises:
        ApiError: not JSON by type or by content, or not an object.
        HTTPException: not text at all.
    """
    media = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media != "application/json":
        message = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
        raise ApiError(400, message, "Bad Request")
    body = await request.body()
    if not body:
        raise invalid_field("missing", "body", "Field required", None)
    try:
        data = json.loads(body)
    except json.JSONDecodeError as error:
        loc = f"body.{error.pos}"
        raise invalid_field("json_invalid", loc, "JSON decode error", {}, {"error": error.msg}) from None
    except (ValueError, RecursionError) as error:  # no UTF-8, or a number of more digits than Python reads
        raise HTTPException(400, "There was an error parsing the body") from error
    if not isinstance(data, dict):
        message = "Input should be a valid dictionary or object to extract fields from"
        raise invalid_field("model_attributes_type", "body", message, data)
    return Fields(data)

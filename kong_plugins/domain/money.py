"""Money in integers: micro-units of a currency for what is owed, pico-units for parts of it before rounding."""

from __future__ import annotations

import re

MICRO_DIGITS = 6
PICO_DIGITS = 12
PICO_PER_MICRO = 1_000_000

# ISO 4217: digits after the decimal point, where they are not two.
_NOT_TWO = "BIF0 CLP0 DJF0 GNF0 ISK0 JPY0 KMF0 KRW0 PYG0 RWF0 UGX0 UYI0 VND0 VUV0 XAF0 XOF0 XPF0"
_NOT_TWO += " BHD3 IQD3 JOD3 KWD3 LYD3 OMR3 TND3 CLF4 UYW4"
_MINOR_DIGITS = {word[:3]: int(word[3:]) for word in _NOT_TWO.split(" ")}
_CURRENCY = re.compile(r"[A-Z]{3}", re.ASCII)
_DECIMAL = re.compile(r"(?P<sign>-?)(?P<whole>\d{1,12})(?:\.(?P<fraction>\d+))?", re.ASCII)


def check_currency(code: str) -> str:
    """The code itself.

    Raises:
        ValueError: not three capital letters, as in ISO 4217.
    """
    if not _CURRENCY.fullmatch(code):
        raise ValueError(f"a currency is an ISO 4217 code such as EUR, not {code!r}")
    return code


def minor_digits(currency: str) -> int:
    """Digits that the currency's own coins have: 2 for EUR, 0 for JPY, 3 for KWD."""
    return _MINOR_DIGITS.get(currency, 2)


def parse_micro(text: str) -> int:
    """Micro-units of a decimal number such as ``0.55`` or ``-12``, exactly.

    Raises:
        ValueError: not a plain decimal number, over 6 decimals, or over 12 digits before the point.
    """
    match = _DECIMAL.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no plain decimal number such as 0.55")
    fraction = match["fraction"] or ""
    if len(fraction) > MICRO_DIGITS:
        raise ValueError(f"{text!r} has {len(fraction)} decimals; amounts are exact to {MICRO_DIGITS}")
    micro = int(match["whole"] + fraction.ljust(MICRO_DIGITS, "0"))
    return -micro if match["sign"] else micro


def format_micro(amount: int, currency: str, *, group: str = ",") -> str:
    """Exact, with at least the currency's own digits and more where there is more: ``1,234.50``, ``0.000123``."""
    return _format(amount, MICRO_DIGITS, minor_digits(currency), group)


def format_pico(amount: int, currency: str, *, group: str = ",") -> str:
    """The same for pico-units."""
    return _format(amount, PICO_DIGITS, minor_digits(currency), group)


def plain_pico(amount: int) -> str:
    """Pico-units as a bare decimal number for programs: ``-0.00000055``, ``12``."""
    return _format(amount, PICO_DIGITS, 0, "")


def _format(amount: int, digits: int, digits_min: int, group: str) -> str:
    whole, fraction = divmod(abs(amount), 10**digits)
    decimals = f"{fraction:0{digits}}".rstrip("0").ljust(digits_min, "0")
    grouped = f"{whole:,}".replace(",", group)
    return f"{'-' if amount < 0 else ''}{grouped}{'.' + decimals if decimals else ''}"

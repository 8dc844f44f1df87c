"""A report in the format that was asked for."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from enum import StrEnum
from io import StringIO
from pathlib import Path

from kong_plugins.application.report import Report


class Format(StrEnum):
    TABLE = "table"
    CSV = "csv"
    PARQUET = "parquet"
    HTML = "html"
    FOCUS = "focus"
    JSON = "json"


def write_report(report: Report, form: Format, out: Path | None) -> None:
    """To a file, which appears whole or not at all, or to standard output.

    Raises:
        ValueError: Parquet without a file to write to.
        ModuleNotFoundError: a format needs a package that is not installed; the message says how to install it.
        OSError: the file cannot be written.
    """
    match form:
        case Format.TABLE if out is None:
            from kong_plugins.reports.table import print_report

            print_report(report, sys.stdout)
        case Format.PARQUET:
            if out is None:
                raise ValueError("Parquet is no text: say where to write it with -o FILE")
            _write(out, lambda path: _parquet(report, path))
        case _:
            text = _text(report, form)
            if out is None:
                sys.stdout.write(text)
            else:
                _write(out, lambda path: _write_text(path, text))


def _text(report: Report, form: Format) -> str:
    match form:
        case Format.CSV:
            from kong_plugins.reports.rows import to_csv

            return to_csv(report)
        case Format.FOCUS:
            from kong_plugins.reports.focus import to_focus

            return to_focus(report)
        case Format.JSON:
            from kong_plugins.reports.record import to_json

            return to_json(report)
        case Format.HTML:
            from kong_plugins.reports.html import to_html

            return to_html(report)
        case _:
            from kong_plugins.reports.table import print_report

            out = StringIO()
            print_report(report, out)
            return out.getvalue()


def _parquet(report: Report, path: Path) -> None:
    from kong_plugins.adapters.parquet import WIDE, write_parquet
    from kong_plugins.reports.rows import COLUMNS, Kind, rows

    types = {Kind.TEXT: "string", Kind.COUNT: "int64", Kind.PICO: WIDE}
    write_parquet(path, {name: types[kind] for name, kind in COLUMNS.items()}, rows(report))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, "utf-8", newline="")


def _write(out: Path, write: Callable[[Path], None]) -> None:
    part = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        write(part)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)

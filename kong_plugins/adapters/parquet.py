"""Rows into a Parquet file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

# Wide enough for any sum of 64-bit counts times a price; Parquet has no wider integer than 64 bits.
WIDE = "decimal128(38, 0)"
WIDTHS = ("string", "int64", WIDE)


def write_parquet(path: Path, columns: Mapping[str, str], rows: Iterable[Mapping[str, object]]) -> None:
    """``columns``: type by name, each one of ``WIDTHS``.

    Raises:
        ModuleNotFoundError: pyarrow is not installed; the message says how to.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Parquet needs pyarrow: pip install 'kong-token-quota[books]'") from error
    types: dict[str, Any] = {"string": pa.string(), "int64": pa.int64(), WIDE: pa.decimal128(38, 0)}
    schema = pa.schema([(name, types[kind]) for name, kind in columns.items()])
    pq.write_table(pa.Table.from_pylist(list(map(dict, rows)), schema=schema), path)

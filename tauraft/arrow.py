"""Rows of SQL as an Arrow table, and so as the data frame of any library: what ``Rows.to_arrow`` does.

Values come over the wire as Python's (``tauraft.sql_values``), with DuckDB's name of each column's type.  Plain types keep their own
Arrow type, so that an empty result has the columns of a full one; lists, structs and maps take theirs from their values.
pyarrow is an extra, ``tauraft[arrow]``, and is imported here alone, when a table is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import pyarrow

_DECIMAL: Final = re.compile(r"DECIMAL\((\d+),(\d+)\)")
_HUGE: Final = frozenset({"HUGEINT", "UHUGEINT"})
# An instant without a zone is UTC's, as everywhere in tauraft.
_TYPES: Final[Mapping[str, Callable[[Any], Any]]] = {
    "BOOLEAN": lambda pa: pa.bool_(),
    "TINYINT": lambda pa: pa.int8(),
    "SMALLINT": lambda pa: pa.int16(),
    "INTEGER": lambda pa: pa.int32(),
    "BIGINT": lambda pa: pa.int64(),
    "UTINYINT": lambda pa: pa.uint8(),
    "USMALLINT": lambda pa: pa.uint16(),
    "UINTEGER": lambda pa: pa.uint32(),
    "UBIGINT": lambda pa: pa.uint64(),
    "HUGEINT": lambda pa: pa.decimal256(39, 0),
    "UHUGEINT": lambda pa: pa.decimal256(39, 0),
    "FLOAT": lambda pa: pa.float32(),
    "DOUBLE": lambda pa: pa.float64(),
    "VARCHAR": lambda pa: pa.string(),
    "JSON": lambda pa: pa.string(),
    "UUID": lambda pa: pa.string(),
    "BLOB": lambda pa: pa.binary(),
    "DATE": lambda pa: pa.date32(),
    "TIME": lambda pa: pa.time64("us"),
    "TIMESTAMP": lambda pa: pa.timestamp("us", "UTC"),
    "TIMESTAMP WITH TIME ZONE": lambda pa: pa.timestamp("us", "UTC"),
    "INTERVAL": lambda pa: pa.duration("us"),
}


def table_of(columns: Sequence[str], types: Sequence[str], rows: Sequence[Sequence[Any]]) -> pyarrow.Table:
    """Raises ``ModuleNotFoundError``, saying what to install."""
    try:
        import pyarrow
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "an Arrow table needs pyarrow, which is not installed: pip install 'tauraft[arrow]'", name="pyarrow"
        ) from error
    kinds = types or [""] * len(columns)  # of a node that does not tell them
    arrays = [
        _array(pyarrow, kind, [row[place] for row in rows])
        for place, kind in zip(range(len(columns)), kinds, strict=True)
    ]
    # Not from_pydict: two columns may have one name.
    return pyarrow.Table.from_arrays(arrays, names=list(columns))


def _array(pa: Any, kind: str, values: list[Any]) -> Any:
    if kind in _HUGE:
        values = [None if value is None else Decimal(value) for value in values]
    elif kind == "UUID":
        values = [None if value is None else str(value) for value in values]
    elif kind.startswith("MAP(") and not kind.endswith("]"):
        return _map(pa, values)
    if decimal := _DECIMAL.fullmatch(kind):
        return pa.array(values, pa.decimal128(int(decimal[1]), int(decimal[2])))
    made = _TYPES.get(kind)
    return pa.array(values) if made is None else pa.array(values, made(pa))


def _map(pa: Any, values: list[Any]) -> Any:
    """Arrow takes a map that it is not told of for a struct, with a field for each key there is."""
    items = [item for value in values if value is not None for item in value.items()]
    keys, held = pa.array([key for key, _ in items]), pa.array([value for _, value in items])
    if not items:
        keys = pa.array([], pa.string())  # the keys of a map cannot be of no type
    pairs = [None if value is None else list(value.items()) for value in values]
    return pa.array(pairs, pa.map_(keys.type, held.type))

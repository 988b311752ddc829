"""Parquet tables of LeRobot datasets as arrays: vectors of any float type and list form become float32 [rows, width].

Both layouts store numbers alike; this module knows columns, not layouts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewam.core.errors import ArtifactError, require
from edgewam.data.schema import Floats


def read_table(path: Path, columns: Sequence[str] | None = None) -> Any:
    """A pyarrow table of one file: all columns, or those of `columns` that it has.

    Raises:
        ArtifactError: missing, truncated or no parquet file.
    """
    pa, pq = require("pyarrow", extra="train"), require("pyarrow.parquet", extra="train")
    if not path.is_file():
        raise ArtifactError(f"'{path}' is missing. Copy or collect the dataset again.")
    try:
        # one thread a file: callers read files side by side
        found = pq.read_table(path, partitioning=None, columns=None if columns is None else list(columns), use_threads=False)
        found.column_names  # noqa: B018 (decodes them)
        return found
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"Cannot read '{path}' ({error}): it is truncated or no parquet file. Copy or collect the dataset again."
        ) from error


def need(table: Any, columns: Sequence[str], path: Path) -> None:
    """Raise ArtifactError where the table of a file lacks a column."""
    if missing := [name for name in columns if name not in table.column_names]:
        raise ArtifactError(
            f"'{path}' has no column {', '.join(missing)}; it has {', '.join(table.column_names)}. "
            "Copy or collect the dataset again."
        )


def vectors(table: Any, name: str, width: int, where: Path) -> Floats:
    """Column `name` as float32 [rows, width]; stored as lists of one length, or as plain numbers where width is 1.

    Raises:
        ArtifactError: a row of another length or an empty one, or no numbers.
    """
    pa = require("pyarrow", extra="train")
    column = table[name].combine_chunks()
    nested = not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type))
    try:
        flat = column.flatten() if nested else column
        values = np.asarray(flat.to_numpy(zero_copy_only=False), np.float32)
    except (pa.ArrowException, AttributeError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"'{where}', column '{name}' holds {column.type}, not vectors of {width} numbers. Copy or collect the dataset again."
        ) from error
    ragged = nested and not pa.types.is_fixed_size_list(column.type) and (np.diff(column.offsets.to_numpy()) != width).any()
    if column.null_count or ragged or len(values) != len(table) * width:
        raise ArtifactError(
            f"'{where}', column '{name}' does not hold {width} values in every row. Copy or collect the dataset again."
        )
    return values.reshape(-1, width)


def integers(table: Any, name: str, where: Path) -> npt.NDArray[np.int64]:
    """Column `name` as int64 [rows]; some writers keep single numbers as lists of one.

    Raises:
        ArtifactError: the column holds something else.
    """
    pa = require("pyarrow", extra="train")
    column = table[name].combine_chunks()
    try:
        flat = column if pa.types.is_integer(column.type) else column.flatten()
        if not pa.types.is_integer(flat.type) or flat.null_count or len(flat) != len(table):
            raise ValueError(f"{column.type}, {flat.null_count} empty")
        return np.asarray(flat.to_numpy(zero_copy_only=False), np.int64)
    except (pa.ArrowException, AttributeError, ValueError) as error:
        raise ArtifactError(
            f"'{where}', column '{name}' does not hold a whole number in every row ({error}). Copy or collect the dataset again."
        ) from error


def seconds(table: Any, name: str, where: Path) -> npt.NDArray[np.float64]:
    """Column `name` as finite float64 [rows]; ArtifactError where it holds something else."""
    try:
        found = np.array(table[name].to_pylist(), np.float64)
    except (TypeError, ValueError):
        found = np.array([np.nan])
    if found.shape != (len(table),) or not np.isfinite(found).all():
        raise ArtifactError(f"'{where}', column '{name}' does not hold a number in every row. Copy or collect the dataset again.")
    return found


def check_finite(values: Floats, column: str, where: Path, episodes: npt.NDArray[np.int64]) -> None:
    """Raise ArtifactError, with the first episode's number, where `values` [rows, D] are not finite.  episodes: int64 [rows]."""
    bad = np.flatnonzero(~np.isfinite(values).all(1))
    if len(bad):
        raise ArtifactError(
            f"'{where}', episode {int(episodes[bad[0]])}, column '{column}': {len(bad)} rows are not finite. "
            "Remove or record it again."
        )

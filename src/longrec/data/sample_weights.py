"""Sample weights: columns that weight the rows in the loss or in metrics and are not features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from longrec.data.array_writer import ArrayWriter
from longrec.data.relation import Relation, name
from longrec.errors import DataError
from longrec.features.entity_table import open_array


def write_weights(log: Relation, columns: Sequence[str], sorted_events: Path, folder: Path, rows: int) -> None:
    """Write each weight column of the sorted events as float32 ``[n]``: ``weights/0.npy`` and so on.

    Args:
        rows: number of rows per chunk.

    Raises:
        DataError: a weight that is null, negative or not finite. The message gives its row.
    """
    for number, column in enumerate(columns):
        (folder / "weights").mkdir(exist_ok=True)
        with ArrayWriter(folder / "weights" / f"{number}.npy", np.float32) as writer:
            for chunk in pq.ParquetFile(sorted_events).iter_batches(rows, columns=[f"c.{column}"]):
                writer.append(_check_values(chunk[f"c.{column}"], log, column))


def open_weights(folder: Path, columns: Sequence[str]) -> Mapping[str, NDArray[np.float32]]:
    """Return the weight columns that ``write_weights`` wrote, by name."""
    return {column: open_array(folder / "weights" / f"{number}.npy") for number, column in enumerate(columns)}


def check_weights(weight: NDArray[np.float32], label: NDArray[np.float32], where: str, setting: str) -> None:
    """Raise an error if the weights of all rows of a class are 0.

    Args:
        weight: weight of each row of a split, float32 ``[n]``.
        label: label of each row of the split, float32 ``[n]``.
        where: name of the split.
        setting: config key of the weights.

    Raises:
        DataError: a class without a weight above 0.
    """
    for value, of in ((1, "positive"), (0, "negative")):
        own = weight[label == value]
        if len(own) and not (own > 0).any():
            raise DataError(
                f"{setting}: the {where} split",
                f"a weight of 0 on every {of} row",
                "a weight above 0 on some row of both classes",
                f"check the column, or remove {setting}",
            )


def _check_values(values: pa.Array, log: Relation, column: str) -> NDArray[np.float32]:
    weight: NDArray[np.float32] = values.cast(pa.float64()).to_numpy(zero_copy_only=False).astype(np.float32)
    if np.isfinite(weight).all() and (weight >= 0).all():
        return weight
    number = f"SELECT row_number() OVER () AS r, {name(column)}::DOUBLE AS v FROM {log.view}"
    bad_row = log.row(f"SELECT r, v FROM ({number}) WHERE v IS NULL OR NOT isfinite(v) OR v < 0 ORDER BY r LIMIT 1")
    what = (
        f"{'null' if bad_row[1] is None else format(bad_row[1], 'g')} in row {bad_row[0]}"
        if bad_row
        else "a number too large"
    )
    raise DataError(
        f"{log.where}: column {column!r}",
        f"{what}, as the weight of a sample",
        "a finite number of 0 or more in every row",
        "correct the column, or set another one in fit.sample_weight and evaluate.sample_weight",
    )

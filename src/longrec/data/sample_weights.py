"""Sample weights: columns that weight the rows in the loss or in metrics and are not features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longrec.data.array_writer import ArrayWriter
from longrec.data.sorted_log import SortedLog
from longrec.errors import DataError
from longrec.features.entity_table import open_array


def write_weights(log: SortedLog, columns: Sequence[str], folder: Path, rows: int) -> None:
    """Write each weight column of a sorted log as float32 ``[n]``: ``weights/0.npy`` and so on.

    Args:
        rows: number of rows per chunk.
    """
    for number, column in enumerate(columns):
        (folder / "weights").mkdir(exist_ok=True)
        with ArrayWriter(folder / "weights" / f"{number}.npy", np.float32) as writer:
            for _, chunk in log.read([f"c.{column}"], rows, "weights"):
                writer.append(chunk[f"c.{column}"].cast(pa.float64()).to_numpy(zero_copy_only=False))


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

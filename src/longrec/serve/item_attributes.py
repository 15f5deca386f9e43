"""Attributes and vectors of items by key, from the bundles of a pipeline: what quotas, spacing and re-ranking read.

An attribute is a feature of the item of kind id, multi_id or bucketized. It is read as encoded in a bundle, so that
values are compared as a model sees them.

Shapes: C candidates, D width of a vector, V distinct values.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.errors import DataError
from longrec.features.feature_encoders import MISSING, UNSEEN, Lists
from longrec.features.fitted_schema import FittedSchema
from longrec.features.raw_columns import encode_list
from longrec.serve.open_model import OpenModel

KINDS = ("id", "multi_id", "bucketized")


class ItemAttribute:
    """One attribute of items, of one bundle.

    Args:
        model: the opened bundle, whose schema has the feature.
        name: the feature.
    """

    def __init__(self, model: OpenModel, name: str) -> None:
        self.name, self._encoder, self._fitted = name, model.encoder, model.bundle.fitted
        self._catalog = model.catalog

    def read(self, keys: NDArray[Any], timestamp: int) -> list[tuple[int, ...]]:
        """Return the ids of the values of every item, strictly before a timestamp. Empty for a missing value."""
        rows = self._encoder.find_items(keys) if len(keys) else np.zeros(0, np.int64)
        column = self._catalog.table.items.as_of(rows, timestamp)[self.name]
        if isinstance(column, Lists):
            cuts = column.offsets.tolist()
            values = column.values.tolist()
            lists = [tuple(dict.fromkeys(values[start:stop])) for start, stop in pairwise(cuts)]
        else:
            lists = [(value,) for value in column.tolist()]
        return [tuple(value for value in own if value != MISSING) for own in lists]

    def encode(self, value: Any) -> int:
        """Return the id of a raw value.

        Raises:
            DataError: if the value has the wrong type, or no item of the bundle can have it.
        """
        return encode_value(self._fitted, self.name, value)


def encode_value(fitted: FittedSchema, name: str, value: Any) -> int:
    """Return the id of a raw value of an attribute.

    Raises:
        DataError: if the value has the wrong type, or no item can have it.
    """
    identity = int(encode_list(fitted, name, [value], f"attribute {name}")[0])
    if identity in (MISSING, UNSEEN):
        raise DataError(f"attribute {name}", f"the value {value!r}", "a value of the item table")
    return identity


def is_attribute(fitted: FittedSchema, name: str) -> bool:
    """Return True if a feature is an attribute of the item."""
    schema = fitted.schema
    return name in schema.features and schema.side(name) == "item" and schema.features[name].kind in KINDS


def read_numbers(model: OpenModel, column: str, keys: NDArray[Any]) -> NDArray[np.float64]:
    """Return the number of items in a raw column of the catalog as it is now, float64 ``[C]``.

    A null, and an item that the bundle does not know, count as 0.
    """
    numbers = model.catalog.read_numbers(column)
    rows = model.encoder.find_items(keys) if len(keys) else np.zeros(0, np.int64)
    return np.where(rows > 0, numbers[rows - 1], 0.0)


def build_indicators(values: list[tuple[int, ...]]) -> NDArray[np.float64]:
    """Return a vector per item with a one for each of its values, ``[C, V]``.

    >>> build_indicators([(7,), (7, 9), ()]).tolist()
    [[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]
    """
    columns = {value: at for at, value in enumerate(dict.fromkeys(value for own in values for value in own))}
    vectors = np.zeros((len(values), len(columns)))
    for row, own in enumerate(values):
        vectors[row, [columns[value] for value in own]] = 1
    return vectors


class ItemVectors:
    """Vectors of items of a vector retriever.

    Args:
        model: the opened bundle of a vector retriever.
    """

    def __init__(self, model: OpenModel) -> None:
        self._encoder, self._catalog = model.encoder, model.catalog

    def read(self, keys: NDArray[Any]) -> NDArray[np.float32]:
        """Return the vector of every item, float32 ``[C, D]``. That of an unknown item is zero."""
        rows = self._encoder.find_items(keys) if len(keys) else np.zeros(0, np.int64)
        assert self._catalog.index is not None
        vectors = np.array(self._catalog.index.read(np.maximum(rows - 1, 0)), np.float32)
        vectors[rows == 0] = 0
        return vectors

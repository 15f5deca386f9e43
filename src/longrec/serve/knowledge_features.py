"""Knowledge of a request: vectors of the user, once, and of every candidate, of one extractor version."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from longrec.errors import BundleError
from longrec.exporting.bundle import Bundle
from longrec.features.entity_table import EntityTable
from longrec.features.raw_columns import build_raw_column
from longrec.features.vocabulary import compute_key_numbers, compute_text_number
from longrec.store.disclosure import REMEDY, assess_disclosure
from longrec.store.knowledge_store import KnowledgeStore


@dataclass(frozen=True)
class _Feature:
    name: str
    side: Literal["user", "item"]
    store: KnowledgeStore


class KnowledgeFeatures:
    """Reader of the vector features of a bundle's ONNX model."""

    def __init__(self, bundle: Bundle) -> None:
        self._items = bundle.items
        opened: dict[str, KnowledgeStore] = {}
        self._features: list[_Feature] = []
        for name, stored_path in bundle.manifest.knowledge.items():
            location = bundle.resolve_store(stored_path)
            if location not in opened:
                opened[location] = KnowledgeStore.open(location)
            schema = bundle.fitted.schema
            disclosure = assess_disclosure(opened[location].info, schema)
            if disclosure.leaks and not schema.features[name].allow_leak:
                where = f"features.{name}: {location}"
                raise BundleError(
                    where,
                    f"it discloses data that was not available: {disclosure.summary}",
                    "a store that does not",
                    REMEDY,
                )
            side = schema.side(name)
            self._features.append(_Feature(name, "user" if side == "user" else "item", opened[location]))
        self._stores = list(opened.values())

    def use_items(self, items: EntityTable) -> None:
        """Read the keys of items from another table from now on."""
        self._items = items
        self.__dict__.pop("_numbers", None)  # computed from the former keys

    def read_user(self, user: int, timestamp: int) -> dict[str, NDArray[np.float32]]:
        """Return inputs ``[1, W]`` of a user.

        Args:
            user: key number.
            timestamp: milliseconds UTC, or a step.
        """
        return self._look_up("user", np.array([user], np.int64), timestamp)

    def read_items(self, rows: NDArray[Any], keys: NDArray[Any], timestamp: int) -> dict[str, NDArray[np.float32]]:
        """Return inputs ``[C, W]`` of items.

        Args:
            rows: ``[C]`` rows of the item table, 0 for an unknown item.
            keys: ``[C]`` keys in the type of the log.
            timestamp: milliseconds UTC, or a step.
        """
        if not any(feature.side == "item" for feature in self._features):
            return {}
        numbers = self._numbers.take(rows)
        unknown = np.flatnonzero(rows == 0)
        if len(unknown):
            numbers[unknown] = compute_key_numbers(build_raw_column(keys[unknown].tolist(), "candidates"))
        return self._look_up("item", numbers, timestamp)

    def _look_up(self, side: str, numbers: NDArray[np.int64], timestamp: int) -> dict[str, NDArray[np.float32]]:
        now = np.array([timestamp], np.int64)
        return {
            f"f.{feature.name}": feature.store.look_up(feature.side, numbers, feature.store.find_versions(now))
            for feature in self._features
            if feature.side == side
        }

    @cached_property
    def _numbers(self) -> NDArray[np.int64]:
        """Key numbers of the items by row. Row 0 is unused."""
        return np.concatenate([np.zeros(1, np.int64), compute_key_numbers(self._items.keys.values)])

    def close(self) -> None:
        """Close the stores."""
        for store in self._stores:
            store.close()


def key_number(key: Any) -> int:
    """Return the number of one key in a store with an open key space.

    >>> key_number(7)
    7
    """
    if isinstance(key, np.generic):
        key = key.item()
    if type(key) is int and -(2**63) <= key < 2**63:  # without arrays, which cost more than the number
        return key
    if type(key) is str and key.isascii():
        return compute_text_number(key)
    return int(compute_key_numbers(build_raw_column([key], "key"))[0])

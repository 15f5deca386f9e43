"""The knowledge of a request: what an extractor knew of the user, once, and of every candidate, of one version."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from longrec.errors import BundleError
from longrec.export.bundle import Bundle
from longrec.export.request import raw_column
from longrec.features.vocabulary import key_numbers
from longrec.store.disclosure import REMEDY, assess_disclosure
from longrec.store.knowledge_store import KnowledgeStore


@dataclass(frozen=True)
class _Feature:
    name: str
    side: Literal["user", "item"]
    store: KnowledgeStore


class Knowledge:
    """The vector features that a bundle's program reads."""

    def __init__(self, bundle: Bundle) -> None:
        self._items = bundle.items
        opened: dict[str, KnowledgeStore] = {}
        self._features: list[_Feature] = []
        for name, own in bundle.manifest.knowledge.items():
            place = bundle.place(own)
            if place not in opened:
                opened[place] = KnowledgeStore.open(place)
            schema = bundle.fitted.schema
            told = assess_disclosure(opened[place].info, schema)
            if told.leaks and not schema.features[name].allow_leak:
                where = f"features.{name}: {place}"
                raise BundleError(where, f"tells more than was known: {told.summary}", "a store that does not", REMEDY)
            table = schema.table(name)
            self._features.append(_Feature(name, "user" if table == "user" else "item", opened[place]))
        self._stores = list(opened.values())

    def of_user(self, user: int, moment: int) -> dict[str, NDArray[np.float32]]:
        """Inputs ``[1, W]``.

        Args:
            user: key number.
        """
        return self._look_up("user", np.array([user], np.int64), moment)

    def of_items(self, rows: NDArray[Any], keys: NDArray[Any], moment: int) -> dict[str, NDArray[np.float32]]:
        """Inputs ``[C, W]``.

        Args:
            rows: ``[C]`` of the item table, 0 for an item that is in no table.
            keys: ``[C]`` as the log has them.
        """
        if not any(feature.side == "item" for feature in self._features):
            return {}
        numbers = self._numbers.take(rows)
        for place in np.flatnonzero(rows == 0).tolist():
            numbers[place] = key_number(keys[place])
        return self._look_up("item", numbers, moment)

    def _look_up(self, side: str, numbers: NDArray[np.int64], moment: int) -> dict[str, NDArray[np.float32]]:
        now = np.array([moment], np.int64)
        return {
            f"f.{feature.name}": feature.store.look_up(feature.side, numbers, feature.store.find_versions(now))
            for feature in self._features
            if feature.side == side
        }

    @cached_property
    def _numbers(self) -> NDArray[np.int64]:
        """Key numbers of the items, by row; row 0 is nothing."""
        return np.concatenate([np.zeros(1, np.int64), key_numbers(self._items.keys.values)])

    def close(self) -> None:
        """Let go of the stores."""
        for store in self._stores:
            store.close()


def key_number(key: Any) -> int:
    """What a store with an open key space knows one key by.

    >>> key_number(7)
    7
    """
    if isinstance(key, np.generic):
        key = key.item()
    return int(key_numbers(raw_column([key], "key"))[0])

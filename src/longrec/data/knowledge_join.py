"""Join of a log with a knowledge store: for each row, the vector of its user or item as of its timestamp.

Users and items are looked up by their original keys, so knowledge extracted from one log can be used with another. The
user vector and the item vector of a row are of the same version: the newest published strictly before its timestamp.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from longrec.data.token_join import check_disclosure
from longrec.errors import DataError
from longrec.features.schema import Schema
from longrec.features.vocabulary import Keys, compute_key_numbers

if TYPE_CHECKING:
    from longrec.store.knowledge_store import KnowledgeStore

Control = Literal["shuffled", "random"]


class KnowledgeFeature:
    """Embedding feature of a log that is read from a knowledge store.

    Args:
        table: entity type, user or item.
        keys: keys of the users (or items) of the log.
        where: config key of the feature, for error messages.

    Attributes:
        width: length of one value: the presence flag and the vector.
        warnings: one warning per reason why metrics measured with this feature may be wrong.

    Raises:
        DataError: the user (or item) keys or the time unit of the store differ from those of the log, or the store
            leaks values before they were available.
    """

    def __init__(self, store: KnowledgeStore, schema: Schema, table: str, keys: Keys, where: str) -> None:
        _check(store, schema, table, keys, where)
        allowed = schema.features[where.removeprefix("features.")].allow_leak
        self.warnings = check_disclosure(store.info, schema, where, str(store.folder), allowed)
        self.store = store
        self._side: Literal["user", "item"] = "user" if table == "user" else "item"
        self.width = 1 + store.info.widths[table]
        self._keys = compute_key_numbers(keys.values)
        self._rows = np.arange(len(self._keys) + 1)
        self._noise: int | None = None
        self._versions: dict[int, NDArray[np.floating]] = {}

    def values(self, owners: NDArray[np.int64], timestamps: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the presence flag 1 and the vector, or zeros if no knowledge was available: float32 ``[B, 1 + W]``.

        Args:
            owners: row indices in the user (or item) table of the log, ``[B]``. Row 0 is the unknown entity.
            timestamps: timestamp of each requested row, int64 ``[B]``.
        """
        knowledge = np.zeros((len(owners), self.width), np.float32)
        version = self.store.find_versions(timestamps)
        for number in np.unique(version[version >= 0]):
            at = version == number
            knowledge[at] = self._matrix(int(number))[self._rows.take(owners[at])]
        return knowledge

    def control(self, how: Control, seed: int = 0) -> KnowledgeFeature:
        """Return a control: the same feature with uninformative values.

        ``shuffled`` gives each entity the vector of another entity, the same one in every version. ``random`` gives
        each entity random vectors.
        """
        other = object.__new__(KnowledgeFeature)
        other.__dict__.update(self.__dict__, _versions={})
        if how == "shuffled":
            # Row 0, the unknown entity, is not permuted.
            other._rows = np.concatenate([[0], 1 + np.random.default_rng(seed).permutation(len(self._keys))])
        else:
            other._noise = seed
        return other

    def _matrix(self, number: int) -> NDArray[np.floating]:
        """Return all values of a version, ``[1 + keys, 1 + W]``, as float16 if the store uses float16."""
        if number not in self._versions:
            vectors = self.store.look_up(self._side, self._keys, np.array([number], np.int64))
            if self._noise is not None:
                random = np.random.default_rng([self._noise, number])
                vectors[:, 1:] = random.standard_normal((len(vectors), self.width - 1)) * vectors[:, :1]
            whole = np.concatenate([np.zeros((1, self.width), np.float32), vectors])
            self._versions[number] = whole.astype(np.float16 if self.store.info.codec == "fp16" else np.float32)
        return self._versions[number]


def _check(store: KnowledgeStore, schema: Schema, table: str, keys: Keys, where: str) -> None:
    info, own = store.info, "int64" if keys.numeric else "text"
    do = "extract the knowledge from a log with keys of the same type"
    if info.keys[table] != own:
        raise DataError(where, f"knowledge with {table} keys of type {info.keys[table]}", f"{own}, as in the log", do)
    unit = "step" if schema.time is not None and schema.time.unit == "step" else "ms"
    if schema.time is None:
        raise DataError(
            where, "a knowledge feature in a schema without time", "a time column, which selects the version"
        )
    if info.unit != unit:
        raise DataError(where, f"knowledge with timestamps in {info.unit}", f"{unit}, as in the log")

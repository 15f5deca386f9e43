"""Join of a log with token stores: per sample the tokens of its user, strictly before its timestamp.

The join looks up; it never adds or repeats a row. Users are found by their own keys, so that a store written from
one log serves another.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longrec.errors import DataError
from longrec.features.computed_columns import compute_time_gaps
from longrec.features.schema import Schema
from longrec.features.token_columns import TokenSpec, build_token_columns
from longrec.features.vocabulary import Keys, compute_key_numbers
from longrec.store.disclosure import REMEDY, Provenance, assess_disclosure
from longrec.store.token_store import TokenStore
from longrec.store.visibility import read_visible_tokens


class TokenHistory:
    """One token history of a log.

    Args:
        keys: the users of the log.
        where: the history named in a message.

    Attributes:
        warnings: a sentence per reason to read what is measured on these tokens with caution.

    Raises:
        DataError: the store names users otherwise, counts time otherwise, or discloses more than was available.
    """

    def __init__(self, store: TokenStore, schema: Schema, name: str, keys: Keys, where: str) -> None:
        history = schema.histories[name]
        check_token_store(store, schema, keys.values.type, where)
        self.warnings = check_disclosure(store.info, schema, where, store.location, history.allow_leak)
        self.store, self.name, self.spec = store, name, store.info.spec()
        self.features, self.max_length = history.features, history.max_length
        self._gaps = partial(compute_time_gaps, per_second=1 if store.info.unit == "step" else 1_000)
        # Row 0 of the user table is the unknown user.
        self._users = np.concatenate([[0], compute_key_numbers(keys.values)])

    def columns(
        self, users: NDArray[np.int64], timestamps: NDArray[np.int64]
    ) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]]:
        """Return the columns of the samples' histories by field name, and offsets ``[B + 1]``.

        Args:
            users: int64 ``[B]`` rows of the log's user table.
            timestamps: int64 ``[B]``.
        """
        tokens = read_visible_tokens(self.store, self._users.take(users), timestamps, self.max_length)
        return build_token_columns(self.spec, self.name, self.features, tokens, timestamps, self._gaps)

    def times(self, users: NDArray[np.int64], timestamps: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return int64 ``[N]``: timestamps of the impressions in ``columns``, in the same order."""
        return read_visible_tokens(self.store, self._users.take(users), timestamps, self.max_length, ["visible"]).times


def check_token_store(store: TokenStore, schema: Schema, key_type: pa.DataType, where: str) -> TokenSpec:
    """Return the spec of a token store that fits a log.

    Raises:
        DataError: it names users otherwise, or counts time otherwise.
    """
    info = store.info
    keys = "int64" if pa.types.is_integer(key_type) else "text"
    if info.keys != keys:
        raise DataError(where, f"tokens of users named by {info.keys}", f"{keys}, as in the log", "compress this log")
    unit = "step" if schema.time is not None and schema.time.unit == "step" else "ms"
    if info.unit != unit:
        raise DataError(where, f"tokens whose times count in {info.unit}", f"{unit}, as in the log")
    return info.spec()


def check_disclosure(info: Provenance, schema: Schema, where: str, location: str, allowed: bool) -> list[str]:
    """Return the warnings of reading a store.

    Raises:
        DataError: it discloses more than was available, and this is not allowed by name.
    """
    disclosure = assess_disclosure(info, schema)
    if disclosure.leaks and not allowed:
        do = f"{REMEDY}; {where}.allow_leak: true reads it nevertheless, and the results say so"
        raise DataError(
            where, f"{location} discloses more than was available: {disclosure.summary}", "a store that does not", do
        )
    return disclosure.list_warnings(where, location)

"""Join of a log with token stores: for each row, the tokens of its user strictly before its timestamp.

The join is a lookup. It never adds or repeats a row. Users are looked up by their original keys, so a store written
from one log can be read with another.
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
        keys: keys of the users of the log.
        where: config key of the history, for error messages.

    Attributes:
        warnings: one warning per reason why metrics measured with these tokens may be wrong.

    Raises:
        DataError: the user keys or the time unit of the store differ from those of the log, or the store leaks values
            before they were available.
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
        """Return the history columns of the requested rows by field name, and their offsets ``[B + 1]``.

        Args:
            users: row indices in the user table of the log, int64 ``[B]``.
            timestamps: timestamp of each requested row, int64 ``[B]``.
        """
        tokens = read_visible_tokens(self.store, self._users.take(users), timestamps, self.max_length)
        return build_token_columns(self.spec, self.name, self.features, tokens, timestamps, self._gaps)

    def times(self, users: NDArray[np.int64], timestamps: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the timestamps of the impressions in ``columns``, int64 ``[N]``, in the same order."""
        return read_visible_tokens(self.store, self._users.take(users), timestamps, self.max_length, ["visible"]).times


def check_token_store(store: TokenStore, schema: Schema, key_type: pa.DataType, where: str) -> TokenSpec:
    """Return the spec of a token store, after a check that the store fits the log.

    Raises:
        DataError: the user keys or the time unit of the store differ from those of the log.
    """
    info = store.info
    keys = "int64" if pa.types.is_integer(key_type) else "text"
    if info.keys != keys:
        raise DataError(
            where, f"tokens with user keys of type {info.keys}", f"{keys}, as in the log", "compress this log"
        )
    unit = "step" if schema.time is not None and schema.time.unit == "step" else "ms"
    if info.unit != unit:
        raise DataError(where, f"tokens with timestamps in {info.unit}", f"{unit}, as in the log")
    return info.spec()


def check_disclosure(info: Provenance, schema: Schema, where: str, location: str, allowed: bool) -> list[str]:
    """Return the warnings about leaks of a store.

    Args:
        info: record of how the store was written.
        where: config key of the history or feature that reads the store.
        location: folder or URL of the store.
        allowed: the value of ``allow_leak``.

    Raises:
        DataError: the store leaks values before they were available, and ``allow_leak`` is not set.
    """
    disclosure = assess_disclosure(info, schema)
    if disclosure.leaks and not allowed:
        do = f"{REMEDY}; {where}.allow_leak: true reads the store anyway and adds a warning to the results"
        raise DataError(
            where,
            f"{location} leaks values before they were available: {disclosure.summary}",
            "a store without leaks",
            do,
        )
    return disclosure.list_warnings(where, location)

"""Events of a prepared log, and what ``prepare`` has said about it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.auditing.events import Events, Values, encode_keys
from longrec.auditing.finding import NOTICE, Finding
from longrec.auditing.item_table import rank_otherwise
from longrec.data.facts import read_facts
from longrec.data.log import Log
from longrec.errors import DataError
from longrec.features.feature_encoders import Lists


def read_prepared(log: Log) -> Events:
    """Return the events of a prepared log. Events of one time are in the order of the input, or in the declared one.

    Raises:
        DataError: a log without users or items.
    """
    if log.schema.user is None or log.schema.item is None:
        raise DataError(str(log.folder), "a log without a user or an item", "both, to audit it")
    ranks, keys = encode_keys(log.items.keys.values)
    table = np.append(-1, ranks)  # row 0 of the table of items is no item
    items = table[np.asarray(log.events.columns["item"])]
    kept = np.flatnonzero(items >= 0)
    users = np.repeat(np.arange(len(log.events.offsets) - 1), np.diff(log.events.offsets))
    features, item_features = {}, {}
    for name, feature in log.schema.features.items():
        if feature.feedback or log.schema.column(name) in (log.schema.user, log.schema.item):
            continue
        if name in log.items.columns and not isinstance(log.items.columns[name], Lists):
            item_features[name] = _to_values(np.asarray(log.items.columns[name])[1:][np.argsort(ranks)])
        elif log.schema.in_row(name) and name in log.events.columns:
            features[name] = _to_values(np.asarray(log.events.columns[name])[kept])
    labels = np.asarray(log.labels, np.float64)[kept]
    return Events(
        user=users[kept],
        item=items[kept],
        row=kept,
        time=None if log.schema.time is None else np.asarray(log.events.times)[kept],
        label=None if log.schema.label is None else labels,
        split=np.asarray(log.splits)[kept],
        features={name: values for name, values in features.items() if values.array.ndim == 1},
        item_features={name: values for name, values in item_features.items() if values.array.ndim == 1},
        item_keys=keys,
        item_texts=rank_otherwise(keys),
    )


def _to_values(array: NDArray[Any]) -> Values:
    return Values(array.astype(np.float64))


def list_warnings(log: Log) -> list[Finding]:
    """Return the warnings of ``prepare`` as one finding. Empty without any."""
    warnings = list(dict.fromkeys([*log.warnings, *read_facts(log.folder).warnings]))
    if not warnings:
        return []
    figure, text = f"{len(warnings)}", "; ".join(warnings)
    why = f"longrec prepare has measured on this log: {text}."
    return [Finding("prepare", "warnings of longrec prepare", figure, "notice 1", NOTICE, float(len(warnings)), why)]

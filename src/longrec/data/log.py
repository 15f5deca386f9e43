"""Prepared log: memory-mapped events, users and items, with access to the history before each row.

A sample is an event row with a label. Its history is not stored: it is the last N events of the same user strictly
before the timestamp of the row, or strictly before the row in the order that the schema declares (``time.order``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.data.availability import clamp_to_available, expand_ranges, select_events, select_last_available
from longrec.data.early_copies import warn_of_early_copies
from longrec.data.event_order import EventOrder
from longrec.data.knowledge_join import KnowledgeFeature
from longrec.data.sample_weights import open_weights
from longrec.data.splits import SPLITS
from longrec.data.token_join import TokenHistory
from longrec.data.training_window import ExcludedRows, TrainingWindow, window_from_cutoffs, window_from_rows
from longrec.errors import DataError, UnknownName
from longrec.features.column_delays import Delay, compute_column_delays
from longrec.features.entity_table import EntityTable, load_lists, open_array
from longrec.features.entity_versions import find_first_from
from longrec.features.fields import AVAILABLE, Fields
from longrec.features.fitted_schema import FittedSchema, copy_time_unit
from longrec.features.history_columns import NEVER, compute_filter_delay
from longrec.features.manifest import read_manifest
from longrec.features.schema import Schema
from longrec.store.disclosure import assess_disclosure, merge_column_delays
from longrec.store.knowledge_store import KnowledgeInfo, KnowledgeStore
from longrec.store.segment import Segment
from longrec.store.token_store import TokenInfo, TokenStore

FORMAT = "longrec-log-1"
_ROWS = 65_536
"""Number of rows whose histories are in memory together when only their lengths are computed."""
_CHUNK = 1 << 21
"""Number of rows that are processed together."""


class Log:
    """A prepared log, opened for reading.

    Attributes:
        events: all events, sorted by (user row, time). A row of the log is an index into them.
        labels: label of each row, float32 ``[n]``. NaN for rows that are not samples.
        splits: split code of each row, int8 ``[n]``: 0 train, 1 valid, 2 test.
        timestamps: timestamp as of which the features of each row are read (the start of its request), int64 ``[n]``.
        available: timestamp from which each event is visible, int64 ``[n]``, ``NEVER`` for candidates. None: its own.
        order: declared order of events with equal timestamps, or None.
        tokens: token histories by name.
        knowledge: features read from knowledge stores, by name.
        warnings: one warning per reason why metrics measured on this log may be wrong.
        weights: sample weights by column of ``data.weights``, each float32 ``[n]``.
        sample_weight: sample weights of the loss, added to batches. None if training uses none.
        train_from: timestamp of the first row to train on. None for all rows of the split.
    """

    def __init__(self, folder: Path, fitted: FittedSchema) -> None:
        self.folder, self.fitted = folder, fitted
        self.schema = fitted.schema
        self.users, self.items = EntityTable.load(folder / "users"), EntityTable.load(folder / "items")
        self.events = Segment.open(folder / "events")
        self.labels, self.splits = open_array(folder / "label.npy"), open_array(folder / "split.npy")
        self.timestamps = open_array(folder / "moment.npy") if (folder / "moment.npy").exists() else self.events.times
        self.lists = load_lists(folder / "lists")
        self.available: NDArray[np.int64] | None = self.events.columns.get(AVAILABLE)
        self.order = EventOrder.open(folder)
        self._filtered_rows: dict[str, NDArray[np.int64]] = {}
        self.tokens: dict[str, TokenHistory] = {}
        self.knowledge: dict[str, KnowledgeFeature] = {}
        self.warnings: list[str] = []
        self._excluded: dict[str, ExcludedRows] = {}
        self._cutoffs: dict[str, NDArray[np.int64]] = {}
        self.weights: Mapping[str, NDArray[np.float32]] = {}
        self.sample_weight: NDArray[np.float32] | None = None
        self.train_from: int | None = None

    @classmethod
    def open(
        cls,
        folder: str | Path,
        schema: Schema | None = None,
        *,
        stores: bool = True,
        sample_weight: str | None = None,
    ) -> Log:
        """Open a folder that ``prepare`` wrote.

        Args:
            schema: the schema of the prepared log with other embedding widths or history lengths. Default: that schema.
            sample_weight: column of ``data.weights`` that weights the rows in the loss.
            stores: open the token and knowledge stores of the schema. Without them no batch can be built.

        Raises:
            DataError: no prepared log in the folder, or one of another format.
        """
        folder = Path(folder)
        manifest = read_manifest(folder / "log.json", FORMAT, "a prepared log", "run longrec prepare", DataError)
        fitted = FittedSchema.load(folder / "schema")
        if schema is not None:
            fitted = FittedSchema(copy_time_unit(schema, fitted.schema), fitted.encoders)
        log = cls(folder, fitted)
        log.manifest = manifest
        log.warnings = [*manifest.get("warnings", ()), *log._warn_of_early_copies(manifest.get("label_copies", ()))]
        log.weights = open_weights(folder, manifest.get("weights", ()))
        if sample_weight is not None:
            log.sample_weight = log.weight_of(sample_weight)
        if stores:
            log.open_stores()
        return log

    def open_stores(self) -> None:
        """Open the token and knowledge stores of the schema, as ``read_tokens`` and ``read_knowledge`` do."""
        for name, history in self.schema.histories.items():
            if history.source is not None:
                self.read_tokens(name, TokenStore.open(history.source))
        sources = {feature.source for feature in self.schema.features.values() if feature.source is not None}
        opened = {source: KnowledgeStore.open(source) for source in sorted(sources)}
        for name, feature in self.schema.features.items():
            if feature.source is not None:
                self.read_knowledge(name, opened[feature.source])

    def _warn_of_early_copies(self, names: Sequence[str]) -> list[str]:
        """Return one warning per copy of the label (``data/label_copies.py``) that is available before the label."""
        rows = np.flatnonzero(~np.isnan(self.labels)) if names else np.zeros(0, np.int64)
        rows = rows[:: max(len(rows) // 1_000, 1)]
        times, columns = self.events.times.take(rows), self.events.columns
        late = self.label_time(rows)
        return warn_of_early_copies(self.schema, names, columns, rows, times, late, self.clamp_to_available)

    def read_tokens(self, name: str, store: TokenStore) -> None:
        """Read the token history ``name`` from a store.

        Raises:
            DataError: a store that does not fit the log (keys, time unit), or that leaks.
        """
        history = TokenHistory(store, self.schema, name, self.users.keys, f"histories.{name}")
        self.tokens[name] = history
        self.warnings += history.warnings
        self.fitted.tokens[name] = history.spec

    def read_knowledge(self, name: str, store: KnowledgeStore) -> None:
        """Read the embedding feature ``name`` from a store.

        Raises:
            DataError: a store that does not fit the log (keys, time unit), or that leaks.
        """
        table = self.schema.side(name)
        keys = self.users.keys if table == "user" else self.items.keys
        self.knowledge[name] = KnowledgeFeature(store, self.schema, table, keys, f"features.{name}")
        self.fitted.knowledge[name] = self.knowledge[name].width
        self.warnings += self.knowledge[name].warnings

    manifest: dict[str, Any]

    def __len__(self) -> int:
        return len(self.labels)

    def fields(self) -> Fields:
        """Return the fields that a model reads."""
        return self.fitted.fields()

    def weight_of(self, column: str) -> NDArray[np.float32]:
        """Return a column of sample weights, float32 ``[n]``.

        Raises:
            DataError: the log was prepared without this column.
        """
        if column not in self.weights:
            names = ", ".join(self.weights) or "none"
            raise DataError(
                str(self.folder), f"no sample weight {column!r}", f"one of: {names}", "prepare the log again"
            )
        return self.weights[column]

    def rows_of(self, split: str) -> NDArray[np.int64]:
        """Return the row indices of the samples of a split, int64, in the order of the log (by user, then time).

        Rows of train and valid whose label was not available in time are excluded: see ``data/training_window.py``.
        """
        if split not in SPLITS:
            raise UnknownName("split", split, SPLITS)
        chosen = (self.splits == SPLITS[split]) & ~np.isnan(self.labels)
        chosen[self.excluded_rows(split).rows] = False
        if split == "train" and self.train_from is not None:
            chosen &= np.asarray(self.timestamps) >= self.train_from
        return np.flatnonzero(chosen)

    def excluded_rows(self, split: str) -> ExcludedRows:
        """Return the labeled rows that ``rows_of`` excludes because of late labels, with counts by reason."""
        if split not in self._excluded:
            self._excluded[split] = (
                ExcludedRows(np.zeros(0, np.int64)) if split == "test" else self._find_late_rows(split)
            )
        return self._excluded[split]

    def _find_late_rows(self, split: str) -> ExcludedRows:
        ends = self.training_window.train if split == "train" else self.training_window.valid
        # A label without delay is available before a cutoff if its row is, unless a request crosses the cutoff.
        early = self.manifest.get("lines") and not self.has_delayed_labels and self.timestamps is self.events.times
        if early or (ends == NEVER).all():
            return ExcludedRows(np.zeros(0, np.int64))
        excluded, late_labels, late_rows = [np.zeros(0, np.int64)], 0, 0
        for at in range(0, len(self), _CHUNK):
            chunk = slice(at, at + _CHUNK)
            rows = at + np.flatnonzero((self.splits[chunk] == SPLITS[split]) & ~np.isnan(self.labels[chunk]))
            end = ends if len(ends) == 1 else ends.take(self.user(rows))
            label_times, times = self.label_time(rows), self.events.times.take(rows)
            late, itself = label_times >= end, times >= end
            late &= ~(self.precedes_cutoff(split, rows) & (label_times == times))
            excluded.append(rows[late])
            late_rows += int((late & itself).sum())
            late_labels += int((late & ~itself).sum())
        return ExcludedRows(np.concatenate(excluded), late_labels, late_rows)

    def precedes_cutoff(self, split: str, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether the declared order puts each row before the end of its user's window.

        The rows of a window with one end for all users, and those of a log without an order, are only compared in time.
        """
        ends = self.training_window.train if split == "train" else self.training_window.valid
        if self.order is None or len(ends) == 1:
            return np.zeros(len(rows), bool)
        if split not in self._cutoffs:
            codes = np.asarray(self.splits)
            later = codes > SPLITS["train"] if split == "train" else codes == SPLITS["test"]
            self._cutoffs[split] = self.order.find_cutoffs(later & ~np.isnan(self.labels), self.events.offsets)
        return rows < self._cutoffs[split].take(self.user(rows))

    @cached_property
    def training_window(self) -> TrainingWindow:
        """Timestamps before which labels must be available for training and validation, computed on first use."""
        if self.manifest.get("lines"):
            first, second = self.manifest["lines"]
            counts = self.manifest["parts"]
            return window_from_cutoffs((first, second), counts["valid"]["samples"], counts["test"]["samples"])
        if self.schema.time is None:
            return TrainingWindow(np.array([NEVER]), np.array([NEVER]), NEVER, NEVER)
        codes, labeled = np.asarray(self.splits), ~np.isnan(self.labels)
        return window_from_rows(codes, labeled, self.events.times, self.timestamps, self.events.offsets)

    @cached_property
    def excluded_counts(self) -> dict[str, dict[str, int]]:
        """Number of excluded labeled rows of train and valid, by reason. Empty if there are none."""
        excluded = {split: self.excluded_rows(split) for split in ("train", "valid")}
        return {
            split: {"label_not_known": out.late_labels, "not_before_measured": out.late_rows}
            for split, out in excluded.items()
            if len(out.rows)
        }

    def user(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the row index of each row's user in the user table, int64."""
        return np.searchsorted(self.events.offsets, rows, side="right") - 1

    def label_time(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the timestamp at which the label of each row became available, int64.

        It is read from the ``available_at`` column of a feedback feature of the label column if there is one. Else it
        is the event time plus the delay. It is never before the event was available.
        """
        times, own = self.events.times.take(rows), self.schema.label_available_at
        if own is None:
            return self.clamp_to_available(times + self.schema.longest_label_delay, rows)
        return self.clamp_to_available(np.maximum(self.events.columns[f"known.{own}"].take(rows), times), rows)

    @property
    def has_delayed_labels(self) -> bool:
        """True if a label may become available later than its event."""
        return (
            self.schema.label_available_at is not None
            or self.schema.longest_label_delay > 0
            or self.available is not None
        )

    def clamp_to_available(self, timestamps: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the later of each timestamp and the time at which the event of its row became available, ``[B]``."""
        return timestamps if self.available is None else clamp_to_available(timestamps, self.available.take(rows))

    def select_history(self, name: str, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the events of the history of each row: concatenated row indices ``[N]`` and offsets ``[B + 1]``.

        A history has only events that happened and were available strictly before the timestamp of the row. Ties and
        events of the same request are excluded, except those before the row in the order that the schema declares.
        """
        users, timestamps = self.user(rows), self.timestamps.take(rows)
        return self._select(name, timestamps, *self._range(name, users, timestamps, rows))

    def select_history_at(
        self,
        name: str,
        users: NDArray[np.int64],
        timestamps: NDArray[np.int64],
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the events of the history of each user strictly before a timestamp, as ``select_history`` does.

        Args:
            users: row indices in the user table, int64 ``[B]``.
            timestamps: timestamp per user, int64 ``[B]``.
        """
        return self._select(name, timestamps, *self._range(name, users, timestamps))

    def _select(
        self, name: str, timestamps: NDArray[np.int64], first: NDArray[np.int64], stop: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the last events of each range that were available before a timestamp."""
        kept, last = self.select_filtered(name), self.schema.histories[name].max_length
        if self.readable is None:
            first = np.maximum(first, stop - last)
            at, offsets = expand_ranges(first, stop - first)
        else:
            available = self.readable if kept is None else self.readable.take(kept)
            at, offsets = select_last_available(first, stop, timestamps, last, available)
        return at if kept is None else kept.take(at), offsets

    def compute_history_lengths(self, name: str, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of events in the history of each row, int64 ``[B]``."""
        last = self.schema.histories[name].max_length
        if self.schema.prejoined:
            offsets = self.lists[f"{name}.{self.schema.histories[name].features[0]}"].offsets
            return np.minimum(offsets.take(rows + 1) - offsets.take(rows), last)
        if self.available is None:
            first, stop = self._range(name, self.user(rows), self.timestamps.take(rows), rows)
            return np.minimum(stop - first, last)
        chunks = [np.diff(self.select_history(name, rows[at : at + _ROWS])[1]) for at in range(0, len(rows), _ROWS)]
        return np.concatenate([np.zeros(0, np.int64), *chunks])

    def history_range(self, name: str, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the first and the last position plus one of each row's whole history, without its maximum length.

        Positions count the events that pass the filter of the history (``select_filtered``). Late events are ignored:
        a log that has some has no range.
        """
        return self._range(name, self.user(rows), self.timestamps.take(rows), rows)

    @cached_property
    def readable(self) -> NDArray[np.int64] | None:
        """Timestamp after which histories hold each event, int64 ``[n]``, or None if no event is late."""
        if self.available is None or self.order is None:
            return self.available
        # By order, an event that is not late may be read at its own timestamp.
        return np.where(self.available == self.events.times, self.available - 1, self.available)

    def _range(
        self,
        name: str,
        users: NDArray[np.int64],
        timestamps: NDArray[np.int64],
        rows: NDArray[np.int64] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the index range of each user's events before a timestamp, within the events that pass the filter.

        Args:
            rows: rows of the log that read the histories, int64 ``[B]``. The range ends before them.
        """
        first = self.events.offsets[users]
        delay = compute_filter_delay(self.fitted, name)
        if rows is not None and self.order is not None and delay == 0:
            stop = self.order.first_tied.take(rows)
        else:
            below = self.events.offsets[users + 1] if rows is None else rows
            stop = find_first_from(self.events.times, first, below, timestamps - delay)
        kept = self.select_filtered(name)
        return (first, stop) if kept is None else (np.searchsorted(kept, first), np.searchsorted(kept, stop))

    def select_filtered(self, name: str) -> NDArray[np.int64] | None:
        """Return the row indices of the events that pass the filter of a history, or None without a filter."""
        where = self.events.columns[f"where.{name}"] if self.schema.histories[name].where else None
        never = self.available if self.schema.candidate is not None else None
        if where is None and never is None:
            return None
        if name not in self._filtered_rows:
            self._filtered_rows[name] = select_events(where, never)
        return self._filtered_rows[name]

    @property
    def leak(self) -> str:
        """Description of a leak through the stores that this log reads, or an empty string."""
        names = [name for name, info in self._read_stores().items() if assess_disclosure(info, self.schema).leaks]
        return f"written by a source model that reads a leaking store ({', '.join(names)})" if names else ""

    @property
    def column_delays(self) -> Mapping[str, Delay] | None:
        """Earliest availability of each raw column in the output of a model of this log. None if it is unknown."""
        return merge_column_delays(compute_column_delays(self.schema), self._read_stores().values())

    def _read_stores(self) -> dict[str, TokenInfo | KnowledgeInfo]:
        own = {name: history.store.info for name, history in self.tokens.items()}
        return {**own, **{name: feature.store.info for name, feature in self.knowledge.items()}}

    @cached_property
    def sample_count(self) -> dict[str, int]:
        """Number of samples per split."""
        return {split: len(self.rows_of(split)) for split in SPLITS}

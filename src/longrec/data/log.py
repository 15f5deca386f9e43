"""The prepared log: memory-mapped events, users and items, and the history before each row.

A sample is an event row. Its history is a view: the last N events of the same user strictly before its timestamp.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.data.availability import expand_ranges, select_last_available
from longrec.data.knowledge_join import KnowledgeFeature
from longrec.data.sample_weights import open_weights
from longrec.data.splits import SPLITS
from longrec.data.token_join import TokenHistory
from longrec.data.training_window import ExcludedRows, TrainingWindow, window_from_cutoffs, window_from_rows
from longrec.errors import DataError, UnknownName
from longrec.features.column_delays import Delay, compute_column_delays
from longrec.features.entity_table import EntityTable, load_column, open_array
from longrec.features.entity_versions import find_first_from
from longrec.features.feature_encoders import Lists
from longrec.features.fields import AVAILABLE, Fields
from longrec.features.fitted_schema import FittedSchema
from longrec.features.history_columns import NEVER, compute_filter_delay
from longrec.features.manifest import read_manifest
from longrec.features.schema import Schema
from longrec.store.disclosure import assess_disclosure, merge_column_delays
from longrec.store.knowledge_store import KnowledgeInfo, KnowledgeStore
from longrec.store.segment import Segment
from longrec.store.token_store import TokenInfo, TokenStore

FORMAT = "longrec-log-1"
_ROWS = 65_536
"""Rows whose histories are held at once when only their lengths are wanted."""
_CHUNK = 1 << 21
"""Rows that are processed together."""


class Log:
    """A prepared log, opened for reading.

    Attributes:
        events: all events, sorted by (user row, time); a row is a place in it.
        labels: float32 ``[n]``, NaN where the row is no sample.
        splits: int8 ``[n]``: 0 train, 1 valid, 2 test.
        timestamps: int64 ``[n]``: the time as of which a row's features are taken (the start of its request).
        available: int64 ``[n]``: from when on each event could be read, never before its own time; None where every
            event was available at once.
        tokens: where the token histories are read.
        knowledge: where the vector features are read.
        warnings: one sentence per fact that makes numbers measured on this log worth less than they look.
        weights: float32 ``[n]`` by name: the columns of ``data.weights``.
        sample_weight: that of the loss, where training names one; batches then carry it.
    """

    def __init__(self, folder: Path, fitted: FittedSchema) -> None:
        self.folder, self.fitted = folder, fitted
        self.schema = fitted.schema
        self.users, self.items = EntityTable.load(folder / "users"), EntityTable.load(folder / "items")
        self.events = Segment.open(folder / "events")
        self.labels, self.splits = open_array(folder / "label.npy"), open_array(folder / "split.npy")
        has_request_times = (folder / "moment.npy").exists()
        self.timestamps = open_array(folder / "moment.npy") if has_request_times else self.events.times
        self.lists = {
            path.name.removesuffix(".offsets.npy"): _lists(path) for path in (folder / "lists").glob("*.offsets.npy")
        }
        self.available: NDArray[np.int64] | None = self.events.columns.get(AVAILABLE)
        self._filtered_rows: dict[str, NDArray[np.int64]] = {}
        self.tokens: dict[str, TokenHistory] = {}
        self.knowledge: dict[str, KnowledgeFeature] = {}
        self.warnings: list[str] = []
        self._excluded: dict[str, ExcludedRows] = {}
        self.weights: Mapping[str, NDArray[np.float32]] = {}
        self.sample_weight: NDArray[np.float32] | None = None

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
            schema: the same schema with other widths or history lengths; default the one it was prepared with.
            sample_weight: column of ``data.weights`` that weighs the rows of a loss.
            stores: open the token and knowledge stores that the schema names; without them no batch can be made.

        Raises:
            DataError: no prepared log, or one of another format.
        """
        folder = Path(folder)
        manifest = read_manifest(folder / "log.json", FORMAT, "a prepared log", "run longrec prepare", DataError)
        fitted = FittedSchema.load(folder / "schema")
        if schema is not None:
            fitted = FittedSchema(_with_unit(schema, fitted.schema), fitted.encoders)
        log = cls(folder, fitted)
        log.manifest = manifest
        log.warnings = [*manifest.get("warnings", ()), *log._warn_of_early_copies(manifest.get("label_copies", ()))]
        log.weights = open_weights(folder, manifest.get("weights", ()))
        if sample_weight is not None:
            log.sample_weight = log.weight_of(sample_weight)
        if not stores:
            return log
        for name, history in log.schema.histories.items():
            if history.source is not None:
                log.read_tokens(name, TokenStore.open(history.source))
        opened: dict[str, KnowledgeStore] = {}
        for name, feature in log.schema.features.items():
            if feature.source is not None:
                if feature.source not in opened:
                    opened[feature.source] = KnowledgeStore.open(feature.source)
                log.read_knowledge(name, opened[feature.source])
        return log

    def _warn_of_early_copies(self, names: Sequence[str]) -> list[str]:
        """Return one sentence per copy of the label (``data/label_copies.py``) that is available before the label."""
        rows = np.flatnonzero(~np.isnan(self.labels)) if names else np.zeros(0, np.int64)
        rows = rows[:: max(len(rows) // 1_000, 1)]
        messages, read = [], self.schema.histories.values()
        for name in names:
            if not any(name in history.features or self.schema.column(name) in history.where for history in read):
                continue
            own = self.events.columns.get(f"known.{name}")
            available_at = (
                self.events.times.take(rows) + self.schema.available_after(name) if own is None else own.take(rows)
            )
            if (self.clamp_to_available(available_at, rows) < self.label_time(rows)).any():
                messages.append(
                    f"feature {name!r} predicts the label as well as the label itself and is available before "
                    "it, so histories that read it reveal labels early; give it the delay of the label "
                    "(available_after), or drop it"
                )
        return messages

    def read_tokens(self, name: str, store: TokenStore) -> None:
        """Read the token history ``name`` from a store.

        Raises:
            DataError: a store of other keys or another unit of time.
        """
        history = TokenHistory(store, self.schema, name, self.users.keys, f"histories.{name}")
        self.tokens[name] = history
        self.warnings += history.warnings
        self.fitted.tokens[name] = history.spec

    def read_knowledge(self, name: str, store: KnowledgeStore) -> None:
        """Read the embedding feature ``name`` from a store.

        Raises:
            DataError: a store of other keys or another unit of time.
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
        """Return float32 ``[n]``: a column of sample weights.

        Raises:
            DataError: the log was prepared without it.
        """
        if column not in self.weights:
            names = ", ".join(self.weights) or "none"
            raise DataError(
                str(self.folder), f"no sample weight {column!r}", f"one of: {names}", "prepare the log again"
            )
        return self.weights[column]

    def rows_of(self, split: str) -> NDArray[np.int64]:
        """Return int64 rows of the samples of train, valid or test, in the order of the log (by user, then time).

        Rows of train and valid whose label was not available in time are left out: see ``data/training_window.py``.
        """
        if split not in SPLITS:
            raise UnknownName("split", split, SPLITS)
        chosen = (self.splits == SPLITS[split]) & ~np.isnan(self.labels)
        chosen[self.excluded_rows(split).rows] = False
        return np.flatnonzero(chosen)

    def excluded_rows(self, split: str) -> ExcludedRows:
        """Return the labeled rows of a split that ``rows_of`` leaves out, and the reasons."""
        if split not in self._excluded:
            self._excluded[split] = (
                ExcludedRows(np.zeros(0, np.int64)) if split == "test" else self._find_late_rows(split)
            )
        return self._excluded[split]

    def _find_late_rows(self, split: str) -> ExcludedRows:
        ends = self.training_window.train if split == "train" else self.training_window.valid
        # Labels without delay are available before a line if their row is, unless a request crosses the line.
        early = (
            bool(self.manifest.get("lines")) and not self.has_delayed_labels and self.timestamps is self.events.times
        )
        if early or (ends == NEVER).all():
            return ExcludedRows(np.zeros(0, np.int64))
        excluded, late_labels, late_rows = [np.zeros(0, np.int64)], 0, 0
        for at in range(0, len(self), _CHUNK):
            chunk = slice(at, at + _CHUNK)
            rows = at + np.flatnonzero((self.splits[chunk] == SPLITS[split]) & ~np.isnan(self.labels[chunk]))
            end = ends if len(ends) == 1 else ends.take(self.user(rows))
            late, itself = self.label_time(rows) >= end, self.events.times.take(rows) >= end
            excluded.append(rows[late])
            late_rows += int((late & itself).sum())
            late_labels += int((late & ~itself).sum())
        return ExcludedRows(np.concatenate(excluded), late_labels, late_rows)

    @cached_property
    def training_window(self) -> TrainingWindow:
        """The timestamps before which labels must be available to train and to validate, computed on first use."""
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
        """Labeled rows of train and valid that are left out, by reason. Empty if there are none."""
        excluded = {split: self.excluded_rows(split) for split in ("train", "valid")}
        return {
            split: {"label_not_known": out.late_labels, "not_before_measured": out.late_rows}
            for split, out in excluded.items()
            if len(out.rows)
        }

    def user(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the int64 user row of each row."""
        return np.searchsorted(self.events.offsets, rows, side="right") - 1

    def label_time(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the int64 timestamp at which the label of each row became available.

        It is the label column's own ``available_at`` if some feedback feature names it, else the event's time plus its
        delay. It is never before the event was available.
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
        """Return timestamps of rows ``[B]``, raised to the timestamp at which each row's event became available."""
        return timestamps if self.available is None else np.maximum(timestamps, self.available.take(rows))

    def select_history(self, name: str, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the events of the history of each row: concatenated rows of the log ``[N]`` and offsets ``[B + 1]``.

        Only events strictly before the row's timestamp that were also available strictly before it: ties and its own
        request are not among them.
        """
        return self.select_history_at(name, self.user(rows), self.timestamps.take(rows), rows)

    def select_history_at(
        self,
        name: str,
        users: NDArray[np.int64],
        timestamps: NDArray[np.int64],
        below: NDArray[np.int64] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the events of the history of each user at a timestamp, as ``select_history`` does.

        Args:
            users: int64 ``[B]`` rows of the user table.
            timestamps: int64 ``[B]``.
            below: int64 ``[B]``: rows at or after which no event is selected, if given.
        """
        first, stop = self._range(name, users, timestamps, below)
        kept, last = self._select_filtered(name), self.schema.histories[name].max_length
        if self.available is None:
            first = np.maximum(first, stop - last)
            at, offsets = expand_ranges(first, stop - first)
        else:
            available = self.available if kept is None else self.available.take(kept)
            at, offsets = select_last_available(first, stop, timestamps, last, available)
        return at if kept is None else kept.take(at), offsets

    def compute_history_lengths(self, name: str, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return int64 ``[B]``: the number of events in the history of each row."""
        last = self.schema.histories[name].max_length
        if self.available is None:
            first, stop = self._range(name, self.user(rows), self.timestamps.take(rows), rows)
            return np.minimum(stop - first, last)
        chunks = [np.diff(self.select_history(name, rows[at : at + _ROWS])[1]) for at in range(0, len(rows), _ROWS)]
        return np.concatenate([np.zeros(0, np.int64), *chunks])

    def _range(
        self, name: str, users: NDArray[np.int64], timestamps: NDArray[np.int64], below: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the start and end of all events before a timestamp, counted among those that pass the filter."""
        first = self.events.offsets[users]
        delay = compute_filter_delay(self.fitted, name)
        below = self.events.offsets[users + 1] if below is None else below
        stop = find_first_from(self.events.times, first, below, timestamps - delay)
        kept = self._select_filtered(name)
        return (first, stop) if kept is None else (np.searchsorted(kept, first), np.searchsorted(kept, stop))

    def _select_filtered(self, name: str) -> NDArray[np.int64] | None:
        """Return the rows of the events that pass the filter of a history, or None without a filter."""
        if not self.schema.histories[name].where:
            return None
        if name not in self._filtered_rows:
            self._filtered_rows[name] = np.flatnonzero(self.events.columns[f"where.{name}"])
        return self._filtered_rows[name]

    @property
    def leak(self) -> str:
        """Reason why models that read this log's stores see more than they should. Empty if they do not."""
        names = [name for name, info in self._read_stores().items() if assess_disclosure(info, self.schema).leaks]
        return f"written by a source that reads a store which leaks ({', '.join(names)})" if names else ""

    @property
    def column_delays(self) -> Mapping[str, Delay] | None:
        """Earliest time a model of this log, with its stores, can disclose each raw column. None if it is unknown."""
        return merge_column_delays(compute_column_delays(self.schema), self._read_stores().values())

    def _read_stores(self) -> dict[str, TokenInfo | KnowledgeInfo]:
        own = {name: history.store.info for name, history in self.tokens.items()}
        return {**own, **{name: feature.store.info for name, feature in self.knowledge.items()}}

    @cached_property
    def sample_count(self) -> dict[str, int]:
        """Number of samples per split."""
        return {split: len(self.rows_of(split)) for split in SPLITS}


def _with_unit(schema: Schema, prepared: Schema) -> Schema:
    """Return a schema with the unit of time that preparation detected if the size of the numbers does not show it."""
    if schema.time is None or prepared.time is None or schema.time.unit != "auto":
        return schema
    return schema.model_copy(update={"time": schema.time.model_copy(update={"unit": prepared.time.unit})})


def _lists(path: Path) -> Lists:
    name = path.name.removesuffix(".offsets.npy")
    weighted = path.with_name(f"{name}.weights.npy").exists()
    column = load_column(path.parent, name, "weighted" if weighted else "lists")
    assert isinstance(column, Lists)
    return column

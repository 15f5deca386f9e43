"""Preparation of an event log: sorting, fitting of encoders on the training split, and encoding of columns.

The sorted log (``data/sorted_log.py``) is read in three streaming passes: columns, fit, encode. Histories are never
materialized.
"""

from __future__ import annotations

import collections
import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longrec.data import later_rows, relation, splits
from longrec.data.availability import select_available_events
from longrec.data.digests import FORMAT, log_digest, split_digest
from longrec.data.entities import Entities, add_values
from longrec.data.event_columns import write_event_columns
from longrec.data.event_encoder import EventEncoder, flatten_listed
from longrec.data.event_order import EventOrder
from longrec.data.fact_counts import compute_facts
from longrec.data.fingerprint import ContentIndex, fingerprint
from longrec.data.label_checks import check_labels, describe_label
from longrec.data.label_copies import find_label_copies
from longrec.data.log import Log
from longrec.data.null_counts import NullCounts, compute_states
from longrec.data.occurrence import Filters, check_condition, vocabulary_warnings
from longrec.data.sample_weights import write_weights
from longrec.data.scratch import SCRATCH, in_use, sweep
from longrec.data.settings import DataConfig
from longrec.data.sorted_log import SortedLog, chunk_rows
from longrec.data.sorted_writer import write_sorted_log
from longrec.errors import DataError
from longrec.features.compose import compose_column, find_integer_columns
from longrec.features.encoder_fitter import EncoderFitter
from longrec.features.entity_table import open_array
from longrec.features.feature_encoders import CrossEncoder, Encoder, HashEncoder
from longrec.features.fitted_schema import FittedSchema
from longrec.features.schema import Schema


def prepare(config: DataConfig, schema: Schema, on_prepared: Callable[[Path], None] | None = None) -> Path:
    """Prepare a log, or reuse a log that was prepared from the same input and schema.

    Args:
        on_prepared: called with the folder if the log was not prepared before.

    Returns:
        Folder of the prepared log.

    Raises:
        DataError: invalid input. No files remain.
    """
    root = Path(config.folder)
    root.mkdir(parents=True, exist_ok=True)
    sweep(root)
    with tempfile.TemporaryDirectory(dir=root, prefix=SCRATCH) as scratch, in_use(Path(scratch)):
        with contextlib.ExitStack() as connection:
            # Opened when it is needed: that takes longer than everything else where a prepared log is reused.
            connect = cache(
                lambda: connection.enter_context(contextlib.closing(relation.connect(config, Path(scratch))))
            )
            files = ContentIndex(root)
            sources = fingerprint(config, connect, files)
            folder = root / log_digest(config, schema, sources)
            if (folder / "log.json").exists():
                files.save(Path(scratch))
                return folder
            build, began = Path(scratch) / "log", time.perf_counter()
            write_sorted_log(connect(), config, schema, Path(scratch), Path(scratch) / "sorted")
            rule = split_digest(config.split, sources)
            _Preparation(config, schema, SortedLog(Path(scratch) / "sorted"), build, rule).run(began)
            files.check()
        try:
            build.rename(folder)
        except OSError:
            # Another process has prepared the same log in the meantime, so its folder is used.
            if not (folder / "log.json").exists():
                raise
            shutil.rmtree(build)
        files.save(Path(scratch))
    if on_prepared is not None:
        on_prepared(folder)
    return folder


class _Preparation:
    def __init__(self, config: DataConfig, schema: Schema, log: SortedLog, build: Path, rule: str) -> None:
        self.split_digest, self.later = rule, list[later_rows.LaterShare]()
        self.config, self.schema, self.log, self.build = config, log.set_unit(schema), log, build
        self.users, self.items = Entities("user", self.schema, log.users), Entities("item", self.schema, log.items)
        self.step = schema.time is not None and schema.time.unit == "step"
        self.warnings: list[str] = []
        (build / "events").mkdir(parents=True)
        (build / "lists").mkdir()

    def run(self, began: float) -> None:
        self._write_columns()
        self._split()
        write_weights(self.log, self.config.weights, self.build, chunk_rows(self.schema))
        fitted = FittedSchema(self.schema, self._fit())
        fitted.save(self.build / "schema")
        users_table, items_table = self.users.encode(fitted), self.items.encode(fitted)
        users_table.save(self.build / "users")
        items_table.save(self.build / "items")
        self.nulls = NullCounts()
        self._encode(fitted)
        for entities in (self.users, self.items):
            self.nulls.entities |= entities.mask_nulls()
        encoded = [{**table.columns, **table.dated} for table in (users_table, items_table)]
        self.warnings += vocabulary_warnings(fitted, self.build, encoded)
        log = Log(self.build, fitted)
        warnings, self.label_copies = find_label_copies(log)
        self.warnings += warnings
        spans = self._manifest(fitted, time.perf_counter() - began)
        compute_facts(log, spans, self.nulls).save(self.build)

    def _chunks(self, what: str, columns: list[str]) -> Iterator[tuple[slice, pa.RecordBatch]]:
        return self.log.read(columns, chunk_rows(self.schema), what)

    def _write_columns(self) -> None:
        arguments = (self._chunks, self.users.keys, self.items.keys, self.log.source)
        self.counts, warnings = write_event_columns(self.build, self.schema, *arguments)
        self.warnings += warnings
        label = self.schema.label
        if label is not None and (label.equals is not None or label.at_least is not None):
            met = bool((open_array(self.build / "label.npy") > 0.5).any())
            check_condition(label, met, self.log)

    def _split(self) -> None:
        rule, where = self.config.split, self.log.source
        offsets, labels = np.load(self.build / "events" / "offsets.npy"), open_array(self.build / "label.npy")
        times = open_array(self.build / "events" / "times.npy")
        timestamps = open_array(self.build / "moment.npy") if self.schema.request else times
        self.cutoffs: tuple[int, int] | None = None
        if rule.by == "time":
            if self.schema.time is None:
                fault = "a split by time, but the schema has no time column"
                raise DataError(where, fault, "a time column, or a split by column or user")
            self.cutoffs = splits.compute_time_cutoffs(rule, timestamps, self.step, where, self.schema.time)
            codes = splits.split_by_time(timestamps, self.cutoffs)
        elif rule.by == "user":
            codes = np.repeat(splits.split_by_user(rule, self.users.keys.values), self.counts[1:])
        elif rule.by == "leave_one_out":
            codes = splits.split_leave_one_out(offsets, ~np.isnan(labels))
        else:
            codes = np.empty(len(self.log), np.int8)
            name = str(self.log.facts.split_column)
            for chunk_slice, chunk in self._chunks("split", [f"c.{name}"]):
                codes[chunk_slice] = splits.split_by_column(chunk[f"c.{name}"], self.log.describe(name))
        if rule.by != "time":
            arguments = (rule, self.schema, where, codes, labels, times, timestamps, offsets)
            order = EventOrder.open(self.build)
            self.later, warnings = later_rows.find_later_shares(*arguments, order)
            self.warnings += warnings
        self.codes: NDArray[np.int8] = codes
        np.save(self.build / "split.npy", codes)
        self.warnings += check_labels(labels, codes, describe_label(self.schema, where))

    def _fit(self) -> dict[str, Encoder]:
        features = {name: feature for name, feature in self.schema.features.items() if not feature.source}
        fitters = {name: EncoderFitter(name, feature) for name, feature in features.items() if not feature.share}
        for name in [name for name in fitters if features[name].vocab is not None]:
            fitters[name].integers = self.log.facts.has_integers[name]
        fitters |= {name: fitters[feature.share] for name, feature in features.items() if feature.share}
        train = (self.codes == splits.TRAIN) & select_available_events(self.build / "events", self.cutoffs)
        so_far = np.concatenate([[0], np.cumsum(train, dtype=np.int32)])
        offsets, events = np.cumsum(self.counts), self.build / "events"
        timestamps = open_array(self.build / "moment.npy" if self.schema.request else events / "times.npy")
        reads = self.users.count_reads(train, lambda at: np.searchsorted(offsets, at, side="right"), timestamps)
        self.users.fit(fitters, np.diff(so_far[offsets]).astype(np.int64), reads)
        del so_far
        item_rows = open_array(events / "item.npy")
        reads = self.items.count_reads(train, item_rows.take, timestamps)
        self.items.fit(fitters, np.bincount(item_rows[train], minlength=len(self.items.keys) + 1)[1:], reads)
        self.warnings += [*self.users.warnings(), *self.items.warnings()]
        sources = self._fit_sources(fitters)
        if sources:
            wanted = {f"c.{column}" for _, columns, _ in sources for column in columns}
            groups: dict[int, list[tuple[str, tuple[str, ...], str | None]]] = {}
            for source in sources:
                groups.setdefault(id(fitters[source[0]]), []).append(source)
            with ThreadPoolExecutor(self.config.threads) as pool:
                for chunk_slice, chunk in self._chunks("fit", sorted(wanted)):
                    look = partial(self._fit_chunk, fitters, chunk, train[chunk_slice].astype(np.int64))
                    collections.deque(pool.map(look, groups.values()), maxlen=0)
        encoders = {name: fitter.finish() for name, fitter in fitters.items() if not features[name].share}
        return {name: encoders[feature.share or name] for name, feature in features.items()}

    def _fit_chunk(
        self,
        fitters: dict[str, EncoderFitter],
        chunk: pa.RecordBatch,
        train: NDArray[np.int64],
        sources: list[tuple[str, tuple[str, ...], str | None]],
    ) -> None:
        """Add one chunk of all columns of a fitter to this fitter."""
        for name, columns, listed in sources:
            where, counts = self.log.describe(columns[0]), train
            raw = {column: chunk[f"c.{column}"] for column in columns}
            if listed is not None:
                values, offsets = flatten_listed(self.log, self.schema, raw[columns[0]], name, listed, where)
                fitters[name].add(values, np.repeat(counts, np.diff(offsets)), where)
            else:
                values = self._raw_values(name, raw, fitters[name])
                add_values(fitters[name], self.schema, name, values, counts, where)

    def _raw_values(self, name: str, raw: dict[str, pa.Array], fitter: EncoderFitter) -> pa.Array:
        """Return the raw values of a feature, composed into one column if it has several."""
        feature = self.schema.features[name]
        if not feature.composed:
            return raw[self.schema.column(name)]
        if feature.kind == "cross":
            fitter.add_column_types(find_integer_columns(feature, raw, self.log.describe))
        return compose_column(feature, raw, self.log.describe)

    def _fit_sources(self, fitters: dict[str, EncoderFitter]) -> list[tuple[str, tuple[str, ...], str | None]]:
        """Return the columns to fit encoders on: (feature, raw columns, history of a prejoined list or None)."""
        needed = [name for name, fitter in fitters.items() if fitter.needs_data()]
        own = [(name, self.schema.columns(name), None) for name in needed if self.schema.in_row(name)]
        lists = [
            (name, (column,), history_name)
            for history_name, history in self.schema.histories.items()
            for name, column in (history.columns or {}).items()
            if name in needed
        ]
        return [*own, *lists]

    def _encode(self, fitted: FittedSchema) -> None:
        filters = Filters(self.schema, self.log.source)
        labels = np.where(self.codes == splits.TRAIN, open_array(self.build / "label.npy"), np.float32(np.nan))
        states = compute_states(open_array(self.build / "label.npy"), self.codes)
        plain = (n for side in ("context", "candidate") for n in fitted.list_features(side))
        numeric = {n: self.schema.column(n) for n in plain if self.schema.features[n].kind == "numeric"}

        def count_nulls(chunk_slice: slice, chunk: pa.RecordBatch) -> None:
            for name, column in numeric.items():
                self.nulls.add(name, chunk[f"c.{column}"], states[chunk_slice])

        encoder = EventEncoder(self.log, fitted, self.build, self.config.threads)
        self.warnings += encoder.write(filters, labels, count_nulls)
        self.warnings += filters.warnings(self.log)

    def _manifest(self, fitted: FittedSchema, seconds: float) -> dict[str, Any]:
        """Write the manifest, and return the first and the last timestamp of each split."""
        labels, codes = open_array(self.build / "label.npy"), self.codes
        timestamps = open_array(self.build / ("moment.npy" if self.schema.request else "events/times.npy"))
        counts, spans = splits.summarize_splits(labels, codes, timestamps, self.step)
        samples = {split: own["samples"] for split, own in counts.items()}
        self.warnings += splits.warn_of_missing_splits(self.config.split, samples)
        hashing_types = HashEncoder | CrossEncoder
        hashed = {n: e.collisions() for n, e in fitted.encoders.items() if isinstance(e, hashing_types)}
        content = {
            "format": FORMAT,
            "events": len(self.log),
            "users": len(self.users.keys),
            "items": len(self.items.keys),
            "parts": counts,
            "spans": (spans := spans if self.schema.time is not None else {}),
            "lines": self.cutoffs,
            "split": self.split_digest,
            "later": [one.to_dict() for one in self.later],
            "rows": {name: encoder.rows for name, encoder in fitted.encoders.items()},
            "hash_collisions": hashed,
            "weights": self.config.weights,
            **{"warnings": self.warnings, "label_copies": self.label_copies},
            "source": {role: str(getattr(self.config, role) or "") for role in ("log", "users", "items")},
            "seconds": round(seconds, 2),
        }
        (self.build / "log.json").write_text(json.dumps(content, indent=1))
        return dict(spans)

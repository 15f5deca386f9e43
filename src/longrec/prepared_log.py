"""Prepared logs in Python: ``longrec.prepare`` and the object that it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from longrec.data.settings import DataConfig, Split
from longrec.errors import ConfigError
from longrec.features.schema import Schema
from longrec.imports import Config, read_job_source
from longrec.reporting.facts_table import describe_log
from longrec.tabular import Columns, Tabular, format_cell, format_path

if TYPE_CHECKING:
    from longrec.data.log import Log
    from longrec.data.log_facts import LogFacts
    from longrec.features.fields import Fields
    from longrec.models.core.base import Model
    from longrec.training.batches import Batches

__all__ = ["PreparedLog", "SplitSummary", "prepare"]

_CONFIG_ENDINGS = (".yaml", ".yml", ".config", ".prototxt", ".json")


@dataclass(frozen=True)
class SplitSummary:
    """Samples of one split.

    Attributes:
        rows: number of samples: rows with a label that is available in time.
        positives: number of positive samples.
        first, last: first and last timestamp, as ISO 8601 text or as steps. None without a time column.
    """

    rows: int
    positives: int
    first: str | int | None = None
    last: str | int | None = None

    @property
    def rate(self) -> float | None:
        """Share of positives. None for a split without rows."""
        return self.positives / self.rows if self.rows else None


class PreparedLog(Tabular):
    """A prepared log: sorted events, fitted encoders and splits, in a folder on disk.

    Attributes:
        data: inputs and split.
        schema: meaning of the columns.
        folder: folder of the prepared log.
        log: the opened log, with the row indices of splits, labels, and histories.
        warnings: one sentence per reason why metrics measured on this log may be wrong.
        printed: warnings that a training has printed.
        splits: samples of train, valid and test.
    """

    def __init__(self, data: DataConfig, schema: Schema, log: Log, warnings: Sequence[str]) -> None:
        self.data, self.schema, self.log, self.folder = data, schema, log, log.folder
        self.warnings = list(warnings)
        self.printed: frozenset[str] = frozenset()
        self.splits = {name: _summarize(log, name) for name in ("train", "valid", "test")}

    @property
    def rows(self) -> int:
        """Number of events, with those that have no label."""
        return len(self.log)

    @property
    def users(self) -> int:
        """Number of users."""
        return int(self.log.manifest["users"])

    @property
    def items(self) -> int:
        """Number of items."""
        return int(self.log.manifest["items"])

    @cached_property
    def facts(self) -> LogFacts:
        """What ``prepare`` counted: splits, lengths of histories, values of features, and what is alarming."""
        from longrec.data.facts import read_facts

        return read_facts(self.folder)

    def fields(self) -> Fields:
        """Return the inputs of a model: ``longrec.models.DIN(log.fields())``."""
        return self.log.fields()

    def labels(self, split: str) -> NDArray[np.float32]:
        """Return the label of every sample of a split, float32, in the order of its batches that are not shuffled.

        Raises:
            UnknownName: no such split.
        """
        return self.log.labels.take(self.log.rows_of(split))

    def batches(
        self,
        split: str = "train",
        batch_size: int = 1024,
        seed: int = 0,
        *,
        shuffle: bool | None = None,
        model: Model | None = None,
        epoch: int = 0,
    ) -> Batches:
        """Return the batches of a split, for a training loop of your own.

        Features and histories are as of the timestamp of each row, as in every training.

        Args:
            split: train, valid or test.
            batch_size: rows per batch. The last batch of an epoch may be smaller.
            seed: seed of the order. It depends on the seed and the epoch only, as that of ``longrec.fit``.
            shuffle: False keeps the order of the log. Default: True for train, False for valid and test.
            model: a model that needs batches of its own, such as one with several labels. Default: single rows.
            epoch: number of the first epoch. Each ``for`` loop over the batches is the next one.

        Raises:
            UnknownName: no such split.
        """
        from longrec.training.batches import Batches  # imports torch

        return Batches(
            self.log, split, batch_size, seed, split == "train" if shuffle is None else shuffle, model, epoch
        )

    def to_columns(self) -> Columns:
        """Return one row per split."""
        summaries = list(self.splits.items())
        return {
            "split": [name for name, _ in summaries],
            "rows": [one.rows for _, one in summaries],
            "positives": [one.positives for _, one in summaries],
            "rate": [one.rate for _, one in summaries],
            "first": [one.first for _, one in summaries],
            "last": [one.last for _, one in summaries],
        }

    def shown(self) -> tuple[str, Columns]:
        """Return the size of the log with its ties and warnings, and its splits."""
        warnings = [*self.warnings, *self.facts.warnings]
        lines = [
            f"Prepared log {format_path(self.folder)}",
            *describe_log(self.facts.to_dict()),
            *(f"warning: {warning}" for warning in warnings),
        ]
        return "\n".join(lines), {name: list(map(format_cell, own)) for name, own in self.to_columns().items()}


def _summarize(log: Log, name: str) -> SplitSummary:
    counts, spans = log.manifest["parts"].get(name, {}), log.manifest.get("spans", {})
    first, last = spans.get(name) or (None, None)
    if not log.excluded_rows(name).rows.size:
        return SplitSummary(counts.get("samples", 0), counts.get("positives", 0), first, last)
    rows = log.rows_of(name)
    return SplitSummary(len(rows), int((log.labels.take(rows) > 0.5).sum()), first, last)


def prepare(
    source: Any,
    *,
    schema: Schema | Mapping[str, Any] | str | Path | None = None,
    users: Any = None,
    items: Any = None,
    split: Split | Mapping[str, Any] | None = None,
    weights: Sequence[str] = (),
    folder: str | Path = "prepared",
    memory: str | None = None,
    threads: int | None = None,
    overrides: Sequence[str] = (),
) -> PreparedLog:
    """Prepare a log, unless it is prepared already: sort it, split it, and fit the encoders on its training rows.

    Args:
        source: the events: a data frame (pandas, polars, Arrow: any object with ``__arrow_c_stream__``), a DuckDB
            relation, the path of a file or a pattern, a list of paths, or a ``longrec.Source``. Or, without ``schema``,
            a config, its path or a mapping, whose data section is prepared, or a run, whose log is.
        schema: meaning of the columns: a ``longrec.Schema``, a mapping, or the path of one in YAML.
        users, items: table of the users and of the items, in any of the forms of the events.
        split: rule that splits the rows into train, valid and test. Default: the last 20 % in time, in halves.
        weights: columns to keep as sample weights.
        folder: folder of the prepared logs. A log of the same contents, schema and split is found there again.
        memory: memory that the sort may use before it spills to disk, such as "2GB".
        threads: threads of the preparation.
        overrides: settings of a config, such as ``data.split.test=0.2``.

    Raises:
        ConfigError: settings that cannot be used, all together.
        DataError: rows that cannot be used.

    A frame is read without a copy and must not change meanwhile. Its digest is part of the prepared log, so that
    preparing equal contents again reads them once and sorts nothing.
    """
    settings: dict[str, Any] = {"users": users, "items": items, "split": split, "memory": memory, "threads": threads}
    settings = {key: value for key, value in settings.items() if value is not None}
    if schema is None:
        used = [*settings, *(["weights"] if weights else [])]
        return _open(*_read_config(source, overrides, used, folder))
    if overrides:
        raise ConfigError("prepare", ["overrides: are settings of a config; use the arguments of prepare"])
    from longrec.training.job import read_data

    settings |= {"log": source, "schema": schema, "weights": tuple(weights), "folder": str(folder)}
    return _open(*read_data(settings, "prepare"))


def _read_config(
    source: Any, overrides: Sequence[str], used: Sequence[str], folder: str | Path
) -> tuple[DataConfig, Schema]:
    """Return the data section and the schema of a config or of a run."""
    from longrec.training.finished_run import Run
    from longrec.training.job import read_job

    is_file = isinstance(source, (str, Path)) and str(source).endswith(_CONFIG_ENDINGS)
    if not is_file and not isinstance(source, Mapping | Run):
        fault = (
            "schema: is required for a log; give longrec.Schema(user=..., item=..., time=..., label=..., features=...)"
        )
        raise ConfigError("prepare", [fault])
    if used or str(folder) != "prepared":
        names = ", ".join([*used, *(["folder"] if str(folder) != "prepared" else [])])
        fault = f"{names}: the config of a job has these; set its data section, or use overrides=['data.KEY=VALUE']"
        raise ConfigError("prepare", [fault])
    if isinstance(source, Run):
        return source.config.data, source.config.schema
    config: Config = source
    job_source = read_job_source(config, overrides)
    with job_source.error_context:
        job = read_job(job_source.config, overrides)
    return job.data, job.schema


def _open(data: DataConfig, schema: Schema) -> PreparedLog:
    """Prepare a log, and open it."""
    from longrec.data.label_checks import check_window, window_warnings
    from longrec.data.log import Log
    from longrec.data.prepare import prepare as prepare_log

    log = Log.open(prepare_log(data, schema), schema)
    check_window(log, both_classes=False)
    return PreparedLog(data, schema, log, [*log.warnings, *window_warnings(log)])

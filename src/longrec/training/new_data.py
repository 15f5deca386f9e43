"""Scores of rows that came after training: a new file or frame, with the histories of the run's log and of these rows.

Rows are read, checked and encoded as ``prepare`` does, with the encoders of the run. Users, items and values that were
not in training read as unseen, as in serving.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from longrec.data.extended_log import ExtendedLog, extend_log
from longrec.data.new_rows import NewRows, count_file_rows, encode_new_rows, read_new_inputs
from longrec.data.scratch import SCRATCH, in_use, sweep
from longrec.data.targets import compute_target
from longrec.errors import RunError
from longrec.features.entity_table import EntityTable
from longrec.models.core.kinds import Encoder, Reranker, Retriever
from longrec.progress import Progress
from longrec.training.checkpoint import replace_file
from longrec.training.predict_run import ScoringRun, load_scorer
from longrec.training.scoring import score_tasks

__all__ = ["NewScores", "predict_new", "read_new_labels", "write_new_scores"]


@dataclass(frozen=True)
class NewScores:
    """Scores of new rows.

    Attributes:
        table: one row per new row, in the order of the input: ``row`` (index in its file, from 0), ``file`` if there
            are several, ``user``, ``item`` (keys) and ``time`` as far as the schema has them, ``label`` (if the input
            has it), ``score``, and for each further task ``label.TASK`` and ``score.TASK``.
        codes: number of the user of each row, int64 ``[n]``.
        new_users, new_items: numbers of users and items that the run's log does not have.
        repeated: number of rows that are events of the run's log.
        absent: columns that the input does not have, each with its use.
    """

    table: pa.Table
    codes: NDArray[np.int64]
    new_users: int
    new_items: int
    repeated: int
    absent: Mapping[str, str]

    def describe(self) -> list[str]:
        """Return one line per fact about the rows."""
        new = {"user": f"{self.new_users:,} new users", "item": f"{self.new_items:,} new items"}
        own = [text for key, text in new.items() if key in self.table.column_names]
        lines = [", ".join([f"{len(self.table):,} rows", *own])]
        if self.repeated:
            lines.append(f"{self.repeated:,} rows are events of the run's log, and histories have each of them once")
        lines += [f"no column {column!r} ({use}): its values are missing" for column, use in self.absent.items()]
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Return the facts without the scores, for JSON."""
        names = ("new_users", "new_items", "repeated")
        facts = {name: getattr(self, name) for name in names}
        return {"rows": len(self.table), **facts, "absent": dict(self.absent)}


def predict_new(
    run: ScoringRun,
    data: Any,
    *,
    users: Any = None,
    items: Any = None,
    candidates: bool = False,
    device: str | None = None,
    quiet: bool = False,
) -> NewScores:
    """Score the rows of a new file, of several, or of a frame, with the best model of a run.

    Args:
        data: path or paths of files in the format of the run's log, a mapping as ``data.log`` of a config, or a frame.
        users, items: tables with features of new users or items, or newer versions of known ones, in the same forms.
        candidates: the rows are candidates to score and not events, so that they are in no history.
        device: ``auto``, ``cpu`` or ``cuda``. Default: that of the run, or the CPU where there is no GPU.
        quiet: print no progress.

    Raises:
        RunError: no finished run, a model that scores no rows, or a missing prepared log.
        ConfigError: an input that is none of these.
        DataError: invalid rows, or a missing column.
    """
    _check_kind(run)
    config, log = run.config.data, run.log()
    inputs = read_new_inputs(config, data, users, items)
    root = Path(config.folder)
    root.mkdir(parents=True, exist_ok=True)
    sweep(root)
    with tempfile.TemporaryDirectory(dir=root, prefix=SCRATCH) as name, in_use(Path(name)):
        scratch = Path(name)
        rows = encode_new_rows(log, config, inputs, scratch)
        extended = extend_log(log, rows, scratch / "extended", candidates=candidates)
        scores, tasks = _score(run, extended, device, quiet)
        table = _build_table(extended, rows, scores, tasks, run.config.evaluate.sample_weight)
        table = _add_input_rows(table, *count_file_rows(config, inputs.log, rows, scratch))
        codes = np.empty(len(rows.numbers), np.int64)
        codes[rows.numbers] = extended.user(extended.new)
        return NewScores(
            table,
            codes,
            int((rows.user_rows[1:] == 0).sum()) if log.schema.user is not None else 0,
            len(rows.items) - len(log.items),
            extended.repeated,
            rows.absent,
        )


def read_new_labels(run: ScoringRun, data: Any, *, device: str | None = None, **tables: Any) -> pa.Table:
    """Score new rows, and return those with a label, in the columns that metrics are computed from.

    Args:
        data, tables: as in ``predict_new``.

    Raises:
        RunError: rows without labels.
    """
    scores = predict_new(run, data, device=device, **tables)
    table, config = scores.table, run.config.evaluate
    if "label" not in table.column_names:
        raise RunError("evaluate", "new rows without labels", "the label column of the run", "score them with predict")
    if config.sample_weight is not None and "weight" not in table.column_names:
        name = config.sample_weight
        raise RunError("evaluate", f"no column {name!r}", "the sample weights of the run", "add the column")
    if "user" in table.column_names:
        table = table.drop_columns(["user"])
    table = table.append_column("user", pa.array(scores.codes))
    return table.filter(table["label"].is_valid())


def _check_kind(run: ScoringRun) -> None:
    name, kind = str(run.config.model["name"]), run.config.model_class
    if issubclass(kind, Retriever):
        raise RunError(
            str(run.folder),
            f"a retriever ({name}), which ranks all items for a request and scores no rows",
            "the run of a ranker",
            f"serve its recommendations: longrec export {run.folder} {run.name}.bundle",
        )
    if issubclass(kind, Reranker):
        raise RunError(
            str(run.folder),
            f"a re-ranker ({name}), which orders whole lists and scores no single rows",
            "the run of a ranker",
            f"serve it: longrec export {run.folder} {run.name}.bundle, or score a split of its own log",
        )
    if issubclass(kind, Encoder):
        raise RunError(
            str(run.folder),
            f"a source model ({name}), whose vectors other models read",
            "the run of a ranker",
            f"train a ranker on its vectors: longrec compress {run.folder} --into tokens/v1",
        )


def _score(
    run: ScoringRun, log: ExtendedLog, device: str | None, quiet: bool
) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
    stream = io.StringIO() if quiet else None
    with load_scorer(run, device) as model, Progress(len(log.new), "score", "rows", stream=stream) as progress:
        size = run.config.evaluate.batch_size
        return score_tasks(model, log, log.new, size, bf16=run.config.fit.bf16, progress=progress)


def _build_table(
    log: ExtendedLog,
    rows: NewRows,
    scores: NDArray[np.float32],
    tasks: Mapping[str, NDArray[np.float32]],
    weight: str | None,
) -> pa.Table:
    """Return the scores with keys and timestamps, in the order of the input."""
    order = np.empty(len(rows.numbers), np.int64)
    order[rows.numbers] = np.arange(len(order))
    at, schema = log.new[order], log.schema
    columns: dict[str, Any] = {"row": np.arange(len(order))}
    if schema.user is not None:
        columns["user"] = _take_keys(log.users, log.user(at))
    if schema.item is not None:
        columns["item"] = _take_keys(log.items, log.events.columns["item"].take(at).astype(np.int64))
    if schema.time is not None:
        times = pa.array(log.events.times.take(at))
        columns["time"] = times if schema.time.unit == "step" else times.cast(pa.timestamp("ms", "UTC"))
    if log.has_label:
        columns["label"] = pa.array(log.labels.take(at), from_pandas=True)
    columns["score"] = scores[order]
    if weight is not None and weight in log.weights:
        columns["weight"] = log.weights[weight].take(at)
    for name, probability in tasks.items():
        if name in schema.features and schema.column(name) not in rows.absent:
            columns[f"label.{name}"] = pa.array(compute_target(log, name, at), from_pandas=True)
        columns[f"score.{name}"] = probability[order]
    return pa.table(columns)


def _take_keys(table: EntityTable, rows: NDArray[np.int64]) -> pa.Array:
    """Return the keys of rows of a table, null for row 0."""
    return table.keys.values.take(pa.array(rows - 1, mask=rows == 0))


def _add_input_rows(table: pa.Table, files: Sequence[Path], begins: NDArray[np.int64]) -> pa.Table:
    """Return the table with the index of each row in its file, and with the files if there are several."""
    if len(files) < 2:
        return table
    numbers = np.arange(len(table))
    file = np.searchsorted(begins, numbers, side="right") - 1
    names = pa.DictionaryArray.from_arrays(pa.array(file.astype(np.int32)), pa.array([str(path) for path in files]))
    table = table.set_column(0, "row", pa.array(numbers - begins[file]))
    return table.add_column(1, "file", names)


def write_new_scores(
    run: ScoringRun, data: Any, into: str | Path | None = None, **settings: Any
) -> tuple[Path, NewScores]:
    """Score new rows and write the table of scores as a Parquet file, atomically.

    Args:
        into: the file. Default: ``predictions/new/NAME.parquet`` in the run folder, named after the input.
        data, settings: as in ``predict_new``.
    """
    scores = predict_new(run, data, **settings)
    first = data if isinstance(data, (str, Path)) else data[0] if isinstance(data, (list, tuple)) else None
    stem = Path(first).name.partition(".")[0].strip("*?[]") if first is not None else ""
    path = Path(into) if into is not None else run.folder / "predictions" / "new" / f"{stem or 'rows'}.parquet"
    replace_file(path, lambda partial: pq.write_table(scores.table, partial))
    return path, scores

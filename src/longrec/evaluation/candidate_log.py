"""Log of candidates: the rows on which a ranker of a pipeline is trained, ``longrec candidates``.

request    identity of the request
KEYS       user, item and time, and the context, by the names and with the raw values of the log
candidate  1: the row is a candidate and no event (``candidate`` of the schema)
relevant   label: 1 for the item of the request, else 0; null in events
weight     1, and of sampled negatives the number that each stands for; 0 in events
split      train, and valid for the newest requests
...        scores, ranks and sources of the stages before the ranker, ``pipeline/stage_columns.py``
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from longrec.data.log import Log
from longrec.data.relation import connect, literal, name
from longrec.data.splits import describe_timestamp, select_rank
from longrec.errors import ConfigError, RunError
from longrec.evaluation.candidate_checks import check_log, list_clashes, warn_of_later_training
from longrec.evaluation.candidate_rows import CandidateSource, RequestCandidates, build_table
from longrec.evaluation.existing import ExistingItems, ItemRows
from longrec.evaluation.pipeline_evaluation import check_same_keys
from longrec.evaluation.raw_requests import RawLog
from longrec.evaluation.requests import Requests, choose_requests
from longrec.pipeline.stage_columns import RANK
from longrec.progress import Progress
from longrec.serve.service import Service
from longrec.training.finished_run import Run, open_run

OWN_COLUMNS = ("request", "candidate", "relevant", "weight", "split")
_CHUNK = 256
"""Number of requests whose rows are written together."""


@dataclass(frozen=True)
class CandidateReport:
    """What ``write_candidates`` has written.

    Attributes:
        path: the file.
        requests: number of answered requests.
        hits: number of them whose item is in the list.
        kept: number of requests that are written.
        rows: number of rows of candidates, of which ``positives`` have label 1.
        events: number of rows of events.
        columns: columns of the stages.
        context: columns of the context, those of the schema of the run.
        valid_from: timestamp of the first request of valid, as text. None without one.
        warnings: reasons why the rows may be wrong.
    """

    path: Path
    requests: int
    hits: int
    kept: int
    rows: int
    positives: int
    events: int
    columns: tuple[str, ...]
    context: tuple[str, ...]
    valid_from: str | None
    warnings: tuple[str, ...]

    @property
    def recall(self) -> float:
        """Share of the requests whose item is in the list: the recall of the stages before the ranker."""
        return self.hits / self.requests

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**vars(self), "path": str(self.path), "recall": self.recall}

    def format(self) -> str:
        """Return what was written, as text."""
        lines = [f"warning: {text}" for text in self.warnings]
        lines += [
            f"{self.hits:,} of {self.requests:,} requests have their item in the list (recall {self.recall:.3f}); "
            f"{self.requests - self.kept:,} requests are left out",
            f"{self.rows:,} candidates of {self.kept:,} requests, {self.positives:,} of them relevant"
            + (f", and {self.events:,} events" if self.events else ""),
        ]
        if self.valid_from is not None:
            lines.append(f"split: valid from {self.valid_from}")
        context = ", ".join(self.context) or "none; a ranker with a context needs --requests of a run that has it too"
        lines += [f"columns of stages: {', '.join(self.columns)}", f"columns of the context: {context}"]
        return "\n".join([*lines, str(self.path)])


def write_candidates(
    pipeline: str | Path,
    requests: str | Path | Run,
    into: str | Path,
    *,
    split: str = "valid",
    count: int | None = None,
    negatives: int | None = None,
    before: str = RANK,
    valid: float = 0.2,
    with_events: bool = False,
    without_hit: bool = False,
    seed: int = 0,
    quiet: bool = False,
) -> CandidateReport:
    """Write the candidates of a pipeline for requests of a log, as rows to train its ranker on.

    Args:
        pipeline: YAML file of the pipeline. The stages before ``before`` are run, so that the bundle of this ranker
            need not exist yet.
        requests: run, or its folder, whose prepared log has the requests: one per positive row of the split. Its schema
            names the columns of the context.
        into: Parquet file to write. An existing one is replaced.
        split: split of the requests. Retrievers must have been trained on earlier rows.
        count: number of requests, drawn once. None for all.
        negatives: number of candidates without a hit to keep per request, drawn at random. None for all.
        before: the ranker to train, ``rank`` or ``prerank``.
        valid: share of the requests, the newest ones, in split valid of the file.
        with_events: also write the events of the log, so that the file is a whole log.
        without_hit: also write requests whose item is not in the list.
        seed: seed of the draws.
        quiet: print no progress.

    Raises:
        ConfigError: a pipeline with faults, an invalid argument, or columns of the log that have names of written ones.
        BundleError: a bundle that cannot be opened.
        DataError: a log that cannot be read any more.
        RunError: a run that is not finished, other keys than the bundles', or no request with a hit.
        RequestError: a request that the bundles cannot answer.
    """
    faults = [] if 0 <= valid < 1 else [f"valid: must be at least 0 and below 1, got {valid}"]
    faults += [
        f"{key}: must be at least 1, got {value}"
        for key, value in (("negatives", negatives), ("rows", count))
        if value is not None and value < 1
    ]
    if faults:
        raise ConfigError("candidates", faults)
    run, path = open_run(requests), Path(into)
    log = run.log()
    check_log(log, run)
    chosen = choose_requests(log, split, "next", count, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        contextlib.closing(Service(pipeline, keep_log=False, before=before)) as service,
        tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch,
    ):
        if service.pipeline is None:
            raise ConfigError(str(pipeline), ["is a bundle and no pipeline; a pipeline has a section recall"])
        check_same_keys(service, log)
        existing = ExistingItems(log, ItemRows(log), run.config.evaluate.catalog)
        source = CandidateSource(service, chosen, existing, before)
        writer = _Writer(run, chosen, source, Path(scratch), service)
        return writer.write(path, negatives, valid, with_events, without_hit, seed, quiet)


class _Writer:
    """Writer of one file."""

    def __init__(self, run: Run, requests: Requests, source: CandidateSource, scratch: Path, service: Service) -> None:
        self.run, self.requests, self.source, self.scratch = run, requests, source, scratch
        self.log: Log = requests.log
        self.timestamps = np.asarray(self.log.timestamps.take(requests.rows))
        self.context = sorted({column for model in service.models for column in model.encoder.context})
        self.warnings = warn_of_later_training(service, run, self.log, self.timestamps)
        self.name = service.model

    def write(
        self,
        path: Path,
        negatives: int | None,
        valid: float,
        with_events: bool,
        without_hit: bool,
        seed: int,
        quiet: bool,
    ) -> CandidateReport:
        """Write the file, and return the report."""
        config, schema = self.run.config.data, self.log.schema
        con = connect(config, self.scratch)
        with contextlib.closing(con):
            raw_log = RawLog(con, config.log, self.log, self.scratch)
            written = {*OWN_COLUMNS, *self.source.columns.names}
            split_column = config.split.column
            used = set(raw_log.relation.types) if with_events else {*raw_log.context, *self._key_columns()}
            list_clashes(used - {split_column}, written, raw_log.relation.where)
            raw = raw_log.read(self._build_requests())
            absent = [column for column in self.context if column not in raw.column_names]
            if absent:
                self.warnings.append(
                    f"context {', '.join(absent)}: null in every request, because the log of the requests does not "
                    "have it"
                )
            cutoff = self._choose_cutoff(valid)
            candidates = self.scratch / "candidates.parquet"
            counts = self._write_candidates(candidates, raw, cutoff, negatives, without_hit, seed, quiet)
            events = 0
            if with_events:
                events = int(raw_log.relation.one(f"SELECT count(*) FROM {raw_log.relation.view}"))
                whole = self.scratch / "whole.parquet"
                con.execute(self._join_events(raw_log, candidates, whole, split_column, cutoff))
                candidates = whole
            candidates.replace(path)
        answered = len(self.requests)
        hits, kept, rows, positives = counts
        step = schema.time is not None and schema.time.unit == "step"
        valid_from = None if cutoff is None else describe_timestamp(cutoff, step)
        own, context, warnings = tuple(self.source.columns.names), tuple(raw_log.context), tuple(self.warnings)
        return CandidateReport(path, answered, hits, kept, rows, positives, events, own, context, valid_from, warnings)

    def _key_columns(self) -> list[str]:
        schema = self.log.schema
        return [str(column) for column in (schema.user, schema.item, schema.time and schema.time.column)]

    def _build_requests(self) -> pa.Table:
        """Return the requests as ``RawLog.read`` takes them."""
        log, rows = self.log, self.requests.rows
        users = log.users.keys.values.take(pa.array(log.user(rows) - 1))
        items = log.items.keys.values.take(pa.array(log.events.columns["item"].take(rows).astype(np.int64) - 1))
        number, event = np.arange(len(rows)), np.asarray(log.events.times.take(rows))
        return pa.table({"number": number, "user": users, "item": items, "event": event, "moment": self.timestamps})

    def _choose_cutoff(self, valid: float) -> int | None:
        """Return the timestamp of the first request of valid, None if all are in train."""
        first = round(len(self.timestamps) * (1 - valid))
        return select_rank(self.timestamps, first) if first < len(self.timestamps) else None

    def _write_candidates(
        self,
        path: Path,
        raw: pa.Table,
        cutoff: int | None,
        negatives: int | None,
        without_hit: bool,
        seed: int,
        quiet: bool,
    ) -> tuple[int, int, int, int]:
        """Write the rows, and return the numbers of hits, written requests, rows and positives."""
        hits = kept = rows = positives = 0
        writer: pq.ParquetWriter | None = None
        waiting: dict[int, RequestCandidates] = {}

        def flush() -> None:
            nonlocal writer
            if not waiting:
                return
            table = self._build(waiting, raw, cutoff)
            writer = pq.ParquetWriter(path, table.schema) if writer is None else writer
            writer.write_table(table)
            waiting.clear()

        stream = io.StringIO() if quiet else None
        with Progress(len(self.requests), f"candidates of {self.name}", "requests", stream=stream) as progress:
            for number in range(len(self.requests)):
                own = self.source.collect(number, self._read_context(raw, number), negatives, seed)
                has_hit = bool(own.hit.any())
                hits += has_hit
                if len(own) and (has_hit or without_hit):
                    waiting[number] = own
                    kept, rows, positives = kept + 1, rows + len(own), positives + has_hit
                if len(waiting) == _CHUNK:
                    flush()
                progress.advance(1)
            flush()
        if writer is None:
            do = "check filter and counts of the pipeline, or write them with --without-hit"
            wrong = f"none of {len(self.requests):,} requests has its item in the list"
            raise RunError(str(self.run.folder), wrong, "requests with a hit to learn from", do)
        writer.close()
        return hits, kept, rows, positives

    def _read_context(self, raw: pa.Table, number: int) -> Mapping[str, Any]:
        own = set(raw.column_names)
        return {column: raw[column][number].as_py() if column in own else None for column in self.context}

    def _build(self, own: Mapping[int, RequestCandidates], raw: pa.Table, cutoff: int | None) -> pa.Table:
        numbers = np.array(list(own))
        rows = self.requests.rows[numbers]
        user, item = str(self.log.schema.user), str(self.log.schema.item)
        users = self.log.users.keys.values.take(pa.array(self.log.user(rows) - 1))
        keys = {user: users, item: pa.array([], self.log.items.keys.values.type)}
        table = build_table(list(own.values()), raw.take(pa.array(numbers)), rows, keys)
        late: NDArray[np.bool_] = np.repeat(
            np.zeros(len(numbers), bool) if cutoff is None else self.timestamps[numbers] >= cutoff,
            [len(one) for one in own.values()],
        )
        return table.append_column("split", pa.array(np.where(late, "valid", "train").tolist(), pa.string()))

    def _join_events(self, raw: RawLog, candidates: Path, into: Path, split: str | None, cutoff: int | None) -> str:
        """Return SQL that writes the events and the candidates as one log."""
        own = f"CASE WHEN {raw.time} < {cutoff} THEN 'train' ELSE 'valid' END" if cutoff is not None else "'train'"
        others = "*" if split is None or split not in raw.relation.types else f"* EXCLUDE ({name(split)})"
        kept = f"SELECT {others}, 0::TINYINT AS candidate, 0::FLOAT AS weight, {own} AS split FROM {raw.relation.view}"
        rows = f"SELECT * FROM read_parquet({literal(str(candidates))})"
        return f"COPY ({kept} UNION ALL BY NAME {rows}) TO {literal(str(into))} (FORMAT parquet)"

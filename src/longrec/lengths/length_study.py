"""Trainings of the models of a config with histories cut at several lengths, and the cost of each length."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.errors import ConfigError, RunError
from longrec.lengths.cpu_cost import CANDIDATES, RequestTimer, measure_step
from longrec.lengths.measured_lengths import LengthRow, MeasuredLengths
from longrec.metrics.interval import Interval
from longrec.models.core.kinds import Ranker
from longrec.progress import Progress
from longrec.training.finished_run import Run, read_log
from longrec.training.fit import start
from longrec.training.job import Job, read_job
from longrec.training.machine import describe_environment, torch_threads

_ROUND = (50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000)
_WHOLE = 1_000_000
"""Length that no history reaches."""
_FIXED = 30
"""Events that cost about as much as the rest of a row of a training, by which the time left is estimated."""
_WHERE = "longrec bench lengths"


def choose_lengths(longest: int) -> list[int]:
    """Return the lengths that are measured by default: round ones, then the longest.

    >>> choose_lengths(300)
    [50, 100, 200, 300]
    """
    return [*(length for length in _ROUND if length < longest), longest]


@dataclass(frozen=True)
class LengthStudy:
    """Trainings and measurements of one config.

    Args:
        config: path of a config, or the config itself.
        overrides: settings such as ``fit.epochs=1``. They apply to every model and length.
        models: names of models. The one of the config has its settings there, others have their defaults. None: that
            of the config.
        lengths: maximum lengths of all histories. None: round ones up to the longest history in the schema.
        into: new folder of the runs and results.
        quiet: print no progress.
    """

    config: str | Path | Mapping[str, Any]
    overrides: Sequence[str]
    models: Sequence[str] | None
    lengths: Sequence[int] | None
    into: Path
    quiet: bool = False

    def run(self) -> MeasuredLengths:
        """Train and measure every model at every length.

        Raises:
            ConfigError: faults of the config or of the options. All models are read before the first is trained.
            RunError: the folder exists.
        """
        own = read_job(self.config, self.overrides)
        lengths = self._check_lengths(own)
        models = list(dict.fromkeys(self.models or [str(own.model["name"])]))
        jobs = {name: self._read_job(name, own, lengths[-1]) for name in models}
        _check_models(jobs)
        if self.into.exists() and any(self.into.iterdir()):
            do = "name a new folder with --into, or remove it"
            raise RunError(str(self.into), "is not empty", "a new folder for the runs and results", do)
        events, split = _count_events(self._read_job(models[0], own, _WHOLE))
        longest = int(events.max(initial=0))
        trained = [length for at, length in enumerate(lengths) if not at or lengths[at - 1] < longest]
        rows: list[LengthRow] = []
        printed: set[str] = set()
        work = {length: _estimate_work(events, length) if length in trained else _FIXED for length in lengths}
        with Progress(len(models) * sum(work.values()), "bench lengths", "events per row") as progress:
            for name in models:
                for row in self._measure_model(name, own, lengths, trained, split, printed):
                    rows.append(row)
                    if not self.quiet:
                        progress.advance(work[row.events], _describe(row))
        return MeasuredLengths(rows, split, longest, CANDIDATES, describe_environment(1))

    def _check_lengths(self, own: Job) -> list[int]:
        """Return the lengths in rising order."""
        if not own.schema.histories:
            raise ConfigError(_WHERE, ["schema.histories: the schema has no history to cut; add one"])
        longest = max(history.max_length for history in own.schema.histories.values())
        lengths = choose_lengths(longest) if self.lengths is None else list(self.lengths)
        faults = [f"--lengths: must be from 1 to {_WHOLE:,}, got {one}" for one in lengths if not 1 <= one <= _WHOLE]
        if faults or not lengths:
            raise ConfigError(_WHERE, faults or ["--lengths: must name one length or more"])
        return sorted(set(lengths))

    def _read_job(self, name: str, own: Job, length: int) -> Job:
        """Return the job of a model whose histories are cut at a length."""
        section = dict(own.model) if name == own.model["name"] else {"name": name}
        settings = [
            f"model={json.dumps(section)}",
            *(override for override in self.overrides if name == own.model["name"] or not _is_of_model(override)),
            *(f"data.schema.histories.{history}.max_length={length}" for history in own.schema.histories),
            f"name={name}-{length}",
            f"fit.runs={json.dumps(str(self.into / 'runs'))}",
        ]
        return read_job(self.config, settings)

    def _measure_model(
        self, name: str, own: Job, lengths: Sequence[int], trained: Sequence[int], split: str, printed: set[str]
    ) -> Iterator[LengthRow]:
        """Yield the rows of one model.

        Args:
            printed: warnings that were printed, which are not printed again. It is extended.
        """
        run, timer = None, None
        with ExitStack() as stack:
            for length in lengths:
                job = self._read_job(name, own, length)
                quality: dict[str, Any] = dict.fromkeys((*_METRICS, "train_seconds", "steps", "run"))
                if length in trained:
                    gc.collect()
                    began = time.process_time()
                    run = start(job, quiet=True, printed=printed)
                    quality = {**_read_quality(run, split), "train_seconds": time.process_time() - began}
                    printed |= set(run.results["run_warnings"])
                assert run is not None, "the shortest length is trained"
                with torch_threads(1):
                    step = measure_step(_load(run), job.fit, length)
                    if timer is None:  # a program reads histories of any length, and its cost depends on no weight
                        timer = stack.enter_context(closing(RequestTimer(_load(run))))
                    request = timer.measure(length)
                yield LengthRow(
                    model=name,
                    events=length,
                    **quality,
                    step_rows=step.rows,
                    rows_per_second=step.rows_per_second,
                    megabytes_per_row=None if step.megabytes is None else step.megabytes / step.rows,
                    request_ms=1_000 * request,
                    is_exported=timer.is_exported,
                )


_METRICS = ("auc", "log_loss", "ece", "pcoc")


def _load(run: Run) -> Ranker:
    model = run.model()
    assert isinstance(model, Ranker)
    return model


def _is_of_model(override: str) -> bool:
    return override.partition("=")[0].split(".")[0] == "model"


def _check_models(jobs: Mapping[str, Job]) -> None:
    """Refuse models that are no rankers of histories. All are reported together."""
    faults = []
    for name, job in jobs.items():
        if not issubclass(job.model_class, Ranker):
            faults.append(f"model {name}: is no ranker of single items, whose AUC is measured")
        elif not job.model_class.reads_history and "base" not in job.model_class.Config.model_fields:
            faults.append(f"model {name}: reads no history; longrec models lists those that do")
    if faults:
        raise ConfigError(_WHERE, faults)


def _count_events(job: Job) -> tuple[NDArray[np.int64], str]:
    """Return the events in the histories of each row, and the split of the metrics.

    The metrics are those of valid, since lengths are chosen by them, or of test if the log has no valid rows.
    """
    log = read_log(job)
    split = "valid" if len(log.rows_of("valid")) else "test"
    counts = [
        log.compute_history_lengths(name, rows)
        for name in job.schema.histories
        for rows in (log.rows_of("train"), log.rows_of(split))
    ]
    return np.concatenate(counts).astype(np.int64), split


def _estimate_work(events: NDArray[np.int64], length: int) -> int:
    """Return the relative time of a training: mean events of a row at this length, and what a row without any takes."""
    return _FIXED + round(float(np.minimum(events, length).mean())) if len(events) else _FIXED


def _read_quality(run: Run, split: str) -> dict[str, Any]:
    """Return metrics, steps and folder of a run."""
    results = run.results["valid"] if split == "valid" else run.results
    metrics = {key: Interval.from_dict(value) for key, value in results["metrics"].items()}
    own = {key: metrics[key].value if key in metrics else None for key in _METRICS}
    return {**own, "steps": int(run.results["steps"]), "run": str(run.folder)}


def _describe(row: LengthRow) -> str:
    quality = "" if row.auc is None else f" AUC {row.auc:.4f},"
    return f"{row.model} {row.events:,}:{quality} request {row.request_ms:.2f} ms"

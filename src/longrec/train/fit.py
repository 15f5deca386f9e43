"""From a config to a finished run folder."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from longrec.data.labels import window_warnings
from longrec.data.log import Log
from longrec.data.targets import check_targets
from longrec.data.training_past import training_past
from longrec.errors import ConfigError
from longrec.models.core import artifact
from longrec.models.core import base as models
from longrec.models.core.base import Model
from longrec.train import checkpoint
from longrec.train.base_rate import start_at_base_rates, start_warnings
from longrec.train.evaluate import check_parts, measure_table, write_predictions
from longrec.train.folder import alone, new_folder, note_resumed, require_free, warm_start_warnings
from longrec.train.job import Job, flat, read_job
from longrec.train.loop import Loop
from longrec.train.machine import keep_large_blocks, torch_threads
from longrec.train.memory import check_memory, known_fields
from longrec.train.negatives import check_negative_rate, check_negatives_left
from longrec.train.optimisers import build_optimisers
from longrec.train.run import Run, open_log, open_run, read_log, require_run
from longrec.train.seen_labels import SeenLabels, check_start, delays_of, seen_by, seen_labels
from longrec.train.start import init_from
from longrec.train.tracking import trackers

# What may differ between a config and the run it resumes: names and places.
_PLACES = ("name", "data.folder", "fit.runs")


def train(
    source: str | Path | Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    *,
    resume: str | Path | None = None,
    quiet: bool = False,
    notes: str = "",
) -> Run:
    """Prepare the log, train the model, keep the best, measure it once on valid and test.

    Args:
        source: a YAML config or a mapping of the same form; may be left out with ``resume``.
        overrides: ``fit.lr=3e-3`` and the like.
        resume: folder of a run that was stopped or killed; it goes on from its last checkpoint and ends bit by bit
            as if nothing had happened. A finished run is returned as it is.
        quiet: show no progress; warnings are printed all the same.
        notes: what of another tool's configuration is not carried as it is; kept in the run folder.

    Returns:
        The finished run. Its folder is ``fit.runs``/name; without a name ``<model>-<n>``.

    Raises:
        ConfigError: a config that cannot be used, all faults at once.
        ResourceError: a model that cannot fit into the memory there is.
        DataError: a log that cannot be used; no run folder is left behind.
        RunError: a run of that name exists, the loss is not finite, the run to start from does not fit, or there is
            nothing to resume.
    """
    if resume is not None:
        return _resume(Path(resume), source, overrides, quiet)
    if source is None:
        raise ConfigError("train", ["needs a config, or a run to resume"])
    job = read_job(source, overrides)
    require_free(job)
    check_memory(job.model, known_fields(job.schema), job.fit)
    log = read_log(job)
    check_parts(log, job)
    with _tuned(job) as model_of:
        model = model_of(log)
        check_targets(log, model.targets)
        check_negative_rate(model, job.fit)
        check_negatives_left(log, job.fit)
        seen, told = _seen(job, log, model)
        if job.fit.init_from is not None:  # what does not fit shows before there is a folder
            init_from(job.fit.init_from, model, build_optimisers(model, job.fit), job.fit, log.fitted)
        folder = new_folder(job, log, seen, told, notes)
        with alone(folder):
            _run(folder, job, log, model, quiet)
    return open_run(folder)


def _resume(folder: Path, source: str | Path | Mapping[str, Any] | None, overrides: Sequence[str], quiet: bool) -> Run:
    require_run(folder)
    job = read_job(folder / "config.yaml")
    if source is not None:
        _same(read_job(source, overrides), job, folder)
    elif overrides:
        raise ConfigError("command line", ["a resumed run keeps its config; to change it, start a new run"])
    with alone(folder):
        if not (folder / "results.json").exists():
            log = open_log(folder, job)
            note_resumed(folder, job)
            with _tuned(job) as model_of:
                _run(folder, job, log, model_of(log), quiet)
    return open_run(folder)


@contextmanager
def _tuned(job: Job) -> Iterator[Callable[[Log], Model]]:
    """Threads, allocator and random generator of a run; the caller's come back afterwards."""
    keep_large_blocks()
    with torch_threads(job.fit.threads), torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.fit.seed)
        yield lambda log: _built(job, log)


def _built(job: Job, log: Log) -> Model:
    fields = log.fields()
    check_memory(job.model, fields, job.fit)
    return models.build(job.model, fields)


def _run(folder: Path, job: Job, log: Log, model: Model, quiet: bool) -> None:
    for sentence in _known_before(folder, log):
        print(f"warning: {sentence}", file=sys.stderr)
    with _asked_to_stop() as stop:
        loop = Loop(
            model,
            log,
            job.fit,
            folder,
            save_best=lambda into: artifact.save(model, into),
            eval_batch=job.evaluate.batch_size,
            eval_weight=job.evaluate.sample_weight,
            stop=stop,
            label=f"train {folder.absolute().name}",
            quiet=quiet,
        )
        if not loop.state.step:
            start_at_base_rates(model, log, loop.loader.loss_rows)
        if job.fit.init_from is not None and not loop.state.step:
            _seen(job, log, model)
            init_from(job.fit.init_from, model, loop.optimizers, job.fit, log.fitted)
        if not loop.state.step:
            _look_back(model, log)
        settings = flat({"model": job.model, "fit": job.fit.model_dump(mode="json")})
        with trackers(job.fit, folder, loop.state.step, settings) as others:
            state = loop.run(others)
    _measure(folder, job, log, state, quiet)


def _seen(job: Job, log: Log, model: Model) -> tuple[SeenLabels, list[str]]:
    """The labels that a run will have seen, with those of the run it starts from; and what results must say of these.

    Raises:
        RunError: the run it starts from has seen labels that this one is measured on.
    """
    seen = seen_labels(log, model.targets)
    if job.fit.init_from is None:
        return seen, []
    before = seen_by(open_run(job.fit.init_from))
    told = check_start(before, log, f"fit.init_from: {job.fit.init_from}", job.fit.allow_future_weights)
    return seen.after(before.by_delays(delays_of(log.schema))), told


def _look_back(model: Model, log: Log) -> None:
    """Show the training window to whatever in a model learns from it before the first step."""
    for part in model.modules():
        if isinstance(part, Model) and part.needs_training_window:
            part.fit_statistics(training_past(log))


def _measure(folder: Path, job: Job, log: Log, state: checkpoint.State, quiet: bool) -> None:
    """Score valid and test once with the best model; results.json, written last, says that the run has ended."""
    best = artifact.load(folder / "checkpoints" / "best").eval()
    measured = {}
    for part in ("valid", "test"):
        if len(log.rows_of(part)):
            table = write_predictions(best, log, job, part, folder / "predictions" / f"{part}.parquet", quiet=quiet)
            found = measure_table(table, folder.absolute().name, job.model["name"], part, job.evaluate)
            measured[part] = found.to_dict()
    told = measured["test"] if "test" in measured else measured["valid"]
    known = [*_known_before(folder, log), *start_warnings(best)]
    results = {
        **told,
        "warnings": [*known, *told["warnings"]],
        "run_warnings": known,  # those that hold whatever is measured
        "left_out": log.left_out,
        "later": log.manifest.get("later", []),
        "valid": measured.get("valid"),
        "best_step": state.best_step,
        "steps": state.step,
        "stopped": state.stopped,
        "seconds": round(state.seconds, 2),
    }
    _write(folder / "results.json", json.dumps(results, indent=1))


def _known_before(folder: Path, log: Log) -> list[str]:
    """What results must say of the log, the split and the run that training started from."""
    return [*log.warnings, *window_warnings(log), *warm_start_warnings(folder)]


def _same(given: Job, own: Job, folder: Path) -> None:
    """Refuse to resume a run with another config than its own."""
    before, now = (flat(job.words()) for job in (own, given))
    faults = [
        f"{key}: {before.get(key)!r} in the run, {now.get(key)!r} now"
        for key in {**before, **now}
        if before.get(key) != now.get(key) and key not in _PLACES
    ]
    if faults:
        raise ConfigError(f"{folder}: a resumed run keeps its config", faults)


@contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Whether an interrupt or a polite kill came: the loop then ends after its step. A second one ends at once."""
    came: list[int] = []

    def note(number: int, frame: object) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write(path: Path, text: str) -> None:
    def fill(partial: Path) -> None:
        partial.write_text(text, encoding="utf-8")

    checkpoint.replace_file(path, fill)

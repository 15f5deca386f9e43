"""Training: from a config to a finished run folder."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from longrec.data.label_checks import window_warnings
from longrec.data.log import Log
from longrec.data.training_histories import iterate_training_histories
from longrec.errors import ConfigError
from longrec.models.core import artifact
from longrec.models.core import registry as models
from longrec.models.core.base import Model
from longrec.models.core.kinds import FittedRetriever, Reranker
from longrec.training import checkpoint
from longrec.training.device import choose_device, prepare_torch
from longrec.training.earlier_base import check_earlier_base
from longrec.training.finished_run import Run, open_earlier_run, open_log, open_run, read_log, require_run
from longrec.training.fitted import fit_model
from longrec.training.folder import create_run_folder, lock_folder, record_resume, require_free, warm_start_warnings
from longrec.training.hook_record import read_monitors
from longrec.training.hooks import Hooks, add_metrics
from longrec.training.job import Job, flatten, read_job
from longrec.training.loop import Loop
from longrec.training.memory import check_memory
from longrec.training.memory_bound import estimate_fields
from longrec.training.objectives import Objective, objective_of
from longrec.training.optimizers import build_optimizers
from longrec.training.seen_labels import (
    SeenLabels,
    check_warm_start,
    collect_delays,
    compute_seen_labels,
    read_seen_labels,
)
from longrec.training.tracking import trackers
from longrec.training.warm_start import warm_start

WARM_START = "warm_start.json"
"""File of a run folder: what was carried of the run that training started from."""
# Keys that may differ between a config and the run it resumes: names, paths and the device.
_LOCATION_KEYS = ("name", "data.folder", "fit.runs", "fit.device")

_OWN_WEIGHTS = (
    "training started from weights that were set in Python, not from those of a seed; the run does not record which "
    "labels they have seen, and the config alone does not repeat it"
)


def train(
    source: str | Path | Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    *,
    resume: str | Path | None = None,
    device: str | None = None,
    quiet: bool = False,
    notes: str = "",
    on_prepared: Callable[[Path], None] | None = None,
) -> Run:
    """Prepare the log, train the model, keep the best weights, and evaluate them once on valid and test.

    Args:
        source: a YAML config or a mapping of the same form. Optional with ``resume``.
        overrides: settings such as ``fit.lr=3e-3``.
        resume: folder of an interrupted run. It continues from its last checkpoint and ends bit-identical to an
            uninterrupted run on the same device. A finished run is returned unchanged.
        device: replaces ``fit.device``, also of a resumed run.
        quiet: print no progress. Warnings are printed anyway.
        notes: differences from the configuration of another tool, kept in the run folder.
        on_prepared: called with the folder of the prepared log if it was not prepared before.

    Returns:
        The finished run. Its folder is ``fit.runs``/name, or ``<model>-<n>`` without a name.

    Raises:
        ConfigError: a config that cannot be used, with all faults.
        ResourceError: a model that does not fit into the available memory, or no CUDA device.
        DataError: a log that cannot be used. No run folder remains.
        RunError: an existing run of that name, a loss that is not finite, a run to start from that does not fit, or
            nothing to resume.
    """
    if resume is not None:
        if source is None and overrides:
            raise ConfigError("command line", ["a resumed run keeps its config; to change it, start a new run"])
        requested = None if source is None else read_job(source, overrides)
        return resume_run(Path(resume), requested, device=device, quiet=quiet)
    if source is None:
        raise ConfigError("train", ["needs a config, or a run to resume"])
    job = _set_device(read_job(source, overrides), device)
    return start(job, quiet=quiet, notes=notes, on_prepared=on_prepared)


def start(
    job: Job,
    *,
    built: Model | None = None,
    hooks: Hooks | None = None,
    quiet: bool = False,
    notes: str = "",
    on_prepared: Callable[[Path], None] | None = None,
    printed: Collection[str] = (),
) -> Run:
    """Start the run of a job, and return it when it has finished.

    Args:
        hooks: metrics and optimizers of one's own.
        built: model to train in place, of the settings of the job. None builds it.
        quiet, notes, on_prepared: as in ``train``.
        printed: warnings that were printed before. They are in the results and are not printed again.

    Raises:
        ConfigError, ResourceError, DataError, RunError: as ``train``.
    """
    hooks, target = hooks or Hooks(), choose_device(job.fit.device)
    require_free(job)
    if built is None:
        check_memory(job.model, estimate_fields(job.schema), job.fit, job.model_class)
    log = read_log(job, on_prepared)
    objective = objective_of(job.model_class)
    objective.check_log(log, job.fit, job.evaluate)
    with prepare_torch(job.fit.threads, job.fit.seed, target):
        model = _build_model(job, log) if built is None else _take_model(built, job, log)
        model.check_declarations()
        objective.check_model(model, log, job.fit)
        seen, warnings = _check_seen_labels(job, log, model)
        if built is not None and (built.construction is None or not built.construction.matches(built)):
            warnings = [*warnings, _OWN_WEIGHTS]
        if job.fit.init_from is not None or hooks.trains:  # a misfit is reported before there is a folder
            optimizers = build_optimizers(model, job.fit, hooks)
            if job.fit.init_from is not None:
                warm_start(job.fit.init_from, model, optimizers, job.fit, log.fitted, hooks)
        folder = create_run_folder(job, log, seen, warnings, notes, hooks.record())
        if built is not None:
            model.trained_by = str(folder.absolute())
        with lock_folder(folder):
            _run(folder, job, log, model, target, quiet, hooks, printed)
    return open_run(folder, job.model_class)


def resume_run(
    folder: Path,
    requested: Job | None = None,
    *,
    built: Model | None = None,
    model_class: type[Model] | None = None,
    hooks: Hooks | None = None,
    device: str | None = None,
    quiet: bool = False,
) -> Run:
    """Continue an interrupted run from its last checkpoint. A finished run is returned unchanged.

    Args:
        requested: job that must have the config of the run.
        built: model to train in place.
        model_class: class of its model, if it cannot be imported by its name.
        hooks: the metrics and optimizers of one's own that it was started with.
        device, quiet: as in ``train``.

    Raises:
        RunError: no run, or one that another process trains.
        ConfigError: a config that differs from that of the run.
    """
    require_run(folder)
    hooks = hooks or Hooks()
    job = read_job(folder / "config.yaml", model_class=model_class, own_monitors=read_monitors(folder))
    if requested is not None:
        _check_same_config(requested, job, folder)
        device = device or requested.fit.device
    job = _set_device(job, device)
    with lock_folder(folder):
        if not (folder / "results.json").exists():
            hooks.check_record(folder)
            target = choose_device(job.fit.device)
            log = open_log(folder, job)
            record_resume(folder, job)
            with prepare_torch(job.fit.threads, job.fit.seed, target):
                model = _build_model(job, log) if built is None else _take_model(built, job, log)
                _run(folder, job, log, model, target, quiet, hooks)
    return open_run(folder, model_class)


def _set_device(job: Job, device: str | None) -> Job:
    return job if device is None else replace(job, fit=job.fit.model_copy(update={"device": device}))


def _build_model(job: Job, log: Log) -> Model:
    fields = log.fields()
    check_memory(job.model, fields, job.fit, job.model_class)
    return _check_init_from(models.build(job.model, fields, model_class=job.model_class), job)


def _take_model(model: Model, job: Job, log: Log) -> Model:
    """Check that a model which was built in Python can be trained on a log, and continue its random numbers.

    Raises:
        ConfigError: a model of other fields.
    """
    if model.fields != log.fields():
        fault = "model: was built for the fields of another log; build it again with log.fields() of this one"
        raise ConfigError("fit", [fault])
    construction = model.construction
    if construction is not None and construction.seed == job.fit.seed:
        torch.set_rng_state(construction.random_state)  # as if it had been built here
    return _check_init_from(model, job)


def _check_init_from(model: Model, job: Job) -> Model:
    if model.needs_init_from and job.fit.init_from is None:
        name = job.model["name"]
        fault = f"fit.init_from: is required; {name} learns from a trained model, whose weights it reads from a run"
        raise ConfigError("config", [f"{fault}; name the run folder of that model"])
    return model


def _run(
    folder: Path,
    job: Job,
    log: Log,
    model: Model,
    device: torch.device,
    quiet: bool,
    hooks: Hooks,
    printed: Collection[str] = (),
) -> None:
    objective = objective_of(type(model))
    for sentence in (one for one in _collect_run_warnings(folder, log, objective) if one not in printed):
        print(f"warning: {sentence}", file=sys.stderr)
    valid_rows = objective.rows_of(log, "valid")

    def validate(candidate: Model = model) -> dict[str, float]:
        with objective.correct(candidate, job.fit):
            return objective.validate(candidate, log, valid_rows, job.fit, job.evaluate, hooks.metrics)

    def save_best(into: Path) -> None:
        with objective.correct(model, job.fit):
            artifact.save(model, into)

    assert job.fit.monitor is not None
    directions = {**objective.settings.monitors(job.evaluate), **hooks.monitors}
    lower = directions.get(job.fit.monitor) == "min"  # of the model's own metrics, higher ones are better
    settings = flatten({"model": job.model, "fit": job.fit.model_dump(mode="json")})
    if isinstance(model, FittedRetriever):
        _fit_statistics(model, log)
        with trackers(job.fit, folder, 0, settings) as others:
            state = fit_model(
                model, folder, job.fit.monitor, validate if len(valid_rows) else None, lower, quiet, others
            )
        _measure(folder, job, log, objective, device, state, quiet, hooks)
        return
    with _watch_stop_signals() as stop:
        loader = objective.build_loader(model, log, job.fit)
        loop = Loop(
            model,
            loader,
            job.fit,
            folder,
            save_best,
            validate=validate if len(valid_rows) else None,
            lower_is_better=lower,
            device=device,
            stop=stop,
            label=f"train {folder.absolute().name}",
            quiet=quiet,
            hooks=hooks,
        )
        if not loop.state.step:
            objective.start(model, log, loader)
        if job.fit.init_from is not None and not loop.state.step:
            _check_seen_labels(job, log, model)
            carried = warm_start(job.fit.init_from, model, loop.optimizers, job.fit, log.fitted, hooks)
            _write_text(folder / WARM_START, json.dumps(carried.to_dict(), indent=1))
            if not quiet:
                print(carried.describe(), file=sys.stderr)
        if not loop.state.step:
            _fit_statistics(model, log)
        with trackers(job.fit, folder, loop.state.step, settings) as others:
            state = loop.run(others)
    _measure(folder, job, log, objective, device, state, quiet, hooks)


def _check_seen_labels(job: Job, log: Log, model: Model) -> tuple[SeenLabels, list[str]]:
    """Return the labels of a run and of the run it starts from, and warnings about these.

    Raises:
        RunError: the run it starts from has seen labels of the evaluation of this run.
    """
    seen = compute_seen_labels(log, model.targets)
    if job.fit.init_from is None:
        return seen, []
    run, where = open_earlier_run(job.fit.init_from, model), f"fit.init_from: {job.fit.init_from}"
    if isinstance(model, Reranker):
        check_earlier_base(run, log, where)
    before = read_seen_labels(run)
    warnings = check_warm_start(before, log, where, job.fit.allow_future_weights)
    return seen.merge(before.with_delays(collect_delays(log.schema))), warnings


def _fit_statistics(model: Model, log: Log) -> None:
    """Fit the statistics of all modules that need the training window before the first step."""
    for module in model.modules():
        if isinstance(module, Model) and module.needs_training_window:
            module.fit_statistics(iterate_training_histories(log))


def _measure(
    folder: Path,
    job: Job,
    log: Log,
    objective: Objective,
    device: torch.device,
    state: checkpoint.State,
    quiet: bool,
    hooks: Hooks,
) -> None:
    """Predict valid and test once with the best model. results.json is written last and marks the end of the run."""
    best = artifact.load(folder / "checkpoints" / "best", job.model_class).eval().to(device)
    measured = {}
    for split in ("valid", "test"):
        if len(objective.rows_of(log, split)):
            path = folder / "predictions" / f"{split}.parquet"
            table = objective.write_predictions(best, log, split, path, job.fit, job.evaluate, quiet=quiet)
            evaluation = objective.measure(table, folder.absolute().name, job.model["name"], split, job.evaluate)
            measured[split] = add_metrics(evaluation, table, hooks.metrics, job.evaluate).to_dict()
    headline = measured["test"] if "test" in measured else measured["valid"]
    run_warnings = [*_collect_run_warnings(folder, log, objective), *objective.collect_warnings(best, log, job.fit)]
    results = {
        **headline,
        "warnings": [*run_warnings, *headline["warnings"]],
        "run_warnings": run_warnings,  # those that do not depend on the split
        "left_out": log.excluded_counts,
        "later": log.manifest.get("later", []),
        "valid": measured.get("valid"),
        "best_step": state.best_step,
        "steps": state.step,
        "stopped": state.stopped,
        "seconds": round(state.seconds, 2),
    }
    _write_text(folder / "results.json", json.dumps(results, indent=1))


def _collect_run_warnings(folder: Path, log: Log, objective: Objective) -> list[str]:
    """Return the warnings about the log, the split and the run that training started from."""
    of_log = [sentence for sentence in log.warnings if sentence not in objective.expected_warnings]
    return [*of_log, *window_warnings(log), *warm_start_warnings(folder)]


def _check_same_config(requested: Job, own: Job, folder: Path) -> None:
    """Raise an error if the config differs from that of the resumed run."""
    before, now = (flatten(job.to_dict()) for job in (own, requested))
    faults = [
        f"{key}: {before.get(key)!r} in the run, {now.get(key)!r} now"
        for key in {**before, **now}
        if before.get(key) != now.get(key) and key not in _LOCATION_KEYS
    ]
    if faults:
        raise ConfigError(f"{folder}: a resumed run keeps its config", faults)


@contextmanager
def _watch_stop_signals() -> Iterator[Callable[[], int | None]]:
    """Provide a function that returns SIGINT or SIGTERM once received. A second signal raises KeyboardInterrupt."""
    signals: list[int] = []

    def note(number: int, frame: object) -> None:
        if signals:
            raise KeyboardInterrupt
        signals.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: next(iter(signals), None)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write_text(path: Path, text: str) -> None:
    def fill(partial: Path) -> None:
        partial.write_text(text, encoding="utf-8")

    checkpoint.replace_file(path, fill)

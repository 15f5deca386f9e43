"""Commands of the command line as plain functions, each of which only connects other packages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from longrec.config import apply_overrides
from longrec.errors import DataError, RunError
from longrec.imports import Config, read_job_source

Device = Literal["auto", "cpu", "cuda"]

if TYPE_CHECKING:
    from longrec.exporting.bundle import Manifest
    from longrec.metrics import Comparison
    from longrec.metrics.own import MetricsLike
    from longrec.models.core.catalog import Card
    from longrec.training.bibliography import Bibliography
    from longrec.training.compress import EncodeReport
    from longrec.training.evaluate import Evaluation
    from longrec.training.extract import ExtractReport
    from longrec.training.finished_run import Run


def check(source: Config, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a config with its schema, find its files and read their headers, without reading any row.

    Raises:
        ConfigError: if the config has faults. All are listed.
    """
    from longrec.data.splits import warn_of_missing_validation
    from longrec.training import job

    job_source = read_job_source(source, overrides)
    with job_source.error_context:
        checked = job.check(job_source.config, overrides)
    return {
        "model": checked.model["name"],
        "log": str(checked.data.log),
        "features": list(checked.schema.features),
        "histories": {name: list(history.features) for name, history in checked.schema.histories.items()},
        "warnings": warn_of_missing_validation(checked.data),
        "notes": list(job_source.notes),
    }


def prepare(source: Config, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Prepare the log of a config, unless it is prepared already.

    Returns:
        The manifest of the prepared log, with its ``folder``. ``spans`` holds the first and the last timestamp of each
        split, as ISO 8601 text or as steps.
    """
    from longrec.data.label_checks import check_window, window_warnings
    from longrec.data.log import Log
    from longrec.data.prepare import prepare as prepare_log
    from longrec.training.job import read_job

    job_source = read_job_source(source, overrides)
    with job_source.error_context:
        job = read_job(job_source.config, overrides)
    folder = prepare_log(job.data, job.schema)
    log = Log.open(folder, job.schema, stores=False)
    check_window(log, both_classes=False)
    warnings = [*log.warnings, *window_warnings(log)]
    return {
        "folder": str(folder),
        **log.manifest,
        "warnings": warnings,
        "left_out": log.excluded_counts,
        "notes": list(job_source.notes),
    }


def train(
    source: Config | None = None,
    overrides: Sequence[str] = (),
    *,
    resume: str | Path | None = None,
    device: Device | None = None,
    quiet: bool = False,
) -> Run:
    """Train the model of a config and evaluate it, or continue an interrupted run.

    Args:
        source: path of a config, or the config itself. None with ``resume``.
        overrides: settings such as ``fit.lr=3e-3``.
        resume: folder of an interrupted run.
        device: replaces ``fit.device``, also of a resumed run.
        quiet: print no progress.
    """
    from longrec.training.fit import train as fit
    from longrec.training.job import read_job

    if source is None:
        return fit(source, overrides, resume=resume, device=device, quiet=quiet)
    job_source = read_job_source(source, overrides)
    with job_source.error_context:
        if job_source.config is not source:
            read_job(job_source.config, overrides)
    return fit(job_source.config, overrides, resume=resume, device=device, quiet=quiet, notes=job_source.text)


def compress(
    source: Config | Run,
    into: str | Path,
    overrides: Sequence[str] = (),
    *,
    device: Device | None = None,
    quiet: bool = False,
) -> EncodeReport:
    """Write the tokens of a token source, for other models to read.

    Args:
        source: a finished run, or a config for modes that use no weights of a run.
        into: a new folder (``tokens/v1``), or a ``redis://`` address.
        overrides: settings such as ``every=2d`` or ``codec=int8``.
        device: device of the source. Default: ``fit.device``, or the CPU for a run where there is no GPU.

    Raises:
        RunError: if the model is a knowledge extractor, which ``encode`` takes.
    """
    from longrec.training.compress import compress as write_tokens

    opened, name, is_extractor = _open_encoder(source)
    if is_extractor:
        raise RunError(
            str(into),
            f"a knowledge extractor ({name}), which writes no tokens",
            "the run or the config of a token source",
            f"write its knowledge: longrec encode {_name_source(source)} --into knowledge/v1",
        )
    return write_tokens(opened, into, overrides, device=device, quiet=quiet)


def encode(
    source: Config | Run,
    into: str | Path,
    overrides: Sequence[str] = (),
    *,
    device: Device | None = None,
    quiet: bool = False,
) -> ExtractReport:
    """Write the user and item vectors of a knowledge extractor, for other models to read.

    Args:
        source: a finished run of an extractor, or its config.
        into: a new folder (``knowledge/v1``).
        overrides: settings such as ``every=7d`` or ``learn=all``.
        device: device of the extractor. Default: ``fit.device``, or the CPU for a run where there is no GPU.

    Raises:
        RunError: if the model is not an extractor. ``compress`` takes source models of tokens.
    """
    from longrec.training.extract import extract

    opened, name, is_extractor = _open_encoder(source)
    if not is_extractor:
        raise RunError(
            str(into),
            f"a model without vectors of users and items ({name})",
            "the run or the config of a knowledge extractor",
            f"train one (model: keep), or write tokens: longrec compress {_name_source(source)} --into tokens/v1",
        )
    return extract(opened, into, overrides, device=device, quiet=quiet)


def _open_encoder(source: Config | Run) -> tuple[Config | Run, str, bool]:
    """Return a run or a config, the name of its model, and True for a knowledge extractor."""
    from longrec.models.core.kinds import Extractor
    from longrec.training.finished_run import Run, open_run
    from longrec.training.job import read_job

    is_config = isinstance(source, Mapping) or (not isinstance(source, Run) and Path(source).is_file())
    opened = source if is_config or isinstance(source, Run) else open_run(source)  # type: ignore[arg-type]
    job = opened.config if isinstance(opened, Run) else read_job(opened)
    return opened, str(job.model["name"]), issubclass(job.model_class, Extractor)


def _name_source(source: Config | Run) -> str:
    """Return what a command line takes as the source model."""
    from longrec.training.finished_run import Run

    if isinstance(source, Run):
        return str(source.folder)
    return "CONFIG" if isinstance(source, Mapping) else str(source)


def evaluate(
    run: str | Path | Run, split: str = "test", *, metrics: MetricsLike = (), device: Device | None = None
) -> Evaluation:
    """Compute all metrics of a run on a split, with confidence intervals.

    Args:
        metrics: metrics of one's own: functions of labels, scores and users, by name.
        device: device that scores. Default: that of the run, or the CPU where there is no GPU.
    """
    from longrec.training.evaluate import evaluate as measure

    return measure(run, split, metrics=metrics, device=device)


def predict(
    run: str | Path | Run, split: str = "test", into: str | Path | None = None, *, device: Device | None = None
) -> Path:
    """Score all samples of a split and return the Parquet file with row, user, time, label, score.

    Args:
        device: device that scores. Default: that of the run, or the CPU where there is no GPU.
    """
    from longrec.training.evaluate import predict as score

    return score(run, split, into, device=device)


def compare(
    runs: Sequence[str | Path | Run],
    split: str = "test",
    *,
    resample: Literal["user", "row"] = "user",
    n_resamples: int = 300,
    metrics: MetricsLike = (),
) -> Comparison:
    """Compare runs on the same rows. The first is the baseline.

    Args:
        metrics: metrics of one's own: functions of labels, scores and users, by name.
    """
    from longrec.training.evaluate import compare as pair

    return pair(runs, split, resample=resample, n_resamples=n_resamples, metrics=metrics)


def export(run: str | Path | Run, out: str | Path, *, overwrite: bool = False) -> Manifest:
    """Export a run as a bundle, and verify that its whole online path returns the scores of the run.

    Args:
        run: a run of a ranker or a retriever, or a folder of tokens (``tokens/v1``), whose source is exported to write
            more tokens.

    Raises:
        RunError: if the run is one of a source model of tokens. Its tokens are exported instead.
        BundleError: if the folder exists, the model cannot be traced, or scores differ.
    """
    from longrec.exports import export_run, export_source
    from longrec.training.finished_run import Run, open_run
    from longrec.training.token_source import find_source

    if not isinstance(run, Run) and (folder := find_source(run)) is not None:
        return export_source(folder, Path(out), overwrite)
    return export_run(run if isinstance(run, Run) else open_run(run), Path(out), overwrite)


def models() -> list[Card]:
    """Return name, kind, paper and use of histories of all models, without importing them."""
    from longrec.models.core.catalog import describe, names

    return [describe(name) for name in names()]


def explain_model(name: str) -> str:
    """Return the description of a model from its file, and its settings with type, default and meaning."""
    from longrec.models.core.catalog import help_text

    return help_text(name)


def cite(source: Config, overrides: Sequence[str] = ()) -> Bibliography:
    """Return the BibTeX of a model, or of all models used by a config, a run or a token store, and of LongRec."""
    from longrec.training.bibliography import collect_citations

    job_source = read_job_source(source, overrides)
    with job_source.error_context:
        return collect_citations(job_source.config, overrides).bibliography()


def synthetic_datasets() -> list[str]:
    """Return the names of the synthetic datasets."""
    from longrec.data.synthetic import list_names

    return list_names()


def explain_synthetic(name: str) -> dict[str, Any]:
    """Return the ``story`` of a synthetic dataset and its ``parameters``, each with its default and its meaning.

    Raises:
        UnknownName: if there is no synthetic dataset of that name.
    """
    from longrec.data.synthetic import find_recipe

    fields = find_recipe(name).settings.model_fields
    parameters = {key: {"default": field.default, "about": field.description} for key, field in fields.items()}
    return {"dataset": name, "story": find_recipe(name).story, "parameters": parameters}


def make_synthetic(name: str, into: str | Path, overrides: Sequence[str] = (), *, seed: int = 0) -> dict[str, Any]:
    """Write a synthetic dataset into a folder, with the jobs that read it.

    Args:
        overrides: parameters of the dataset, such as ``users=5000``.

    Returns:
        Files and sizes of the dataset, and ``bayes_auc``: the AUC on its test rows of each true probability.

    Raises:
        UnknownName: if there is no synthetic dataset of that name.
        ConfigError: if a parameter is unknown, or cannot have its value.
        DataError: if the folder contains another log.
    """
    from longrec.data import synthetic
    from longrec.data.splits import TEST
    from longrec.metrics import auc

    dataset, into = synthetic.generate_dataset(name, **{"seed": seed, **apply_overrides({}, overrides)}), Path(into)
    if (into / "log.parquet").exists() and not (into / f"{name}.schema.yaml").exists():
        expected = f"a new folder, or the synthetic dataset {name} to replace"
        raise DataError(str(into), "a log.parquet of something else", expected)
    synthetic.write(dataset, into)
    label = dataset.log[dataset.schema["label"]].to_numpy(zero_copy_only=False)
    rows = np.flatnonzero((synthetic.compute_splits(dataset) == TEST) & ~np.isnan(dataset.true_probability))
    both = 0 < label[rows].sum() < len(rows)  # the rows of a few users may all have one class
    probabilities = dataset.true_probabilities()
    bayes_auc = {key: float(auc(label[rows], p[rows])) if both else None for key, p in probabilities.items()}
    return {
        "dataset": name,
        "folder": str(into),
        "files": synthetic.list_files(dataset),
        "events": len(dataset.log),
        "users": len(np.unique(dataset.log[dataset.schema["user"]].to_numpy())),
        "test_rows": len(rows),
        "bayes_auc": bayes_auc,
    }

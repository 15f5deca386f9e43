"""Commands of the command line as plain functions, each of which only connects other packages."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from longrec.errors import ConfigError, RunError
from longrec.imports import Config, read_job_source
from longrec.resources import pause_collector

Device = Literal["auto", "cpu", "cuda"]

if TYPE_CHECKING:
    from longrec.exporting.bundle import Manifest
    from longrec.metrics import Comparison
    from longrec.metrics.own import MetricsLike
    from longrec.training.compress import EncodeReport
    from longrec.training.evaluate import Evaluation
    from longrec.training.extract import ExtractReport
    from longrec.training.finished_run import Run
    from longrec.training.new_data import NewScores


def check(source: Config, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a config with its schema, find its files and read their headers, without reading any row.

    The source may be a pipeline, too: then its bundles are checked.

    Raises:
        ConfigError: if the config has faults. All are listed.
    """
    from longrec.data.splits import warn_of_missing_validation
    from longrec.pipeline.config import is_pipeline_file
    from longrec.training import job

    if is_pipeline_file(source):
        from longrec.pipeline_commands import check_pipeline

        return check_pipeline(source, overrides)  # type: ignore[arg-type]  # it is true of paths only
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
        split, as ISO 8601 text or as steps. ``facts`` holds ``LogFacts.to_dict()``.
    """
    from longrec.data.facts import read_facts
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
        "facts": read_facts(folder).to_dict(),
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

    A log that is prepared for it is described on standard error.

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
    on_prepared = None if quiet else _print_facts
    return fit(
        job_source.config,
        overrides,
        resume=resume,
        device=device,
        quiet=quiet,
        notes=job_source.text,
        on_prepared=on_prepared,
    )


def _print_facts(folder: Path) -> None:
    from longrec.data.facts import read_facts
    from longrec.reporting.facts_table import facts_text

    print(f"{facts_text(read_facts(folder).to_dict())}\n", file=sys.stderr)


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
    run: str | Path | Run,
    split: str = "test",
    *,
    log: Any = None,
    users: Any = None,
    items: Any = None,
    metrics: MetricsLike = (),
    device: Device | None = None,
) -> Evaluation:
    """Compute all metrics of a run on a split, or on new rows with labels, with confidence intervals.

    Args:
        log, users, items: new rows and their tables, as in ``predict``. They replace the split.
        metrics: metrics of one's own: functions of labels, scores and users, by name.
        device: device that scores. Default: that of the run, or the CPU where there is no GPU.
    """
    from longrec.training.evaluate import evaluate as measure
    from longrec.training.evaluate import evaluate_new
    from longrec.training.finished_run import open_run

    if log is not None:
        return evaluate_new(open_run(run), log, users=users, items=items, metrics=metrics, device=device)
    return measure(run, split, metrics=metrics, device=device)


def predict(
    run: str | Path | Run,
    split: str = "test",
    into: str | Path | None = None,
    *,
    log: Any = None,
    users: Any = None,
    items: Any = None,
    candidates: bool = False,
    device: Device | None = None,
) -> Path:
    """Score all samples of a split, or all rows of a new log, and return the Parquet file with the scores.

    Histories of new rows are the earlier events of their users in the run's own log and in the new rows.

    Args:
        into: the file. Default: in the folder ``predictions`` of the run.
        log: new rows: a path, several paths, a mapping as ``data.log`` of a config, or a frame (pandas, polars, Arrow,
            DuckDB). They replace the split.
        users, items: tables with features of new users or items, or newer versions of known ones, in the same forms.
        candidates: the new rows are candidates to score and not events, so that no history has them.
        device: device that scores. Default: that of the run, or the CPU where there is no GPU.
    """
    if log is not None:
        return predict_rows(run, log, into, users=users, items=items, candidates=candidates, device=device)[0]
    if users is not None or items is not None or candidates:
        raise ConfigError("predict", ["users, items and candidates are for new rows; name them with log"])
    from longrec.training.evaluate import predict as score

    return score(run, split, into, device=device)


def predict_rows(
    run: str | Path | Run,
    log: Any,
    into: str | Path | None = None,
    *,
    users: Any = None,
    items: Any = None,
    candidates: bool = False,
    device: Device | None = None,
) -> tuple[Path, NewScores]:
    """Score all rows of a new log, as ``predict`` does, and return the file with the scores and the scores."""
    from longrec.training.finished_run import open_run
    from longrec.training.new_data import write_new_scores

    return write_new_scores(open_run(run), log, into, users=users, items=items, candidates=candidates, device=device)


def compare(
    runs: Sequence[str | Path | Run],
    split: str = "test",
    *,
    resample: Literal["user", "row"] = "user",
    n_resamples: int = 300,
    common: bool = False,
    log: Any = None,
    users: Any = None,
    items: Any = None,
    device: Device | None = None,
    metrics: MetricsLike = (),
) -> Comparison:
    """Compare runs on the same rows. The first is the baseline.

    Args:
        common: compare on the rows that the splits of all runs have, by user, item and timestamp.
        log, users, items: new rows with labels and their tables, as in ``predict``. They replace the split.
        metrics: metrics of one's own: functions of labels, scores and users, by name.
    """
    from longrec.training.evaluate import compare as pair

    return pair(
        runs,
        split,
        resample=resample,
        n_resamples=n_resamples,
        metrics=metrics,
        common=common,
        log=log,
        users=users,
        items=items,
        device=device,
    )


def report(runs: str | Path | Run | Sequence[str | Path | Run], into: str | Path | None = None) -> Path:
    """Write the HTML report of a run, or of several side by side, and return its path.

    Args:
        into: the file. Default: ``report.html`` in the folder of a run, or ``compare-NAMES.html`` beside the folders of
            several.

    Raises:
        ConfigError: no run, the same run twice, or runs of different objectives.
        RunError: a run that is not finished.
    """
    from longrec.training.finished_run import Run, open_run
    from longrec.training.run_report import write_report

    several = [runs] if isinstance(runs, (str, Path, Run)) else runs
    return write_report([open_run(run) for run in several], into)


def try_report(runs: Sequence[str | Path | Run]) -> str | None:
    """Write the report of runs, as the last step of another command. A failure is a warning on standard error.

    Returns:
        The path, or None without a report.
    """
    try:
        return str(report(runs))
    except Exception as error:  # noqa: BLE001 - nothing that a report does may lose the result of a training
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        folders = " ".join(str(getattr(run, "folder", run)) for run in runs)
        print(f"warning: no report ({reason}); write it with: longrec report {folders}", file=sys.stderr)
        return None


def export(
    run: str | Path | Run,
    out: str | Path,
    *,
    overwrite: bool = False,
    index: Literal["auto", "exact", "ivf"] = "auto",
    recall_target: float = 0.98,
    recall_at: int = 100,
    states: bool = False,
    explore: Mapping[str, Any] | None = None,
) -> Manifest:
    """Export a run as a bundle, and verify that its whole online path returns the scores of the run.

    Args:
        run: a run of a ranker or a retriever, or a folder of tokens (``tokens/v1``), whose source is exported to write
            more tokens.
        index: search for the items of a vector retriever: exact, ivf (faiss, approximate), or auto: exact up to 200,000
            items.
        recall_target: share of the best ``recall_at`` items that an approximate search must return, on average over
            requests of the log.
        recall_at: number of best items.
        states: also export how an event updates the state of a user, which a server then keeps instead of histories.
        explore: also export an explorer of a ranker: its ``name`` and settings, such as ``{"name": "ucb"}``.

    Raises:
        ConfigError: if a setting of the index or the explorer has a fault, or the model cannot explore this way.
        RunError: if the run is one of a source model of tokens. Its tokens are exported instead.
        BundleError: if the folder exists, the model cannot be traced, or scores differ.
    """
    with pause_collector():
        from longrec.exports import export_run, export_source
        from longrec.index.build import IndexSettings
        from longrec.training.finished_run import Run, open_run
        from longrec.training.token_source import find_source

        settings = IndexSettings(index, recall_target, recall_at)
        if not isinstance(run, Run) and (folder := find_source(run)) is not None:
            return export_source(folder, Path(out), overwrite)
        return export_run(open_run(run), Path(out), overwrite, settings, states, explore)

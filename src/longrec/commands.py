"""What the command line does, as plain functions: each verb glues rooms together and holds no logic of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from longrec.config import apply_overrides
from longrec.errors import DataError, RunError
from longrec.imports import Config, read_job_source

if TYPE_CHECKING:
    from longrec.data.log import Log
    from longrec.export.bundle import Manifest
    from longrec.export.golden import GoldenRequest
    from longrec.metrics import Comparison
    from longrec.models.core.base import Model
    from longrec.models.core.catalog import Card
    from longrec.train.bibliography import Bibliography
    from longrec.train.compress import EncodeReport
    from longrec.train.evaluate import Evaluation
    from longrec.train.extract import ExtractReport
    from longrec.train.finished_run import Run


def check(source: Config, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a config with its schema, find its files and read their headers, without reading any row.

    Raises:
        ConfigError: every fault of the config, all at once.
    """
    from longrec.data.splits import warn_of_missing_validation
    from longrec.train import job

    given = read_job_source(source, overrides)
    with given.error_context:
        found = job.check(given.config, overrides)
    return {
        "model": found.model["name"],
        "log": str(found.data.log),
        "features": list(found.schema.features),
        "histories": {name: list(history.features) for name, history in found.schema.histories.items()},
        "warnings": warn_of_missing_validation(found.data),
        "notes": list(given.notes),
    }


def prepare(source: Config, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Prepare the log of a config, or find it prepared.

    Returns:
        The manifest of the prepared log, with its ``folder``; ``spans`` holds the first and the last timestamp of each
        part, as ISO 8601 text or as steps.
    """
    from longrec.data.label_checks import check_window, window_warnings
    from longrec.data.log import Log
    from longrec.data.prepare import prepare as prepare_log
    from longrec.train.job import read_job

    given = read_job_source(source, overrides)
    with given.error_context:
        job = read_job(given.config, overrides)
    folder = prepare_log(job.data, job.schema)
    log = Log.open(folder, job.schema, stores=False)
    check_window(log)
    warnings = [*log.warnings, *window_warnings(log)]
    return {
        "folder": str(folder),
        **log.manifest,
        "warnings": warnings,
        "left_out": log.excluded_counts,
        "notes": list(given.notes),
    }


def train(
    source: Config | None = None,
    overrides: Sequence[str] = (),
    *,
    resume: str | Path | None = None,
    quiet: bool = False,
) -> Run:
    """Train the model of a config and measure it, or go on with a run that was interrupted.

    Args:
        source: path of a config, or the config itself; None with ``resume``.
        overrides: words such as ``fit.lr=3e-3``.
        resume: folder of an interrupted run.
        quiet: no progress.
    """
    from longrec.train.fit import train as fit
    from longrec.train.job import read_job

    if source is None:
        return fit(source, overrides, resume=resume, quiet=quiet)
    given = read_job_source(source, overrides)
    with given.error_context:
        if given.config is not source:
            read_job(given.config, overrides)
    return fit(given.config, overrides, resume=resume, quiet=quiet, notes=given.text)


def compress(
    source: Config | Run, into: str | Path, overrides: Sequence[str] = (), *, quiet: bool = False
) -> EncodeReport | ExtractReport:
    """Write the tokens of a source, or the knowledge of an extractor, for other models to read.

    Args:
        source: a finished run, or a config where nothing of a run is needed.
        into: a folder that is not there yet (``tokens/v1``), or for tokens a ``redis://`` address.
        overrides: settings such as ``every=2d`` or ``codec=int8``.
    """
    from longrec.models.core.base import find
    from longrec.train.compress import compress as write_tokens
    from longrec.train.extract import extract
    from longrec.train.finished_run import Run, open_run
    from longrec.train.job import read_job

    config = isinstance(source, Mapping) or (not isinstance(source, Run) and Path(source).is_file())
    given = source if config or isinstance(source, Run) else open_run(source)  # type: ignore[arg-type]
    job = given.config if isinstance(given, Run) else read_job(given)
    if hasattr(find(str(job.model["name"])), "user_knowledge"):
        return extract(given, into, overrides, quiet=quiet)
    return write_tokens(given, into, overrides, quiet=quiet)


def evaluate(run: str | Path | Run, part: str = "test") -> Evaluation:
    """Measure a run on a part of its log: every metric with its interval."""
    from longrec.train.evaluate import evaluate as measure

    return measure(run, part)


def predict(run: str | Path | Run, part: str = "test", into: str | Path | None = None) -> Path:
    """Score every sample of a part; a Parquet file with row, user, time, label, score."""
    from longrec.train.evaluate import predict as score

    return score(run, part, into)


def compare(
    runs: Sequence[str | Path | Run],
    part: str = "test",
    *,
    resample: Literal["user", "row"] = "user",
    n_resamples: int = 300,
) -> Comparison:
    """Compare runs on the same rows; the first is the baseline."""
    from longrec.train.evaluate import compare as pair

    return pair(runs, part, resample=resample, n_resamples=n_resamples)


def export(run: str | Path | Run, out: str | Path, *, overwrite: bool = False) -> Manifest:
    """Export a run as a bundle, and prove that its whole online path scores as the run does.

    Args:
        run: a run of a ranker; or a folder of tokens (``tokens/v1``), whose source is exported to write further ones.

    Raises:
        RunError: a run of a source, whose weights write nothing: its tokens are exported.
        BundleError: a folder in the way, a model that cannot be traced, or scores that differ.
    """
    from longrec.export.write import ExternalStores
    from longrec.export.write import export as write
    from longrec.models.core.base import Ranker
    from longrec.serve.service import replay
    from longrec.train.finished_run import Run
    from longrec.train.token_source import find_source

    if not isinstance(run, Run) and (folder := find_source(run)) is not None:
        return _export_source(folder, Path(out), overwrite)
    opened = _open(run)
    log, model = opened.log(), opened.model()
    if not isinstance(model, Ranker):
        raise RunError(
            str(opened.folder),
            f"a source ({opened.config.model['name']}), whose tokens are written by weights of other moments",
            "a ranker, or the tokens of a source",
            f"compress first: longrec compress {opened.folder} --into tokens/v1, then longrec export tokens/v1 {out}",
        )
    others = popular(log)[:50]
    golden = [offline_request(log, model, int(row), others) for row in _telling_rows(log)]
    source = {"run": opened.name, "config": opened.config.to_yaml()}
    external_stores = ExternalStores(
        {name: history.store for name, history in log.tokens.items()},
        {name: feature.store for name, feature in log.knowledge.items()},
    )
    name = opened.config.model["name"]
    return write(
        model,
        log.folder,
        Path(out),
        golden,
        replay,
        fitted=log.fitted,
        name=name,
        source=source,
        overwrite=overwrite,
        external_stores=external_stores,
    )


def _export_source(folder: Path, out: Path, overwrite: bool) -> Manifest:
    """The source of some tokens as a bundle, and the proof that it makes the same tokens of rows of its log."""
    from longrec.data.requests import build_impression
    from longrec.export.bundle import EncoderFacts
    from longrec.export.golden import Sample
    from longrec.export.offline import build_golden_tokens
    from longrec.export.scale import Scale
    from longrec.export.write import ExternalStores
    from longrec.export.write import export as write
    from longrec.models.core.base import name_of
    from longrec.serve.online_source import replay
    from longrec.train.token_source import open_source

    made = open_source(folder)
    log, scale = made.log, Scale(made.mean, made.std)
    samples = [Sample(**build_impression(log, int(row), popular(log)[:10])) for row in _telling_rows(log)]
    golden = [build_golden_tokens(made.model, log.fitted, log.users, log.items, sample, scale) for sample in samples]
    return write(
        made.model,
        log.folder,
        out,
        golden,
        replay,
        fitted=log.fitted,
        name=name_of(made.model),
        source={"run": made.run, "version": made.version},
        overwrite=overwrite,
        external_stores=ExternalStores(
            {name: history.store for name, history in log.tokens.items()},
            {name: feature.store for name, feature in log.knowledge.items()},
        ),
        encoder=EncoderFacts(made.version, scale, made.model.width, made.model.slots),
    )


def offline_request(log: Log, model: Model, row: int, others: Iterable[int]) -> GoldenRequest:
    """The request of a row of the log, its own item ranked beside others, with the scores it must get."""
    from longrec.data.requests import build_impression
    from longrec.export.golden import Sample
    from longrec.export.offline import build_golden_request

    return build_golden_request(model, log.fitted, log.users, log.items, Sample(**build_impression(log, row, others)))


def popular(log: Log) -> NDArray[np.int64]:
    """Rows of the item table, those with the most training events first."""
    counts = np.bincount(log.events.columns["item"][log.rows_of("train")], minlength=len(log.items))
    return np.argsort(-counts, kind="stable")


def _telling_rows(log: Log, count: int = 6) -> NDArray[np.int64]:
    """Rows spread over the last part that has any: many users, histories short and long."""
    rows = next(rows for part in ("test", "valid", "train") if len(rows := log.rows_of(part)))
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64)]


def _open(run: str | Path | Run) -> Run:
    from longrec.train.finished_run import Run, open_run

    return run if isinstance(run, Run) else open_run(run)


def models() -> list[Card]:
    """Name, kind, paper and whether it reads histories, of every model; imports none of them."""
    from longrec.models.core.catalog import describe, names

    return [describe(name) for name in names()]


def explain_model(name: str) -> str:
    """What a model is, from its file, and every setting with its type, default and meaning."""
    from longrec.models.core.base import help_text

    return help_text(name)


def cite(source: Config, overrides: Sequence[str] = ()) -> Bibliography:
    """The BibTeX of a model, or of all that a config, a run or a folder of tokens stands on; LongRec comes last."""
    from longrec.train.bibliography import collect_citations

    given = read_job_source(source, overrides)
    with given.error_context:
        return collect_citations(given.config, overrides).bibliography()


def worlds() -> list[str]:
    """Names of the small worlds."""
    from longrec.data.synthetic import list_names

    return list_names()


def explain_world(name: str) -> dict[str, Any]:
    """The ``story`` of a small world and its ``knobs``, each with its default and its meaning.

    Raises:
        UnknownName: no world of that name.
    """
    from longrec.data.synthetic import find_recipe

    fields = find_recipe(name).settings.model_fields
    knobs = {knob: {"default": field.default, "about": field.description} for knob, field in fields.items()}
    return {"world": name, "story": find_recipe(name).story, "knobs": knobs}


def make_world(name: str, into: str | Path, overrides: Sequence[str] = (), *, seed: int = 0) -> dict[str, Any]:
    """Write a small world into a folder, with the jobs that read it.

    Args:
        overrides: knobs of the world, such as ``users=5000``.

    Returns:
        What was written, and the AUC on its test rows of the true probabilities, given what one may know.

    Raises:
        UnknownName: no world of that name.
        ConfigError: a knob that the world has not, or a value that it cannot have.
        DataError: a log that is none of this world's lies in the folder.
    """
    from longrec.data import synthetic
    from longrec.data.splits import TEST
    from longrec.metrics import auc

    made, into = synthetic.generate_dataset(name, **{"seed": seed, **apply_overrides({}, overrides)}), Path(into)
    if (into / "log.parquet").exists() and not (into / f"{name}.schema.yaml").exists():
        raise DataError(str(into), "a log.parquet of something else", f"a new folder, or the world {name} to replace")
    synthetic.write(made, into)
    label = made.log[made.schema["label"]].to_numpy(zero_copy_only=False)
    rows = np.flatnonzero((synthetic.compute_splits(made) == TEST) & ~np.isnan(made.true_probability))
    both = 0 < label[rows].sum() < len(rows)  # a handful of users may leave one class alone
    return {
        "world": name,
        "folder": str(into),
        "files": synthetic.list_files(made),
        "events": len(made.log),
        "users": len(np.unique(made.log[made.schema["user"]].to_numpy())),
        "test_rows": len(rows),
        "oracles": {
            key: float(auc(label[rows], p[rows])) if both else None for key, p in made.true_probabilities().items()
        },
    }

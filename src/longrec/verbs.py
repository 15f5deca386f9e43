"""What the command line does, as plain functions: each verb glues rooms together and holds no logic of its own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from longrec.errors import RunError

if TYPE_CHECKING:
    from longrec.data.log import Log
    from longrec.export.bundle import Manifest
    from longrec.export.golden import Golden
    from longrec.metrics import Comparison
    from longrec.models.base import Model
    from longrec.models.catalogue import Card
    from longrec.train.evaluate import Evaluation
    from longrec.train.run import Run

Config = str | Path | Mapping[str, Any]


def check(source: Config, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a config with its schema, and find its files, without reading any data.

    Raises:
        ConfigError: every fault of the config, all at once.
    """
    from longrec.train import job

    found = job.check(source, overrides)
    return {
        "model": found.model["name"],
        "log": str(found.data.log),
        "features": list(found.schema.features),
        "histories": {name: list(history.of) for name, history in found.schema.histories.items()},
    }


def prepare(source: Config, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Prepare the log of a config, or find it prepared.

    Returns:
        The manifest of the prepared log, with its ``folder``.
    """
    from longrec.data.prepare import prepare as prepare_log
    from longrec.train.job import read_job

    job = read_job(source, overrides)
    folder = prepare_log(job.data, job.schema)
    return {"folder": str(folder), **json.loads((folder / "log.json").read_text())}


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

    return fit(source, overrides, resume=resume, quiet=quiet)


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
    unit: Literal["user", "row"] = "user",
    replicates: int = 300,
) -> Comparison:
    """Compare runs on the same rows; the first is the baseline."""
    from longrec.train.evaluate import compare as pair

    return pair(runs, part, unit=unit, replicates=replicates)


def export(run: str | Path | Run, out: str | Path, *, overwrite: bool = False) -> Manifest:
    """Export a run as a bundle, and prove that its whole online path scores as the run does.

    Raises:
        BundleError: a folder in the way, a model that cannot be traced, or scores that differ.
    """
    from longrec.export.write import export as write
    from longrec.models.base import Ranker
    from longrec.serve.service import replay

    opened = _open(run)
    log, model = opened.log(), opened.model()
    if not isinstance(model, Ranker):
        raise RunError(str(opened.folder), f"a model of the kind {type(model).__name__}", "a ranker")
    others = popular(log)[:50]
    golden = [offline_request(log, model, int(row), others) for row in _telling_rows(log)]
    source = {"run": opened.name, "config": opened.config.to_yaml()}
    name, out = opened.config.model["name"], Path(out)
    return write(
        model, log.folder, out, golden, replay, fitted=log.fitted, name=name, source=source, overwrite=overwrite
    )


def offline_request(log: Log, model: Model, row: int, others: Iterable[int]) -> Golden:
    """The request of a row of the log, its own item ranked beside others, with the scores it must get."""
    from longrec.data.requests import impression
    from longrec.export.golden import Sample
    from longrec.export.offline import golden

    return golden(model, log.fitted, log.users, log.items, Sample(**impression(log, row, others)))


def popular(log: Log) -> NDArray[np.int64]:
    """Rows of the item table, those with the most training events first."""
    counts = np.bincount(log.events.columns["item"][log.rows_of("train")], minlength=len(log.items))
    return np.argsort(-counts, kind="stable")


def _telling_rows(log: Log, count: int = 6) -> NDArray[np.int64]:
    """Rows spread over the last part that has any: many users, histories short and long."""
    rows = next(rows for part in ("test", "valid", "train") if len(rows := log.rows_of(part)))
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64)]


def _open(run: str | Path | Run) -> Run:
    from longrec.train.run import Run, open_run

    return run if isinstance(run, Run) else open_run(run)


def models() -> list[Card]:
    """Name, kind, paper and whether it reads histories, of every model; imports none of them."""
    from longrec.models.catalogue import describe, names

    return [describe(name) for name in names()]


def explain_model(name: str) -> str:
    """What a model is, from its file, and every setting with its type, default and meaning."""
    from longrec.models.base import help_text

    return help_text(name)

"""Objective ``clicks``: the probability of a binary label of each row, for rankers and encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longrec import metrics
from longrec.data.label_checks import check_classes, check_window, describe_exclusions
from longrec.data.log import Log
from longrec.data.sample_weights import check_weights
from longrec.data.targets import check_targets, compute_target
from longrec.errors import DataError
from longrec.metrics import Comparison, Interval
from longrec.metrics.own import Metric
from longrec.models.core.base import Model
from longrec.progress import Progress
from longrec.training.base_rate import collect_bias_warnings, start_at_base_rates
from longrec.training.loaders import build_loader, collect_grouping_warnings
from longrec.training.negative_correction import check_negative_rate, check_negatives_left, correct_output_bias
from longrec.training.objective_settings import ClickSettings
from longrec.training.objectives.objective import Evaluation, Loader, Objective
from longrec.training.scoring import measure, score, score_tasks
from longrec.training.settings import EvaluateConfig, FitConfig

_TASK_METRICS = ("auc", "log_loss", "normalized_entropy", "pcoc")


class Clicks(Objective):
    """Probability of the schema's label per row, and of further labels of models of several tasks."""

    name = "clicks"
    columns = ("row", "user", "time", "label", "score")
    settings = ClickSettings()

    def rows_of(self, log: Log, split: str) -> NDArray[np.int64]:
        """Return the labeled rows of a split."""
        return log.rows_of(split)

    def check_log(self, log: Log, fit: FitConfig, evaluate: EvaluateConfig) -> None:
        """Refuse splits that cannot be trained on or evaluated, see ``check_splits``."""
        check_splits(log, fit, evaluate)

    def check_model(self, model: Model, log: Log, fit: FitConfig) -> None:
        """Refuse targets that the log does not have, and sampled negatives that cannot be corrected."""
        check_targets(log, model.targets)
        check_negative_rate(model, fit)
        check_negatives_left(log, fit)

    def build_loader(self, model: Model, log: Log, fit: FitConfig) -> Loader:
        """Return the batches of the training rows."""
        return build_loader(
            model,
            log,
            log.rows_of("train"),
            fit.batch_size,
            seed=fit.seed,
            bucket_by_length=fit.bucket_by_length,
            negative_rate=fit.negative_rate,
            group_requests=fit.group_requests,
        )

    def start(self, model: Model, log: Log, loader: Loader) -> None:
        """Start at the base rates of the labels."""
        start_at_base_rates(model, log, loader.loss_rows)

    def correct(self, model: Model, fit: FitConfig) -> AbstractContextManager[None]:
        """Correct the output bias for ``fit.negative_rate``."""
        return correct_output_bias(model, fit.negative_rate)

    def validate(
        self,
        model: Model,
        log: Log,
        rows: NDArray[np.int64],
        fit: FitConfig,
        evaluate: EvaluateConfig,
        own: Sequence[Metric] = (),
    ) -> dict[str, float]:
        """Return AUC, GAUC, log loss, normalized entropy and PCOC."""
        scores = score(model, log, rows, evaluate.batch_size, bf16=fit.bf16)
        column = evaluate.sample_weight
        weight = None if column is None else log.weight_of(column).take(rows)
        labels, users = log.labels.take(rows), log.user(rows)
        measures = measure(labels, scores, users, weight)
        for metric in own:
            measures[metric.name] = metric(labels.astype(np.float64), scores.astype(np.float64), users)
        return measures

    def collect_warnings(self, model: Model, log: Log, fit: FitConfig) -> list[str]:
        """Return warnings about the output bias and about grouping without a gain."""
        return [*collect_bias_warnings(model), *collect_grouping_warnings(model, log, fit.group_requests)]

    @property
    def same_columns(self) -> Sequence[str]:
        """Time, label, user and weight."""
        return ("time", "label", "user", "weight")

    def predict(
        self,
        model: Model,
        log: Log,
        rows: NDArray[np.int64],
        fit: FitConfig,
        evaluate: EvaluateConfig,
        progress: Progress,
    ) -> dict[str, Any]:
        """Return labels, scores and, if set, weights, and those of further tasks."""
        scores, tasks = score_tasks(model, log, rows, evaluate.batch_size, bf16=fit.bf16, progress=progress)
        columns: dict[str, Any] = {"label": log.labels.take(rows), "score": scores}
        if evaluate.sample_weight is not None:
            columns["weight"] = log.weight_of(evaluate.sample_weight).take(rows)
        for name, probability in tasks.items():
            if name in model.targets:
                columns[f"label.{name}"] = pa.array(compute_target(log, name, rows), from_pandas=True)
            columns[f"score.{name}"] = probability
        return columns

    def measure(self, table: pa.Table, run: str, model: str, split: str, config: EvaluateConfig) -> Evaluation:
        """Compute the metrics of a table of predictions.

        Raises:
            DataError: labels of one class, or fewer than two users to resample.
        """
        label, scores, user = (table[name].to_numpy() for name in ("label", "score", "user"))
        weight = table["weight"].to_numpy() if config.sample_weight is not None else None
        metrics_by_name = _summarize(label, scores, user, weight, config)
        for column in table.column_names:
            name = column.removeprefix("score.")
            if name != column:
                metrics_by_name |= _measure_task(table, name, config)
        grouped = metrics.grouped_auc(label, scores, user, weight)
        return Evaluation(
            run=run,
            model=model,
            split=split,
            rows=len(label),
            users=grouped.users + grouped.users_skipped,
            positives=int(label.sum()),
            users_skipped=grouped.users_skipped,
            metrics=metrics_by_name,
            warnings=metrics.metric_warnings(metrics_by_name, split, not_probabilities=_find_non_probabilities(table)),
            sample_weight=config.sample_weight,
        )

    def compare(
        self,
        tables: Mapping[str, pa.Table],
        config: EvaluateConfig,
        split: str,
        *,
        baseline: str | None,
        resample: Literal["user", "row"],
        n_resamples: int,
        seed: int,
    ) -> Comparison:
        """Compare the scores of runs."""
        first = next(iter(tables.values()))
        weight = first["weight"].to_numpy() if config.sample_weight is not None else None
        comparison = metrics.compare(
            first["label"].to_numpy(),
            {name: table["score"].to_numpy() for name, table in tables.items()},
            first["user"].to_numpy(),
            baseline=baseline,
            n_resamples=n_resamples,
            seed=seed,
            resample=resample,
            split=split,
            weight=weight,
        )
        warnings = [
            warning
            for name, table in tables.items()
            for warning in metrics.metric_warnings(comparison.runs[name], split, name, _find_non_probabilities(table))
        ]
        return replace(comparison, warnings=tuple(warnings), sample_weight=config.sample_weight)


def check_splits(log: Log, fit: FitConfig, evaluate: EvaluateConfig) -> None:
    """Refuse, before training, a training window without labels, and a valid or test split that cannot be evaluated.

    Raises:
        DataError: no samples in either split, labels of one class, one user if users are resampled, or no user that
            the monitor GAUC could count.
    """
    do = "change the split (data.split), or check the condition of the label"
    check_classes(log)
    check_window(log)
    splits = {split: rows for split in ("valid", "test") if len(rows := log.rows_of(split))}
    if not splits:
        raise DataError("data.split", "no sample in valid and none in test", "samples in at least one split", do)
    for split, rows in splits.items():
        labels, users, where = log.labels.take(rows), log.user(rows), f"the {split} split"
        if len(log.excluded_rows(split).rows):
            where += f", without {len(log.excluded_rows(split).rows):,} rows ({describe_exclusions(log, split)})"
        if labels.min() == labels.max():
            raise DataError(where, f"{len(rows):,} samples that are all {labels[0]:g}", "both classes", do)
        if evaluate.resample == "user" and users[0] == users[-1]:
            raise DataError(where, "samples of one user", "two users or more", f"{do}, or set evaluate.resample: row")
        if split == "valid" and fit.monitor == "gauc" and not metrics.grouped_auc(labels, labels, users).users:
            raise DataError(where, "no user with samples of both classes", "at least one", "set fit.monitor: auc")
    _check_weights(log, fit, evaluate, splits)


def _check_weights(log: Log, fit: FitConfig, evaluate: EvaluateConfig, splits: Mapping[str, NDArray[np.int64]]) -> None:
    """Refuse sample weights that leave a class without weight in training or evaluation rows."""
    weights = [(fit.sample_weight, "train", log.rows_of("train"), "fit.sample_weight")]
    weights += [(evaluate.sample_weight, split, rows, "evaluate.sample_weight") for split, rows in splits.items()]
    for column, split, rows, setting in weights:
        if column is not None:
            check_weights(log.weight_of(column).take(rows), log.labels.take(rows), split, setting)


def _summarize(
    label: NDArray[Any], scores: NDArray[Any], user: NDArray[Any], weight: NDArray[Any] | None, config: EvaluateConfig
) -> dict[str, Interval]:
    n_resamples, seed, resample = config.n_resamples, config.seed, config.resample
    return metrics.summary(label, scores, user, n_resamples=n_resamples, seed=seed, resample=resample, weight=weight)


def _find_non_probabilities(table: pa.Table) -> list[str]:
    """Return the unnamed score if it combines tasks. The probability of the label is then a column of its own."""
    return [""] if "score.label" in table.column_names else []


def _measure_task(table: pa.Table, name: str, config: EvaluateConfig) -> dict[str, Interval]:
    """Compute the metrics of a further task on the rows with its label. They are undefined for one class."""
    label = table["label" if name == "label" else f"label.{name}"].to_numpy()
    is_labeled = ~np.isnan(label)
    weight = None
    if config.sample_weight is not None:
        weight = table["weight"].to_numpy()
        is_labeled &= weight > 0
        weight = weight[is_labeled]
    label, scores, user = (
        label[is_labeled],
        table[f"score.{name}"].to_numpy()[is_labeled],
        table["user"].to_numpy()[is_labeled],
    )
    units = len(label) if config.resample == "row" else len(np.unique(user))
    metrics_by_name: dict[str, Interval] = {}
    if units > 1 and label.min() < label.max():
        metrics_by_name = _summarize(label, scores, user, weight, config)
    return {f"{key}.{name}": metrics_by_name.get(key, Interval.undefined()) for key in _TASK_METRICS}

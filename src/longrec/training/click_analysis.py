"""Analysis of predicted probabilities: base rate and item rate, segments, and explained rows."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longrec.data.log import Log
from longrec.data.targets import compute_targets
from longrec.metrics import Interval
from longrec.metrics.bootstrap import METRICS, bootstrap
from longrec.models.core.base import Model
from longrec.training.analysis import (
    SEGMENT_RESAMPLES,
    Analysis,
    Reference,
    format_events,
    format_timestamp_of,
    format_value,
)
from longrec.training.base_rate import base_rate
from longrec.training.explained_rows import explain_rows
from longrec.training.job import Job
from longrec.training.settings import EvaluateConfig, FitConfig

PRIOR_ROWS = 20
"""Number of rows at the base rate that each item starts with."""
_LEAST = 20
"""Number of rows of each class that a segment needs for an AUC."""


class ClickAnalysis(Analysis):
    """Analysis of the objective ``clicks``."""

    segment_metrics: ClassVar[tuple[str, ...]] = ("auc", "pcoc")

    def predict_references(
        self, log: Log, table: pa.Table, fit: FitConfig, evaluate: EvaluateConfig
    ) -> list[Reference]:
        """Return the base rate of the train split, and the smoothed rate of each item, for all tasks of the table."""
        rows = log.rows_of("train")
        tasks = [name.removeprefix("score.") for name in table.column_names if name.startswith("score.")]
        further = compute_targets(log, rows, [task for task in tasks if task != "label"])
        labels = {"score": log.labels.take(rows)}
        labels |= {f"score.{t}": labels["score"] if t == "label" else further[t].numpy() for t in tasks}
        items = log.events.columns["item"]
        train_items, own_items = items.take(rows), items.take(table["row"].to_numpy())
        weight = None if log.sample_weight is None else log.sample_weight.take(rows)
        constant, by_item = table, table
        for column, label in labels.items():
            rate, rates = count_rates(label, train_items, len(log.items), weight)
            at = table.column_names.index(column)
            constant = constant.set_column(at, column, pa.array(np.full(len(table), rate, np.float32)))
            by_item = by_item.set_column(at, column, pa.array(rates.take(own_items).astype(np.float32)))
        references = [Reference("base rate", "the share of positives in train", constant)]
        if len(log.items) > 1:
            about = f"that of the item, smoothed with {PRIOR_ROWS} rows at the base rate"
            references.append(Reference("item rate", about, by_item))
        return references

    def measure_segment(self, table: pa.Table, evaluate: EvaluateConfig) -> dict[str, Interval]:
        """Return AUC and PCOC, or nothing where a class has fewer than 20 rows."""
        label, score, user = (table[name].to_numpy() for name in ("label", "score", "user"))
        positives = int((label > 0.5).sum())
        units = len(label) if evaluate.resample == "row" else len(np.unique(user))
        if min(positives, len(label) - positives) < _LEAST or units < _LEAST:
            return {}
        weight = table["weight"].to_numpy() if "weight" in table.column_names else None
        drawn = bootstrap(
            label,
            {"": score},
            user,
            n_resamples=SEGMENT_RESAMPLES,
            seed=evaluate.seed,
            resample=evaluate.resample,
            weight=weight,
        )
        values = {}
        for key in self.segment_metrics:
            index = METRICS.index(key)
            value, spread = float(drawn.values[""][index]), 1.96 * float(drawn.draws[""][:, index].std(ddof=1))
            values[key] = Interval(value, value - spread, value + spread)
        return values

    def explain_samples(self, log: Log, model: Model, table: pa.Table, job: Job) -> list[dict[str, Any]]:
        """Return the positive and the negative with the highest scores, and the positive with the lowest."""
        chosen, reads_history = choose_rows(log, table), model.reads_history
        explained = explain_rows(log, model, list(chosen.values()), bf16=job.fit.bf16)
        samples = []
        for title, one in zip(chosen, explained):
            keys = {"User": one["user"], "Candidate": one["item"]}
            facts = {name: key for name, key in keys.items() if key is not None}
            facts["Score"] = f"{one['score']:.4f}"
            if log.schema.time is not None:
                facts["At"] = format_timestamp_of(log, one["timestamp"])
            samples.append(
                {
                    "title": title,
                    "facts": {name: str(value) for name, value in facts.items()},
                    "features": {name: format_value(value) for name, value in one["features"].items()},
                    "histories": {name: format_events(own) for name, own in one["histories"].items() if reads_history},
                    "step": log.schema.time is not None and log.schema.time.unit == "step",
                }
            )
        return samples


def count_rates(
    label: NDArray[np.float32], item: NDArray[Any], items: int, weight: NDArray[np.float32] | None = None
) -> tuple[float, NDArray[np.float64]]:
    """Return the share of positives, and that of each item, smoothed with rows at the share of all.

    Args:
        label: ``[N]`` of 0 and 1. NaN for a label that is not available.
        item: ``[N]`` row of the item table of each label.
        items: number of rows of the item table.

    >>> rate, rates = count_rates(np.array([1, 0, 0, 0], np.float32), np.array([1, 1, 2, 2]), 3)
    >>> rate, rates.round(3).tolist()
    (0.25, [0.25, 0.273, 0.227])
    """
    labeled = ~np.isnan(label)
    w = np.ones(int(labeled.sum())) if weight is None else weight[labeled].astype(np.float64)
    rate = base_rate(label, weight)
    counts = np.bincount(item[labeled], w, items)
    positives = np.bincount(item[labeled], w * label[labeled], items)
    return rate, (positives + PRIOR_ROWS * rate) / (counts + PRIOR_ROWS)


def choose_rows(log: Log, table: pa.Table) -> dict[str, int]:
    """Return the rows to explain by title, among those whose histories are not shorter than usual."""
    rows, label, score = (table[name].to_numpy() for name in ("row", "label", "score"))
    length = np.zeros(len(rows), np.int64)
    for name, history in log.schema.histories.items():
        if history.source is None:
            length += log.compute_history_lengths(name, rows)
    usual = length >= np.median(length)
    chosen: dict[str, int] = {}
    for title, is_candidate, sign in (
        ("Positive with the highest score", label > 0.5, 1),
        ("Negative with the highest score", label < 0.5, 1),
        ("Positive with the lowest score", label > 0.5, -1),
    ):
        among = np.flatnonzero(is_candidate & usual)
        if len(among):
            row = int(rows[among[np.argmax(sign * score[among])]])
            if row not in chosen.values():
                chosen[title] = row
    return chosen

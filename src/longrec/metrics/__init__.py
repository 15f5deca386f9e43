"""Metrics: plain functions of arrays, each with its formula, its edge cases and an interval.

:func:`summary` computes all metrics of a binary task. :func:`compare` computes the differences between runs on the same
rows, with confidence intervals. The package needs numpy and nothing else.
"""

from __future__ import annotations

from longrec.metrics.auc import GroupedAUC, auc, gauc, grouped_auc
from longrec.metrics.bootstrap import METRICS, Draws, bootstrap
from longrec.metrics.bounds import metric_warnings
from longrec.metrics.business import ctr_at_k, value_share_at_k
from longrec.metrics.calibration import (
    CalibrationCurve,
    calibration_curve,
    ece,
    log_loss,
    normalized_entropy,
    pcoc,
)
from longrec.metrics.compare import BETTER, Comparison, Difference, compare, summary
from longrec.metrics.diversity import coverage, gini, intra_list_diversity, novelty
from longrec.metrics.interval import Interval, rename_metric
from longrec.metrics.ranking import hit_rate_at_k, lists_skipped, mrr, ndcg_at_k, recall_at_k

__all__ = [
    "BETTER",
    "METRICS",
    "CalibrationCurve",
    "Comparison",
    "Difference",
    "Draws",
    "GroupedAUC",
    "Interval",
    "auc",
    "bootstrap",
    "calibration_curve",
    "compare",
    "coverage",
    "ctr_at_k",
    "ece",
    "gauc",
    "gini",
    "grouped_auc",
    "hit_rate_at_k",
    "intra_list_diversity",
    "lists_skipped",
    "log_loss",
    "metric_warnings",
    "mrr",
    "ndcg_at_k",
    "normalized_entropy",
    "novelty",
    "pcoc",
    "recall_at_k",
    "rename_metric",
    "summary",
    "value_share_at_k",
]

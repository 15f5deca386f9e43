"""Metrics: plain functions of arrays, each with its formula, its edge cases and an interval.

:func:`summary` computes all metrics of a binary task. :func:`compare` computes the differences between runs on the same
rows, with confidence intervals. The package needs numpy and nothing else.
"""

from __future__ import annotations

from longrec.metrics.accuracy import (
    list_average_precision,
    list_hit_rate,
    list_mrr,
    list_ndcg,
    list_precision,
    list_recall,
    rate_lists,
)
from longrec.metrics.auc import GroupedAUC, auc, gauc, grouped_auc
from longrec.metrics.bootstrap import METRICS, Draws, bootstrap
from longrec.metrics.bounds import metric_warnings
from longrec.metrics.business import (
    Impressions,
    compare_impressions,
    ctr_at_k,
    summarize_impressions,
    value_share_at_k,
)
from longrec.metrics.calibration import (
    CalibrationCurve,
    calibration_curve,
    ece,
    log_loss,
    normalized_entropy,
    pcoc,
)
from longrec.metrics.compare import BETTER, Comparison, Difference, compare, summary
from longrec.metrics.diversity import (
    coverage,
    entropy_of_exposure,
    gini,
    intra_list_diversity,
    list_diversity,
    novelty,
)
from longrec.metrics.exposure import draw_exposure, summarize_exposure
from longrec.metrics.importance import effective_sample_size, importance_weights
from longrec.metrics.interval import Interval, rename_metric
from longrec.metrics.off_policy import estimate_policy_value
from longrec.metrics.policy_value import PolicyEstimate, PolicyValue
from longrec.metrics.popularity import (
    item_shares,
    list_novelty,
    list_popularity_bias,
    list_serendipity,
    mean_by_list,
    popularity_percentiles,
)
from longrec.metrics.ranking import (
    hit_rate_at_k,
    lists_skipped,
    map_at_k,
    mrr,
    ndcg_at_k,
    precision_at_k,
    recall_at_k,
)
from longrec.metrics.ratios import UserSums, difference_of_ratios, ratio_interval
from longrec.metrics.relevant import RelevantRanks
from longrec.metrics.resamples import MetricDraws, UserResamples, compare_draws, compare_lists, summarize_lists
from longrec.metrics.sampled import sample_ranks
from longrec.metrics.skewed_interval import skewed_interval
from longrec.metrics.slices import Slices, slice_by_quantile, slice_by_share

__all__ = [
    "BETTER",
    "METRICS",
    "CalibrationCurve",
    "Comparison",
    "Difference",
    "Draws",
    "GroupedAUC",
    "Impressions",
    "Interval",
    "MetricDraws",
    "PolicyEstimate",
    "PolicyValue",
    "RelevantRanks",
    "Slices",
    "UserResamples",
    "UserSums",
    "auc",
    "bootstrap",
    "calibration_curve",
    "compare",
    "compare_draws",
    "compare_impressions",
    "compare_lists",
    "coverage",
    "ctr_at_k",
    "difference_of_ratios",
    "draw_exposure",
    "ece",
    "effective_sample_size",
    "entropy_of_exposure",
    "estimate_policy_value",
    "gauc",
    "gini",
    "grouped_auc",
    "hit_rate_at_k",
    "importance_weights",
    "intra_list_diversity",
    "item_shares",
    "list_average_precision",
    "list_diversity",
    "list_hit_rate",
    "list_mrr",
    "list_ndcg",
    "list_novelty",
    "list_popularity_bias",
    "list_precision",
    "list_recall",
    "list_serendipity",
    "lists_skipped",
    "log_loss",
    "map_at_k",
    "mean_by_list",
    "metric_warnings",
    "mrr",
    "ndcg_at_k",
    "normalized_entropy",
    "novelty",
    "pcoc",
    "popularity_percentiles",
    "precision_at_k",
    "rate_lists",
    "ratio_interval",
    "recall_at_k",
    "rename_metric",
    "sample_ranks",
    "skewed_interval",
    "slice_by_quantile",
    "slice_by_share",
    "summarize_exposure",
    "summarize_impressions",
    "summarize_lists",
    "summary",
    "value_share_at_k",
]

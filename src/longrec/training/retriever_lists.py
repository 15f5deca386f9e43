"""Metrics of the lists of a retriever, which ``evaluate`` adds to those of its ranks.

Ranks need no lists, and lists take a second pass over the scores, so that they are measured on a sample of the rows.
"""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longrec.data.log import Log
from longrec.metrics import Interval, RelevantRanks
from longrec.metrics.next_item import summarize_ranks
from longrec.metrics.sampled import PREFIX, WARNING, sample_ranks
from longrec.models.core.kinds import Retriever
from longrec.progress import Progress
from longrec.training.full_ranking import Exclusions, list_top
from longrec.training.list_metrics import ListEvaluator, Lists
from longrec.training.objectives.objective import Evaluation
from longrec.training.predict_run import ScoringRun, load_scorer
from longrec.training.settings import EvaluateConfig

_LEAST_USERS = 2


def add_list_metrics(
    evaluation: Evaluation,
    run: ScoringRun,
    table: pa.Table,
    config: EvaluateConfig,
    device: str | None = None,
    *,
    quiet: bool = False,
) -> Evaluation:
    """Return an evaluation of a retriever with the metrics of its lists, its slices, and those of sampled negatives.

    Args:
        table: predictions of the run.
        quiet: print no progress.
    """
    log, rows = run.log(), table["row"].to_numpy().copy()  # torch wants arrays that it may write to
    metrics, protocol, warnings = dict(evaluation.metrics), dict(evaluation.protocol), list(evaluation.warnings)
    slices = ListEvaluator(log, rows, config).slice(RelevantRanks.of_targets(table["rank"].to_numpy()), config.k[0])
    if config.sampled_negatives is not None:
        metrics |= _measure_sampled(log, rows, table, config)
        protocol["sampled"] = f"{config.sampled_negatives:,} negatives per target, uniform, without replacement"
        warnings.append(WARNING.format(negatives=config.sampled_negatives))
    chosen = draw_rows(rows, config.list_rows, config.seed)
    if len(chosen) and len(np.unique(log.user(chosen))) >= _LEAST_USERS:
        metrics |= _measure_lists(run, log, chosen, config, device, quiet)
        protocol["lists"] = (
            f"first {config.k[0]} items of {len(chosen):,} requests, with the target left out like any item; "
            "popularity of the positives of train"
        )
    return replace(evaluation, metrics=metrics, protocol=protocol, warnings=tuple(warnings), slices=slices)


def draw_rows(rows: NDArray[np.int64], count: int | None, seed: int) -> NDArray[np.int64]:
    """Return rows drawn once without replacement, in their order. All rows for None or fewer rows.

    >>> draw_rows(np.arange(5), 3, seed=0).tolist()
    [2, 3, 4]
    """
    if count is None or count >= len(rows):
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, count, replace=False))


def _measure_lists(
    run: ScoringRun, log: Log, rows: NDArray[np.int64], config: EvaluateConfig, device: str | None, quiet: bool
) -> dict[str, Interval]:
    with (
        load_scorer(run, device) as model,
        Progress(len(rows), "list", "requests", stream=io.StringIO() if quiet else None) as progress,
    ):
        assert isinstance(model, Retriever)
        items = list_top(model, log, rows, config, config.k[0], bf16=run.config.fit.bf16, progress=progress)
    return ListEvaluator(log, rows, config).measure(Lists.of_table(items), config.k[0]).summarize()


def _measure_sampled(log: Log, rows: NDArray[np.int64], table: pa.Table, config: EvaluateConfig) -> dict[str, Interval]:
    assert config.sampled_negatives is not None
    ranked = count_ranked_items(log, rows, config)
    rank = sample_ranks(table["rank"].to_numpy(), ranked, config.sampled_negatives, config.seed)
    user = table["user"].to_numpy()
    values = summarize_ranks(rank, user, config.k, n_resamples=config.n_resamples, seed=config.seed)
    return {f"{PREFIX}{name}": one for name, one in values.items()}


def count_ranked_items(log: Log, rows: NDArray[np.int64], config: EvaluateConfig) -> NDArray[np.int64]:
    """Return the number of items in the ranking of the target of each row, with the target, int64 ``[N]``."""
    exclude, items = Exclusions(log, config), len(log.items) - 1
    timestamps, targets = log.timestamps.take(rows), log.events.columns["item"].take(rows).astype(np.int64) - 1
    counts = np.full(len(rows), items, np.int64)
    if exclude.first is not None:
        counts = np.searchsorted(np.sort(exclude.first), timestamps, "left")
        counts = counts + (exclude.first[targets] >= timestamps)
    owner, item = exclude.find_seen(rows)
    pairs = np.unique(owner * items + item)
    owner, item = pairs // items, pairs % items
    removed = item != targets[owner]
    if exclude.first is not None:
        removed &= exclude.first[item] < timestamps[owner]
    return counts - np.bincount(owner[removed], minlength=len(rows))

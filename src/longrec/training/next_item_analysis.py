"""Analysis of ranked targets: popularity, segments, and recommendations beside what the user took."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from longrec.data.catalog import count_items
from longrec.data.gather import gather
from longrec.data.log import Log
from longrec.metrics import Interval
from longrec.metrics.next_item import summarize_ranks
from longrec.models.core.base import Model
from longrec.models.core.kinds import Retriever
from longrec.training.analysis import SEGMENT_RESAMPLES, Analysis, Reference, format_events, format_timestamp_of
from longrec.training.explained_rows import explain_history
from longrec.training.full_ranking import rank_by_scores, recommend
from longrec.training.job import Job
from longrec.training.settings import EvaluateConfig, FitConfig

_LEAST = 20
"""Number of targets and of users that a segment needs for its metrics."""
_SCORES = 400_000_000
"""Number of scores of popularity that are ranked at most: about two seconds. Above it there is no reference."""
_RECOMMENDED = 5


class NextItemAnalysis(Analysis):
    """Analysis of the objective ``next_item``."""

    segment_metrics: ClassVar[tuple[str, ...]] = ("hr", "ndcg")

    def predict_references(
        self, log: Log, table: pa.Table, fit: FitConfig, evaluate: EvaluateConfig
    ) -> list[Reference]:
        """Return the ranks by the number of positives of each item in train. Empty for large catalogs."""
        rows = table["row"].to_numpy()
        if len(rows) * len(log.items) > _SCORES:
            return []
        train = log.rows_of("train")
        counts = count_items(log, train[log.labels.take(train) > 0.5])[1:]
        ranks = rank_by_scores(log, rows, counts.astype(np.float32), evaluate)
        at = table.column_names.index("rank")
        about = "items by their number of positives in train, the same for every user"
        return [Reference("popularity", about, table.set_column(at, "rank", pa.array(ranks)))]

    def measure_segment(self, table: pa.Table, evaluate: EvaluateConfig) -> dict[str, Interval]:
        """Return HR and NDCG at the first cut, or nothing for fewer than 20 targets or users."""
        rank, user = table["rank"].to_numpy(), table["user"].to_numpy()
        if len(np.unique(user)) < _LEAST:
            return {}
        values = summarize_ranks(rank, user, evaluate.k[:1], n_resamples=SEGMENT_RESAMPLES, seed=evaluate.seed)
        keys = [f"{metric}@{evaluate.k[0]}" for metric in self.segment_metrics]
        return {key: values[key] for key in keys}

    def explain_samples(self, log: Log, model: Model, table: pa.Table, job: Job) -> list[dict[str, Any]]:
        """Return a target of the best rank, one of the median rank, and one of the worst, with recommendations."""
        assert isinstance(model, Retriever)
        order, rank = np.argsort(table["rank"].to_numpy(), kind="stable"), table["rank"].to_numpy()
        named = {"Best rank": order[0], "Median rank": order[len(order) // 2], "Worst rank": order[-1]}
        titles = {int(index): title for title, index in reversed(named.items())}
        samples = []
        for index, title in reversed(titles.items()):
            row = int(table["row"][index].as_py())
            rows, batch = np.array([row], np.int64), gather(log, np.array([row], np.int64))
            best = recommend(model, log, row, job.evaluate, _RECOMMENDED, bf16=job.fit.bf16)
            facts = {
                "User": str(log.users.key(int(log.user(rows)[0]))),
                "Took": str(log.items.key(int(log.events.columns["item"][row]))),
                "Rank of it": f"{rank[index] + 1:,.0f} of {len(log.items) - 1:,}",
            }
            if log.schema.time is not None:
                facts["At"] = format_timestamp_of(log, int(log.timestamps[row]))
            samples.append(
                {
                    "title": title,
                    "facts": facts,
                    "recommended": [(str(log.items.key(item)), score) for item, score in best],
                    "histories": {
                        name: format_events(explain_history(log, name, rows, batch)) for name in batch.histories
                    },
                    "step": log.schema.time is not None and log.schema.time.unit == "step",
                }
            )
        return samples

"""Objective ``lists``: the order of the candidates of each request, for re-rankers.

A list has the rows of one request: of one user, timestamp and context. The initial order, that of the base, is measured
beside the model's on the same lists (``metrics/lists.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longrec.data.gather import gather
from longrec.data.label_checks import check_window
from longrec.data.log import Log
from longrec.data.user_loader import number_requests
from longrec.errors import ConfigError, DataError
from longrec.metrics import Comparison
from longrec.metrics.lists import BASE, RatedLists, compare_orders, rate_orders, summarize_orders
from longrec.metrics.own import Metric
from longrec.models.core.base import Model
from longrec.models.core.kinds import Reranker
from longrec.progress import Progress
from longrec.training.list_scoring import build_list_loader, score_lists
from longrec.training.objective_settings import ListSettings
from longrec.training.objectives.objective import Evaluation, Loader, Objective
from longrec.training.settings import EvaluateConfig, FitConfig


class Lists(Objective):
    """Order of the candidates of a request."""

    name = "lists"
    columns = ("row", "user", "time", "list", "label", "base", "score")
    settings = ListSettings()

    @property
    def same_columns(self) -> Sequence[str]:
        """Time, label, user and list."""
        return ("time", "label", "user", "list")

    def rows_of(self, log: Log, split: str) -> NDArray[np.int64]:
        """Return the labeled rows of a split."""
        return log.rows_of(split)

    def check_log(self, log: Log, fit: FitConfig, evaluate: EvaluateConfig) -> None:
        """Refuse a log without lists of several items of which some are clicked, and one without timestamps."""
        if log.schema.prejoined:
            fault = "data.schema: each row of a prejoined log has a history of its own, so that its rows form no lists"
            raise ConfigError("config", [f"{fault}; use a log of events"])
        if log.schema.time is None:
            fault = "data.schema.time: is required; a list has the rows of one user and timestamp"
            raise ConfigError("config", [f"{fault}, and its base must be trained on earlier rows"])
        check_window(log)
        measured = [split for split in ("valid", "test") if len(log.rows_of(split))]
        do = "change the split (data.split), or train on a log of impressions with one timestamp per request"
        if not measured:
            raise DataError("data.split", "no sample in valid and none in test", "samples in at least one split", do)
        for split in ("train", *measured):
            rows = np.unique(log.rows_of(split))
            lists = number_requests(log, rows)
            clicks, lengths = np.bincount(lists, log.labels.take(rows)), np.bincount(lists)
            if not ((clicks > 0) & (clicks < lengths)).any():
                described = f"{len(lengths):,} lists of {lengths.mean():.3g} rows on average, none with a click"
                raise DataError(
                    f"the {split} split", f"{described} beside a row without one", "lists whose order matters", do
                )
            if split != "train" and len(np.unique(log.user(rows[clicks[lists] > 0]))) < 2:
                raise DataError(f"the {split} split", "clicks of one user", "two users or more", do)

    def check_model(self, model: Model, log: Log, fit: FitConfig) -> None:
        """Refuse features of the context that differ between the items of a list, which would be lists of their own."""
        rows = np.unique(log.rows_of("train"))[:_CHECKED]
        lists, requests = int(number_requests(log, rows)[-1]) + 1, gather(log, rows, group=True).layout.requests
        if requests > lists:
            names = ", ".join(name for name in log.fitted.list_features("context"))
            raise DataError(
                f"features of the context ({names})",
                f"values that differ between rows of one user and timestamp ({requests:,} contexts of {lists:,} lists)",
                "one context for all items of a list",
                "set side: candidate for a feature that differs between them, or remove it",
            )

    def build_loader(self, model: Model, log: Log, fit: FitConfig) -> Loader:
        """Return batches of whole lists."""
        return build_list_loader(log, log.rows_of("train"), fit.batch_size, seed=fit.seed, shuffle=True)

    def start(self, model: Model, log: Log, loader: Loader) -> None:
        """Do nothing: scores have no unit."""

    def validate(
        self,
        model: Model,
        log: Log,
        rows: NDArray[np.int64],
        fit: FitConfig,
        evaluate: EvaluateConfig,
        own: Sequence[Metric] = (),
    ) -> dict[str, float]:
        """Return NDCG, HR and MRR of the lists, and those of the initial order."""
        assert isinstance(model, Reranker)
        scored = score_lists(model, log, rows, evaluate.batch_size, bf16=fit.bf16)
        labels, users = log.labels.take(rows), log.user(rows)
        rated = rate_orders(labels, {"": scored.score, BASE: scored.base}, scored.lists, users, evaluate.k)
        measures = {
            f"{name}.{order}" if order else name: float(value)
            for order, values_LM in rated.values.items()
            for name, value in zip(rated.names, values_LM.mean(0))
        }
        for metric in own:
            measures[metric.name] = metric(labels.astype(np.float64), scored.score.astype(np.float64), users)
        return measures

    def predict(
        self,
        model: Model,
        log: Log,
        rows: NDArray[np.int64],
        fit: FitConfig,
        evaluate: EvaluateConfig,
        progress: Progress,
    ) -> dict[str, Any]:
        """Return lists, labels, and the scores of the base and of the model."""
        assert isinstance(model, Reranker)
        scored = score_lists(model, log, rows, evaluate.batch_size, bf16=fit.bf16, progress=progress)
        return {"list": scored.lists, "label": log.labels.take(rows), "base": scored.base, "score": scored.score}

    def measure(self, table: pa.Table, run: str, model: str, split: str, config: EvaluateConfig) -> Evaluation:
        """Compute NDCG, HR and MRR of the scores and of the initial order, and the gains, with intervals over users."""
        label, user, lists = (table[name].to_numpy() for name in ("label", "user", "list"))
        rated = rate_orders(label, {name: table[c].to_numpy() for name, c in _ORDERS.items()}, lists, user, config.k)
        values = summarize_orders(rated, n_resamples=config.n_resamples, seed=config.seed)
        count = len(np.unique(lists))
        key = f"ndcg@{config.k[0]}"
        gain = values[f"{key}.gain"]
        warnings: tuple[str, ...] = ()
        if not gain.low > 0:
            warnings = (
                f"NDCG@{config.k[0]} on {split} is not above that of the initial order "
                f"({values[f'{key}.base'].value:.4f}): the gain is {gain}; serve the base alone, or train on more "
                "lists",
            )
        return Evaluation(
            run=run,
            model=model,
            split=split,
            rows=len(label),
            users=len(np.unique(user)),
            positives=int(label.sum()),
            users_skipped=0,
            metrics=values,
            warnings=warnings,
            objective=self.name,
            protocol={
                "lists": f"{len(rated.users):,} of {count:,}, those with a click",
                "base": "the initial order, by the logit of the base, on the same lists",
                "gain": "the difference to it",
            },
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
        """Compare the orders of runs.

        Raises:
            ConfigError: ``resample: row``. The rows of a list belong together.
        """
        if resample != "user":
            raise ConfigError("compare", [f"resample {resample!r}: lists are compared over users; set it to 'user'"])
        first = next(iter(tables.values()))
        label, user, lists = (first[name].to_numpy() for name in ("label", "user", "list"))
        scores = {name: table["score"].to_numpy() for name, table in tables.items()}
        rated: RatedLists = rate_orders(label, scores, lists, user, config.k)
        return compare_orders(
            rated,
            {"rows": len(label), "users": len(np.unique(user)), "positives": int(label.sum())},
            baseline=next(iter(tables)) if baseline is None else baseline,
            n_resamples=n_resamples,
            seed=seed,
            split=split,
        )

    def collect_warnings(self, model: Model, log: Log, fit: FitConfig) -> list[str]:
        """Return none: the measured gain is one of its own."""
        return []


_CHECKED = 4_096
"""Number of rows whose contexts are compared."""
_ORDERS = {"": "score", BASE: "base"}
"""Column of each order."""

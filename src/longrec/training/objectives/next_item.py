"""Objective ``next_item``: the item of each positive row, ranked among all items, for retrievers.

A target is a row with a positive label. A log of positives only is a valid log. What a rank depends on is declared in
``evaluate`` and printed with the results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longrec.data.alignment_loader import AlignmentLoader
from longrec.data.catalog import check_catalog
from longrec.data.label_checks import ONLY_POSITIVES, check_window
from longrec.data.log import Log
from longrec.data.next_item_loader import NextItemLoader, find_sequence_fault
from longrec.data.preferences import Preferences, check_feedback, check_pairs
from longrec.errors import ConfigError, DataError
from longrec.metrics import Comparison
from longrec.metrics.next_item import compare_ranks, next_item_metrics, summarize_ranks
from longrec.metrics.own import Metric
from longrec.models.alignment import Alignment
from longrec.models.core.base import Model
from longrec.models.core.generator import Generator
from longrec.models.core.kinds import Retriever, VectorRetriever
from longrec.progress import Progress
from longrec.training.full_ranking import rank_targets
from longrec.training.objective_settings import NextItemSettings
from longrec.training.objectives.objective import Evaluation, Loader, Objective
from longrec.training.pair_accuracy import measure_pairs
from longrec.training.settings import EvaluateConfig, FitConfig
from longrec.training.token_hits import list_token_hits, measure_token_hits, read_token_hits


class NextItem(Objective):
    """Rank of the next item of a user among all items."""

    name = "next_item"
    columns = ("row", "user", "time", "item", "rank")
    progress_text = ("rank", "targets")
    no_rows = ("no positive rows", "a split with targets")
    expected_warnings = (ONLY_POSITIVES,)
    settings = NextItemSettings()

    @property
    def same_columns(self) -> Sequence[str]:
        """Time, user and row of the item table."""
        return ("time", "item", "user")

    def rows_of(self, log: Log, split: str) -> NDArray[np.int64]:
        """Return the positive rows of a split."""
        rows = log.rows_of(split)
        return rows[log.labels.take(rows) > 0.5]

    def check_log(self, log: Log, fit: FitConfig, evaluate: EvaluateConfig) -> None:
        """Refuse rows of candidates, and a log without positives to train on, or without any to measure."""
        do = "change the split (data.split), or check the condition of the label"
        if not log.schema.histories:
            raise ConfigError("config", ["data.schema.histories: is required; a retriever reads the first history"])
        if log.schema.candidate is not None:  # their labels are of requests that did not happen
            fault = f"data.schema.candidate: a retriever does not train on rows of candidates ({log.schema.candidate})"
            raise ConfigError("config", [f"{fault}; give it the log of events"])
        check_catalog(log)
        check_window(log, both_classes=False)
        if not len(self.rows_of(log, "train")):
            raise DataError("the train split", "no positive row", "rows with label 1, which are the targets", do)
        measured = {split: rows for split in ("valid", "test") if len(rows := self.rows_of(log, split))}
        if not measured:
            raise DataError("data.split", "no positive in valid and none in test", "positives in at least one", do)
        for split, rows in measured.items():
            if len(np.unique(log.user(rows))) < 2:
                raise DataError(f"the {split} split", "positives of one user", "two users or more", do)

    def check_model(self, model: Model, log: Log, fit: FitConfig) -> None:
        """Refuse feedback that an alignment reads and the log does not have, and a log without pairs for it."""
        if isinstance(model, Alignment):
            check_feedback(log, model.levels, list(model.config.rewards))
            if model.levels:
                check_pairs(Preferences(log, model.levels, {}), self.rows_of(log, "train"))
            rows = self.rows_of(log, "valid")
            if fit.monitor in model.monitors and len(rows):
                if not model.levels:
                    fault = f"fit.monitor: {fit.monitor} is measured on pairs; set model.dpo_weight above 0"
                    raise ConfigError("config", [fault])
                check_pairs(Preferences(log, model.levels, {}, split="valid"), rows, "valid")

    def build_loader(self, model: Model, log: Log, fit: FitConfig) -> Loader:
        """Return batches of sequences if the model and the log allow, else of requests."""
        assert isinstance(model, VectorRetriever | Generator)
        loader: Callable[..., NextItemLoader] = NextItemLoader
        if isinstance(model, Alignment):
            own = Preferences(log, model.levels, model.config.rewards, model.config.losers)
            loader = partial(AlignmentLoader, preferences=own)
        return loader(
            log,
            self.rows_of(log, "train"),
            fit.batch_size,
            next(iter(log.schema.histories)),
            model.sampling,
            seed=fit.seed,
            sequences=model.reads_sequences,
            windows=fit.windows,
            ties=fit.ties,
        )

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
        """Return HR, NDCG, MRR and recall of the rows, or of ``evaluate.valid_rows`` of them.

        Generators have hits of tokens too, and an alignment the accuracy on the pairs of valid.
        """
        assert isinstance(model, Retriever)
        if evaluate.valid_rows is not None and evaluate.valid_rows < len(rows):
            rows = np.sort(np.random.default_rng(evaluate.seed).choice(rows, evaluate.valid_rows, replace=False))
        ranks = rank_targets(model, log, rows, evaluate, bf16=fit.bf16)
        metrics = next_item_metrics(ranks, evaluate.k, evaluate.recall_k)
        if isinstance(model, Generator):
            metrics |= measure_token_hits(model, log, rows, bf16=fit.bf16)
        if isinstance(model, Alignment) and model.levels:
            metrics |= measure_pairs(model, log, self.rows_of(log, "valid"), "valid", bf16=fit.bf16)
        return metrics

    def predict(
        self,
        model: Model,
        log: Log,
        rows: NDArray[np.int64],
        fit: FitConfig,
        evaluate: EvaluateConfig,
        progress: Progress,
    ) -> dict[str, Any]:
        """Return items and ranks of the targets, and of a generator whether each of their tokens is a hit."""
        assert isinstance(model, Retriever)
        ranks = rank_targets(model, log, rows, evaluate, bf16=fit.bf16, progress=progress)
        hits = list_token_hits(model, log, rows, bf16=fit.bf16) if isinstance(model, Generator) else {}
        return {"item": log.events.columns["item"].take(rows), "rank": ranks, **hits}

    def measure(self, table: pa.Table, run: str, model: str, split: str, config: EvaluateConfig) -> Evaluation:
        """Compute HR, NDCG, MRR and recall with intervals over users, and the hits of tokens of a generator."""
        rank, user = table["rank"].to_numpy(), table["user"].to_numpy()
        return Evaluation(
            run=run,
            model=model,
            split=split,
            rows=len(rank),
            users=len(np.unique(user)),
            positives=len(rank),
            users_skipped=0,
            metrics=summarize_ranks(
                rank,
                user,
                config.k,
                config.recall_k,
                n_resamples=config.n_resamples,
                seed=config.seed,
                further=read_token_hits(table),
            ),
            objective=self.name,
            protocol=describe_protocol(config),
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
        """Compare the ranks of runs, and the hits of those tokens that all of them have.

        Raises:
            ConfigError: ``resample: row``. A user's targets are alike.
        """
        if resample != "user":
            raise ConfigError("compare", [f"resample {resample!r}: ranks are compared over users; set it to 'user'"])
        first = next(iter(tables.values()))
        ranks = {name: table["rank"].to_numpy() for name, table in tables.items()}
        hits = {name: read_token_hits(table) for name, table in tables.items()}
        return compare_ranks(
            ranks,
            first["user"].to_numpy(),
            config.k,
            config.recall_k,
            baseline=baseline,
            n_resamples=n_resamples,
            seed=seed,
            split=split,
            further=hits,
        )

    def collect_warnings(self, model: Model, log: Log, fit: FitConfig) -> list[str]:
        """Return the reason why a model of sequences was trained on one request per target."""
        history = next(iter(log.schema.histories))
        if not isinstance(model, VectorRetriever | Generator) or not model.reads_sequences:
            return []
        reason = find_sequence_fault(log, history, model.sampling)
        if not reason:
            return []
        return [f"history {history}: {reason}, so each target was trained with a history of its own, which is slower"]


def describe_protocol(config: EvaluateConfig) -> dict[str, str]:
    """Return what the ranks depend on, in words."""
    seen = {
        "mask": "items of the user's earlier events are left out",
        "mask_same_time": "items of the user's earlier rows are left out, also those at the same timestamp",
        "keep": "items that the user has seen are ranked too",
    }
    catalog = {
        "existing": "all items with an event before the target",
        "all": "all items of the log",
    }
    return {"candidates": catalog[config.catalog], "seen": seen[config.seen], "ties": "at mid rank"}

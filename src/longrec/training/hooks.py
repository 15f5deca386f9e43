"""Hooks of a training in Python: one's own metrics and optimizers. A run folder records their names."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from torch import nn
from torch.optim import Optimizer

from longrec.errors import ConfigError
from longrec.metrics import Comparison
from longrec.metrics.own import Metric, bootstrap_metrics, subtract, summarize
from longrec.models.core.kinds import FittedRetriever, Retriever
from longrec.training.hook_record import read_record
from longrec.training.job import Job
from longrec.training.objectives.objective import Evaluation
from longrec.training.settings import EvaluateConfig

OptimizerFunction = Callable[[list[nn.Parameter]], Optimizer]
"""Function of the parameters to train, which returns their optimizer."""
_OF_DENSE, _OF_TABLES = ("lr", "weight_decay"), ("embedding_lr", "l2")


@dataclass(frozen=True)
class Hooks:
    """Functions in place of settings.

    Attributes:
        metrics: metrics besides the built-in ones.
        optimizer: optimizer of the dense parameters.
        embedding_optimizer: optimizer of the embedding tables, whose gradients are sparse.
    """

    metrics: tuple[Metric, ...] = ()
    optimizer: OptimizerFunction | None = None
    embedding_optimizer: OptimizerFunction | None = None

    @property
    def monitors(self) -> dict[str, Literal["max", "min"]]:
        """Metrics that can select the best model, with their better direction."""
        return {one.name: "max" if one.better == "higher" else "min" for one in self.metrics}

    @property
    def trains(self) -> bool:
        """True with an optimizer of one's own."""
        return self.optimizer is not None or self.embedding_optimizer is not None

    def record(self) -> dict[str, Any]:
        """Return the names of the functions, and the direction of the metrics. Empty without hooks."""
        metrics = {one.name: {"better": one.better, "function": _describe(one.function)} for one in self.metrics}
        own = {"optimizer": self.optimizer, "embedding_optimizer": self.embedding_optimizer}
        return {
            **({"metrics": metrics} if metrics else {}),
            **{key: _describe(function) for key, function in own.items() if function is not None},
        }

    def find_faults(self, settings: Container[str]) -> list[str]:
        """Return one message per setting of training that does not go with an optimizer of one's own."""
        faults = []
        for key, others in (("optimizer", _OF_DENSE), ("embedding_optimizer", _OF_TABLES)):
            if getattr(self, key) is not None:
                wrong = [other for other in others if other in settings]
                faults += [f"{other}: is given with an {key} of your own, which sets it; remove it" for other in wrong]
        return faults

    def find_misfits(self, job: Job) -> list[str]:
        """Return one message per hook that the model or the evaluation of a job cannot use."""
        faults = []
        if self.metrics and issubclass(job.model_class, Retriever):
            faults.append("metrics: are functions of labels and scores, and a retriever has ranks; remove them")
        if self.metrics and job.evaluate.sample_weight is not None:
            faults.append("metrics: get no sample weights; remove evaluate.sample_weight, or the metrics")
        if self.trains and issubclass(job.model_class, FittedRetriever):
            faults.append(f"optimizer: {job.model['name']} counts and has no parameters to train; remove it")
        return faults

    def check_record(self, folder: Path) -> None:
        """Refuse to continue a run with other hooks than it was started with. Functions are compared by name.

        Raises:
            ConfigError: hooks that are missing or different.
        """
        before, now = read_record(folder), self.record()
        faults = [
            f"{key}: {_name_hook(before.get(key))} in the run, {_name_hook(now.get(key))} now"
            for key in {**before, **now}
            if before.get(key) != now.get(key)
        ]
        if faults:
            do = "continue it with the same call of longrec.fit and resume=folder"
            raise ConfigError(f"{folder}: a resumed run keeps its functions", [f"{fault}; {do}" for fault in faults])


def _describe(function: Any) -> str:
    """Return the name of a function."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', '')}.{name}"


def _name_hook(value: Any) -> str:
    return "none" if value is None else ", ".join(value) if isinstance(value, Mapping) else str(value)


def add_metrics(
    evaluation: Evaluation, table: pa.Table, metrics: Sequence[Metric], config: EvaluateConfig
) -> Evaluation:
    """Return an evaluation with further metrics of its predictions."""
    if not metrics:
        return evaluation
    drawn = _bootstrap(metrics, {evaluation.run: table}, config.resample, config.n_resamples, config.seed)
    return replace(evaluation, metrics={**evaluation.metrics, **summarize(drawn[evaluation.run])})


def add_differences(
    comparison: Comparison, tables: Mapping[str, pa.Table], metrics: Sequence[Metric], seed: int
) -> Comparison:
    """Return a comparison with further metrics of the predictions, and their differences."""
    if not metrics:
        return comparison
    drawn = _bootstrap(metrics, tables, comparison.resample, comparison.n_resamples, seed)
    baseline = drawn[comparison.baseline]
    return replace(
        comparison,
        runs={run: {**own, **summarize(drawn[run])} for run, own in comparison.runs.items()},
        differences={
            run: {**own, **subtract(metrics, drawn[run], baseline)} for run, own in comparison.differences.items()
        },
    )


def _bootstrap(
    metrics: Sequence[Metric],
    tables: Mapping[str, pa.Table],
    resample: Literal["user", "row"],
    n_resamples: int,
    seed: int,
) -> dict[str, Any]:
    first = next(iter(tables.values()))
    if "score" not in first.column_names:
        raise ConfigError("metrics", ["are functions of labels and scores, and a retriever has ranks; remove them"])
    scores = {name: table["score"].to_numpy() for name, table in tables.items()}
    arguments = first["label"].to_numpy(), scores, first["user"].to_numpy()
    return bootstrap_metrics(metrics, *arguments, n_resamples=n_resamples, seed=seed, resample=resample)

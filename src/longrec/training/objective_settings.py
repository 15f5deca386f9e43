"""Settings that each objective reads: its defaults of ``fit``, its validation metrics, and the keys that it refuses.

Objectives (``objectives/``) need torch. Their settings do not, so that ``longrec check`` starts without it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from longrec.training.settings import EvaluateConfig, FitConfig, find_set_keys

_CATALOG_KEYS = ("k", "recall_k", "seen", "catalog")
_RANKER_ONLY = ("negative_rate", "group_requests", "bucket_by_length")


class ObjectiveSettings(ABC):
    """Settings of one objective.

    Attributes:
        fit_defaults: defaults of ``fit`` that differ from those of rankers.
    """

    fit_defaults: ClassVar[Mapping[str, Any]] = {}

    @abstractmethod
    def monitors(self, evaluate: EvaluateConfig) -> Mapping[str, Literal["max", "min"]]:
        """Return the metrics of a validation that can select the best model. The first is the default."""

    @abstractmethod
    def find_faults(self, fit: FitConfig, evaluate: EvaluateConfig) -> list[str]:
        """Return one message per setting that this objective does not have."""


class ClickSettings(ObjectiveSettings):
    """Settings of the objective ``clicks``, of rankers and encoders."""

    def monitors(self, evaluate: EvaluateConfig) -> Mapping[str, Literal["max", "min"]]:
        """Return log loss, AUC and GAUC."""
        return {"log_loss": "min", "auc": "max", "gauc": "max"}

    def find_faults(self, fit: FitConfig, evaluate: EvaluateConfig) -> list[str]:
        """Return the settings of retrievers that are set."""
        keys = find_set_keys(evaluate, _CATALOG_KEYS, "evaluate")
        keys += find_set_keys(fit, ("windows", "ties"), "fit")
        return [f"{key}: is for retrievers, which rank a catalog; remove it" for key in keys]


class NextItemSettings(ObjectiveSettings):
    """Settings of the objective ``next_item``, of retrievers."""

    # A retriever learns for many epochs from a log that a ranker would overfit in three.
    fit_defaults: ClassVar[Mapping[str, Any]] = {
        "epochs": 100,
        "val_checks_per_epoch": 1,
        "check_val_every_n_epoch": 2,
        "betas": (0.9, 0.98),
        "l2": 0.0,
    }

    def monitors(self, evaluate: EvaluateConfig) -> Mapping[str, Literal["max", "min"]]:
        """Return NDCG and HR at each cut, and MRR."""
        names = [f"{metric}@{cut}" for metric in ("ndcg", "hr") for cut in evaluate.k]
        return dict.fromkeys([*names, "mrr"], "max")

    def find_faults(self, fit: FitConfig, evaluate: EvaluateConfig) -> list[str]:
        """Return the settings of rankers that are set."""
        keys = find_set_keys(fit, _RANKER_ONLY, "fit")
        keys += find_set_keys(evaluate, ("sample_weight", "resample"), "evaluate")
        return [f"{key}: is for rankers, and a retriever ranks a catalog; remove it" for key in keys]


class ListSettings(ObjectiveSettings):
    """Settings of the objective ``lists``, of re-rankers."""

    fit_defaults: ClassVar[Mapping[str, Any]] = {"group_requests": True}

    def monitors(self, evaluate: EvaluateConfig) -> Mapping[str, Literal["max", "min"]]:
        """Return NDCG and HR at each cut, and MRR."""
        names = [f"{metric}@{cut}" for metric in ("ndcg", "hr") for cut in evaluate.k]
        return dict.fromkeys([*names, "mrr"], "max")

    def find_faults(self, fit: FitConfig, evaluate: EvaluateConfig) -> list[str]:
        """Return the settings that break lists apart, and those of other kinds of models."""
        faults = [
            f"{key}: a re-ranker learns from whole lists; remove it"
            for key in find_set_keys(fit, ("negative_rate", "bucket_by_length"), "fit")
        ]
        if "group_requests" in fit.model_fields_set and not fit.group_requests:
            faults.append("fit.group_requests: must be true, because a re-ranker learns from whole lists; remove it")
        keys = find_set_keys(evaluate, ("recall_k", "seen", "catalog", "valid_rows"), "evaluate")
        keys += find_set_keys(fit, ("windows", "ties"), "fit")
        faults += [f"{key}: is for retrievers, which rank a catalog; remove it" for key in keys]
        keys = find_set_keys(evaluate, ("sample_weight", "resample"), "evaluate")
        return faults + [f"{key}: is for rankers, and a re-ranker is measured by lists; remove it" for key in keys]

"""The synthetic dataset: a log with a description, and the true probabilities of its labels or the best hit rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longrec.config import Strict

START = 1_735_689_600  # 2025-01-01 in seconds UTC: start of every dataset
SOLVED = 0.9  # required share of Bayes-optimal AUC - 0.5, or of the best hit rate


@dataclass(frozen=True, eq=False)
class SyntheticDataset:
    """A generated log with its true probabilities.

    Attributes:
        name: name of the dataset.
        story: description of the dataset in a few sentences.
        log: events sorted by user and time, so that row n is row n of the prepared log too.
        items: table of items by key, or None.
        users: table of users by key, or None.
        schema: the content of a schema file.
        split: the content of ``data.split``.
        true_probability: float64 ``[events]``, aligned with the log: the true probability that the label is 1,
            given the features of the event in the schema and the latent variables of the user and the history. NaN
            without a label.
        must: model sections (``{"name": "din"}``) of the models that must solve the dataset.
        must_not: model sections of the models that cannot solve it, by construction.
        fit: settings to train these models with.
        leak: leaky schema of the same log, for datasets about a leak.
        wide: schema with more columns of the same log, for datasets with columns that ``schema`` leaves out.
        truth: latent variables, one row per event, aligned with the log, if the dataset has them. A column ``p_...`` is
            the true probability of the label given a subset of the variables.
        evaluate: settings of ``evaluate``.
        hit_rates: of a dataset of next items, which has no label: the largest HR@k that a model of the histories can
            expect on the test rows, by k. Every event is a positive there, so its true probability is 1.
    """

    name: str
    story: str
    log: pa.Table
    schema: Mapping[str, Any]
    split: Mapping[str, Any]
    true_probability: NDArray[np.float64]
    items: pa.Table | None = None
    users: pa.Table | None = None
    must: tuple[Mapping[str, Any], ...] = ()
    must_not: tuple[Mapping[str, Any], ...] = ()
    fit: Mapping[str, Any] = field(default_factory=dict)
    leak: Mapping[str, Any] | None = None
    wide: Mapping[str, Any] | None = None
    truth: pa.Table | None = None
    evaluate: Mapping[str, Any] = field(default_factory=dict)
    hit_rates: Mapping[int, float] = field(default_factory=dict)

    def job(self, folder: str | Path, model: Mapping[str, Any], *, wide: bool = False, **fit: Any) -> dict[str, Any]:
        """Return a config that trains a model on the files of ``write`` in ``folder``.

        Args:
            wide: use the wide schema.
            fit: overrides of the dataset's settings.
        """
        folder = Path(folder)
        tables = [name for name in ("log", "items", "users") if getattr(self, name) is not None]
        data: dict[str, Any] = {name: str(folder / f"{name}.parquet") for name in tables}
        schema = f"{self.name}_wide" if wide else self.name
        data |= {"schema": str(folder / f"{schema}.schema.yaml"), "split": dict(self.split)}
        job: dict[str, Any] = {"data": data, "model": dict(model), "fit": {**self.fit, **fit}}
        return {**job, "evaluate": dict(self.evaluate)} if self.evaluate else job

    def required_auc(self, bayes_auc: float) -> float:
        """Return the AUC that solves the dataset.

        Args:
            bayes_auc: AUC of the true probabilities on the same rows.
        """
        return 0.5 + SOLVED * (bayes_auc - 0.5)

    def required_hit_rate(self, k: int) -> float:
        """Return the HR@k that solves a dataset of next items."""
        return SOLVED * self.hit_rates[k]

    def true_probabilities(self) -> dict[str, NDArray[np.float64]]:
        """Return the true probabilities ``[events]``: those of ``truth``, or ``true_probability`` alone."""
        columns = [
            name for name in (self.truth.column_names if self.truth is not None else ()) if name.startswith("p_")
        ]
        if self.truth is None or not columns:
            return {"true_probability": self.true_probability}
        return {name: self.truth[name].to_numpy() for name in columns}


@dataclass(frozen=True)
class Recipe:
    """Recipe of a synthetic dataset.

    Attributes:
        story: description of the dataset in a few sentences.
        settings: class of its parameters. One of them is ``users``, whose default is enough to learn the dataset in
            seconds.
        make: function that generates the dataset from parameters.
    """

    story: str
    settings: type[Strict]
    make: Callable[[Any, np.random.Generator], SyntheticDataset]

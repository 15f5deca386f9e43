"""Comparison of pipelines by the pages of the same requests, with paired intervals over users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from longrec.errors import ConfigError, RunError
from longrec.evaluation.stored import StoredEvaluation
from longrec.metrics import Comparison, MetricDraws, UserResamples, compare_draws, draw_exposure
from longrec.pipeline.stage_columns import EXPLORE
from longrec.training.list_metrics import find_better

_SAME = ("row", "user", "time")


def compare_pipelines(folders: Sequence[str | Path], *, n_resamples: int = 300, seed: int = 0) -> Comparison:
    """Compare the pages of pipelines that answered the same requests. The first is the baseline.

    Args:
        folders: folders that ``evaluate`` has written.

    Raises:
        ConfigError: fewer than two evaluations, or the same one twice.
        RunError: evaluations of other requests, another cut, or other items.
    """
    opened = [StoredEvaluation.open(folder) for folder in folders]
    if len(opened) < 2:
        raise ConfigError("compare", [f"needs two evaluations or more, got {len(opened)}"])
    names = [str(one.results["pipeline"]) for one in opened]
    if len(set(names)) < len(names):
        names = [str(one.folder) for one in opened]
    if len(set(names)) < len(names):
        raise ConfigError("compare", ["the same evaluation is named twice"])
    first = opened[0]
    for other in opened[1:]:
        _check_same(first, other)
    k, catalog = first.results["k"], first.results["catalog"]
    resamples = UserResamples(first.requests["user"].to_numpy(), n_resamples, seed)
    drawn = {name: _draw(one, k, catalog, resamples) for name, one in zip(names, opened)}
    common = set.intersection(*(set(own.values) for own in drawn.values()))
    drawn = {
        name: MetricDraws(*({key: own[key] for key in own if key in common} for own in vars(one).values()))
        for name, one in drawn.items()
    }
    comparison = compare_draws(drawn, resamples, split=str(first.results["split"]))
    warnings = [f"{name}: {text}" for name, one in zip(names, opened) for text in one.results["warnings"]]
    explored = [(name, one.results["protocol"].get(EXPLORE)) for name, one in zip(names, opened)]
    warnings += [f"{name}: {EXPLORE} is {text}" for name, text in explored if text is not None]
    return replace(comparison, warnings=tuple(warnings))


def _draw(one: StoredEvaluation, k: int, catalog: int, resamples: UserResamples) -> MetricDraws:
    values = {
        name: one.requests[name].to_numpy().astype(np.float64)
        for name in one.requests.column_names
        if name not in _SAME and name != "candidates"
    }
    drawn = replace(resamples.draw_means(values), better={name: find_better(name) for name in values})
    if not len(one.items):
        return drawn
    item, group = one.items["item"].to_numpy(), one.items["request"].to_numpy()
    return drawn.join(draw_exposure(item, group, catalog, resamples).rename(f"{{}}@{k}"))


def _check_same(first: StoredEvaluation, other: StoredEvaluation) -> None:
    """Raise a RunError unless two evaluations have the same requests, cut and items."""
    do = "evaluate both with the same --requests, --split, --rows, --targets and --k"
    for name in ("log", "split", "k", "catalog", "protocol"):
        own, expected = other.results[name], first.results[name]
        if name == "protocol":
            own, expected = own["relevant"], expected["relevant"]
        if own != expected:
            raise RunError(str(other.folder), f"{name} {own}", f"{expected}, as in {first.folder}", do)
    for name in _SAME:
        if not first.requests[name].equals(other.requests[name]):
            raise RunError(str(other.folder), "other requests", f"those of {first.folder}", do)

"""Baselines by counting and tables over seeds, shared by the quality studies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from longrec.data.log import Log
from longrec.metrics import auc, compare
from longrec.reporting.run import read_predictions
from longrec.reporting.tables import table


def score_by_counts(
    log: Log, split: str = "test", smooth: float = 10.0, extra: tuple[str, ...] = ()
) -> dict[str, np.ndarray]:
    """Score a split by smoothed training rates: of the item, of the user, and the sum of their logits.

    Args:
        smooth: number of rows of the average rate added to every count.
        extra: event columns whose rates are added to the sum.
    """
    train, rows = log.rows_of("train"), log.rows_of(split)
    label = log.labels[train]
    base = float(label.mean())

    def logit(column: np.ndarray) -> np.ndarray:
        size = int(column.max()) + 1
        count = np.bincount(column[train], minlength=size)
        hits = np.bincount(column[train], weights=label, minlength=size)
        rate = (hits + smooth * base) / (count + smooth)
        return (np.log(rate / (1 - rate)) - np.log(base / (1 - base)))[column[rows]]

    columns = {"item": log.events.columns["item"], "user": log.user(np.arange(len(log)))}
    columns |= {name: log.events.columns[name] for name in extra}
    terms = {name: logit(np.asarray(column, np.int64)) for name, column in columns.items()}
    total = np.log(base / (1 - base)) + sum(terms.values())
    return {**terms, "counting": 1 / (1 + np.exp(-total))}


def mark_table(log: Log, extra: tuple[str, ...] = ()) -> str:
    """Return the AUC of every counting score on valid and test."""
    rows = []
    scores = {split: score_by_counts(log, split, extra=extra) for split in ("valid", "test")}
    for name in scores["test"]:
        rows.append([name, *(auc(log.labels[log.rows_of(split)], scores[split][name]) for split in ("valid", "test"))])
    return table(["counted on train", "valid AUC", "test AUC"], rows)


def seeds_table(runs: dict[str, list[Any]]) -> str:
    """Return the test metrics of each arm: mean over seeds, each seed, and the first seed's interval over users."""
    rows = []
    for name, several in runs.items():
        values = np.array([run.metrics["auc"].value for run in several])
        rows.append(
            [
                name,
                f"{values.mean():.4f}",
                " ".join(f"{value:.4f}" for value in values),
                str(several[0].metrics["auc"]),
                f"{np.mean([run.metrics['gauc'].value for run in several]):.4f}",
                f"{np.mean([run.metrics['log_loss'].value for run in several]):.4f}",
            ]
        )
    return table(["arm", "test AUC", "seeds", "first seed [95 %, users]", "test GAUC", "test log loss"], rows)


def paired_table(
    runs: dict[str, list[Any]], pairs: list[tuple[str, str]], log: Log | None = None, extra: tuple[str, ...] = ()
) -> str:
    """Return differences in test AUC per seed on the same rows, with intervals over users and over rows.

    ``counting`` is the counting score of ``log`` (the same for every seed).
    """
    rows = []
    for better, than in pairs:
        for seed, run in enumerate(runs[better]):
            own = read_predictions(run.folder)
            other = score_by_counts(log, extra=extra)["counting"] if than == "counting" and log is not None else None
            scores = {
                better: own.score,
                than: other if other is not None else read_predictions(runs[than][seed].folder).score,
            }
            cells = []
            for resample in ("user", "row"):
                comparison = compare(
                    own.label, scores, own.user, baseline=than, n_resamples=300, seed=0, resample=resample
                )
                difference = comparison.to_dict()["differences"][better]["auc"]
                cells.append(f"{difference['value']:+.4f} [{difference['low']:+.4f}, {difference['high']:+.4f}]")
            rows.append([f"{better} - {than}", seed, *cells])
    return table(["difference in test AUC", "seed", "over users", "over rows"], rows)


def report(path: Path, title: str, tables: list[str]) -> None:
    """Write the tables as Markdown and print them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = f"# {title}\n\n" + "\n\n".join(f"```\n{body}\n```" for body in tables) + "\n"
    path.write_text(text)
    print(text)

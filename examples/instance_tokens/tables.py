"""Tables over seeds: means, and differences with intervals that count both users and seeds as drawn at random."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.metrics import auc, grouped_auc
from longrec.metrics.bootstrap import METRICS, Draws, bootstrap
from longrec.report.tables import table

MANY = 10
"""Within-user AUC is taken over users with so many test rows at least, and both labels."""
N_RESAMPLES = 300


def within_user(label: NDArray[Any], score: NDArray[Any], user: NDArray[Any]) -> tuple[float, int]:
    """AUC inside users with many rows, weighted by their rows, and how many such users there are."""
    _, place, count = np.unique(user, return_inverse=True, return_counts=True)
    many = count[place] >= MANY
    if not many.any():
        return float("nan"), 0
    found = grouped_auc(label[many], score[many], user[many])
    return (float(found.value), found.users) if found.users else (float("nan"), 0)


def arms_table(runs: dict[str, list[Any]], references: tuple[str, ...], part: str = "test") -> str:
    """AUC, within-user AUC and log loss of each arm over its seeds, and AUC less that of the references in points.

    An interval is of the mean over seeds: users are drawn anew, and seeds among themselves, both with replacement.
    """
    scores, label, user = {}, None, None
    for arm, several in runs.items():
        for seed, run in enumerate(several):
            own = run.predictions(part)
            scores[f"{arm}/{seed}"] = own["score"].to_numpy()
            label, user = own["label"].to_numpy(), own["user"].to_numpy()
    assert label is not None
    assert user is not None
    drawn = bootstrap(label, scores, user, n_resamples=N_RESAMPLES, seed=0)
    column = METRICS.index("auc")
    rows = []
    for arm, several in runs.items():
        values = np.array([auc(label, scores[f"{arm}/{seed}"]) for seed in range(len(several))])
        inside = [within_user(label, scores[f"{arm}/{seed}"], user)[0] for seed in range(len(several))]
        loss = np.mean([run.metrics["log_loss"].value for run in several])
        cells = [arm, len(several), f"{values.mean():.4f} ± {values.std(ddof=1) if len(values) > 1 else 0:.4f}"]
        cells += [f"{np.mean(inside):.4f}", f"{loss:.4f}"]
        for reference in references:
            cells.append("" if reference == arm else _difference(drawn, arm, reference, len(values), column))
        rows.append(cells)
    heads = ["arm", "seeds", f"{part} AUC", f"within users ({MANY}+)", "log loss"]
    return table([*heads, *(f"- {name}" for name in references)], rows)


def _difference(drawn: Draws, arm: str, reference: str, seeds: int, column: int) -> str:
    pairs = [(f"{arm}/{seed}", f"{reference}/{seed}") for seed in range(seeds)]
    pairs = [pair for pair in pairs if pair[0] in drawn.values and pair[1] in drawn.values]
    value = np.mean([drawn.values[one][column] - drawn.values[other][column] for one, other in pairs])
    draws = np.stack([drawn.draws[one][:, column] - drawn.draws[other][:, column] for one, other in pairs])
    count = len(pairs)
    random = np.random.default_rng(0)
    picked = random.integers(0, count, (draws.shape[1], count))
    means = draws[picked, np.arange(draws.shape[1])[:, None]].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{100 * value:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"


def write(path: Path, title: str, parts: list[str]) -> None:
    """Tables as Markdown, printed too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = (
        f"# {title}\n\n" + "\n\n".join(part if part.startswith("#") else f"```\n{part}\n```" for part in parts) + "\n"
    )
    path.write_text(text, encoding="utf-8")
    print(text)

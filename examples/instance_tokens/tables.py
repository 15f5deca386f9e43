"""Tables over seeds: means, and differences with intervals that resample both users and seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.metrics import auc, grouped_auc
from longrec.metrics.bootstrap import METRICS, Draws, bootstrap
from longrec.reporting.tables import table

MANY = 10
"""Minimum number of test rows of a user in the within-user AUC. The user needs both labels."""
N_RESAMPLES = 300


def compute_within_user_auc(label: NDArray[Any], score: NDArray[Any], user: NDArray[Any]) -> tuple[float, int]:
    """Compute the AUC within users with many rows, weighted by their rows, and the number of such users."""
    _, index, count = np.unique(user, return_inverse=True, return_counts=True)
    many = count[index] >= MANY
    if not many.any():
        return float("nan"), 0
    result = grouped_auc(label[many], score[many], user[many])
    return (float(result.value), result.users) if result.users else (float("nan"), 0)


def format_arms(runs: dict[str, list[Any]], references: tuple[str, ...], split_name: str = "test") -> str:
    """Format AUC, within-user AUC and log loss of each arm over its seeds, and AUC differences in points.

    An interval is that of the mean over seeds. Users and seeds are resampled, both with replacement.
    """
    scores, label, user = {}, None, None
    for arm, several in runs.items():
        for seed, run in enumerate(several):
            own = run.predictions(split_name)
            scores[f"{arm}/{seed}"] = own["score"].to_numpy()
            label, user = own["label"].to_numpy(), own["user"].to_numpy()
    assert label is not None
    assert user is not None
    drawn = bootstrap(label, scores, user, n_resamples=N_RESAMPLES, seed=0)
    column = METRICS.index("auc")
    rows = []
    for arm, several in runs.items():
        values = np.array([auc(label, scores[f"{arm}/{seed}"]) for seed in range(len(several))])
        inside = [compute_within_user_auc(label, scores[f"{arm}/{seed}"], user)[0] for seed in range(len(several))]
        loss = np.mean([run.metrics["log_loss"].value for run in several])
        cells = [arm, len(several), f"{values.mean():.4f} ± {values.std(ddof=1) if len(values) > 1 else 0:.4f}"]
        cells += [f"{np.mean(inside):.4f}", f"{loss:.4f}"]
        for reference in references:
            cells.append("" if reference == arm else _format_difference(drawn, arm, reference, len(values), column))
        rows.append(cells)
    heads = ["arm", "seeds", f"{split_name} AUC", f"within users ({MANY}+)", "log loss"]
    return table([*heads, *(f"- {name}" for name in references)], rows)


def _format_difference(drawn: Draws, arm: str, reference: str, seeds: int, column: int) -> str:
    pairs = [(f"{arm}/{seed}", f"{reference}/{seed}") for seed in range(seeds)]
    pairs = [pair for pair in pairs if pair[0] in drawn.values and pair[1] in drawn.values]
    value = np.mean([drawn.values[one][column] - drawn.values[other][column] for one, other in pairs])
    draws = np.stack([drawn.draws[one][:, column] - drawn.draws[other][:, column] for one, other in pairs])
    count = len(pairs)
    random = np.random.default_rng(0)
    seeds_drawn = random.integers(0, count, (draws.shape[1], count))
    means = draws[seeds_drawn, np.arange(draws.shape[1])[:, None]].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{100 * value:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"


def write_tables(path: Path, title: str, blocks: list[str]) -> None:
    """Write tables as Markdown, and print them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = (
        f"# {title}\n\n"
        + "\n\n".join(block if block.startswith("#") else f"```\n{block}\n```" for block in blocks)
        + "\n"
    )
    path.write_text(text, encoding="utf-8")
    print(text)

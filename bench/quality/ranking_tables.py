"""Tables of ``rankers.py``: every ranking model on every log, the real differences, and sanity checks.

    python bench/quality/ranking_tables.py [--work build/quality/rankers]

A model's AUC is the mean over its seeds. Users are resampled (300 times), the same ones for all models, so differences
are paired. The interval of a difference includes the variance over users and over seeds. The second is the variance of
seeds around the mean of their model, pooled over all models of a log. It is omitted with one seed per model. A
difference is called real if its 95 % interval excludes zero, without correction for the number of pairs.

Writes ``results/rankers_*.md`` and ``results/models.json``, from which the pages of the models are made.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))
import machine
from rankers import APART, WANTS

from longrec.metrics import bootstrap
from longrec.reporting.run import read_predictions

Arm = tuple[str, str]
"""Model and mode."""

TITLES = {
    "movielens": "MovieLens-1M, 80/10/10 of the rows along one line through time, rated 4 or better",
    "c12": "MovieLens-1M by protocol C12",
    "kuairand": "KuaiRand-Pure, is_click",
    "beauty": "Amazon Beauty in DIEN's form",
}
Z = 1.96


@dataclass(frozen=True)
class Results:
    """The runs of one log.

    Attributes:
        seeds: AUC of every seed.
        draws: ``[R]`` of every arm, the mean over its seeds on each draw of users.
        noise: standard deviation of a seed around the mean of its model, pooled. None with one seed per model.
    """

    seeds: dict[Arm, NDArray[np.float64]]
    draws: dict[Arm, NDArray[np.float64]]
    noise: float | None

    def mean(self, arm: Arm) -> float:
        return float(self.seeds[arm].mean())

    def half(self, draws: NDArray[np.float64], *arms: Arm) -> float:
        """Return half of the 95 % interval of a sum or difference of arms."""
        own = (self.noise or 0.0) ** 2 * sum(1 / len(self.seeds[arm]) for arm in arms)
        return Z * float(np.sqrt(draws.var(ddof=1) + own))

    def difference(self, one: Arm, other: Arm) -> tuple[float, float]:
        """Return the difference of the first arm to the other, and half of the interval around it."""
        return self.mean(one) - self.mean(other), self.half(self.draws[one] - self.draws[other], one, other)

    def real(self, one: Arm, other: Arm) -> bool:
        """Return True if the first is better and the interval excludes zero."""
        value, half = self.difference(one, other)
        return value > half


def find_runs(folder: Path) -> dict[Arm, list[Path]]:
    """Return the finished runs of a log, without repeated runs and runs with shuffled labels."""
    folders: dict[Arm, list[Path]] = defaultdict(list)
    for path in sorted(folder.glob("runs/*/predictions/test.parquet")):
        match = re.fullmatch(r"(\w+)-(past|plain|apart)-(\d+)", path.parents[1].name)
        if match and (path.parents[1] / "results.json").exists():
            folders[match[1], match[2]].append(path.parents[1])
    return folders


def list_machines(folder: Path) -> str:
    """Return the machines of the runs."""
    counts: Counter[str] = Counter()
    for several in find_runs(folder).values():
        for run in several:
            environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
            counts[f"{environment['cpu']}, torch {environment['packages']['torch']}"] += 1
    return "; ".join(f"{count} runs on {name}" for name, count in counts.most_common()) + "."


def measure_log(folder: Path, n_resamples: int) -> Results | None:
    """Read and resample the predictions, and compute the metrics. None without runs."""
    runs = find_runs(folder)
    if not runs:
        return None
    scores, label, user = {}, None, None
    for several in runs.values():
        for run in several:
            own = read_predictions(run)
            if label is None:
                label, user = own.label, own.user
            assert np.array_equal(own.label, label)
            scores[run.name] = own.score
    assert label is not None
    assert user is not None
    draws = bootstrap(label, scores, user, n_resamples=n_resamples, seed=0)
    seeds = {arm: np.array([draws.values[run.name][0] for run in several]) for arm, several in runs.items()}
    means = {arm: np.mean([draws.draws[run.name][:, 0] for run in several], axis=0) for arm, several in runs.items()}
    free = sum(len(values) - 1 for values in seeds.values())
    spread = sum(float(((values - values.mean()) ** 2).sum()) for values in seeds.values())
    return Results(seeds, means, (spread / free) ** 0.5 if free else None)


def format_table(results: Results, modes: list[str]) -> str:
    """Return all models, best first, with the differences to DIN and to the mode without feedback."""
    head = ["model"]
    for mode in modes:
        head += [f"test AUC, {mode} [95 %]", "seeds", "less DIN", "really worse models"]
    if len(modes) > 1:
        head += ["past less plain"]
    models = sorted(
        {model for model, mode in results.seeds if mode in modes}, key=lambda name: -_find_best(results, name)
    )
    rows = []
    for model in models:
        row = [model]
        for mode in modes:
            row += _format_cells(results, (model, mode))
        if len(modes) > 1:
            both = [(model, mode) for mode in ("past", "plain")]
            row.append(
                _format_difference(*results.difference(*both)) if all(arm in results.seeds for arm in both) else ""
            )
        rows.append(row)
    return machine.format_table(head, rows)


def describe_apart(results: Results) -> str:
    """Return the effect of one history per behavior."""
    arm = "din", "apart"
    if arm not in results.seeds:
        return ""
    cell, spread = _format_cells(results, arm)[:2]
    return (
        f"{' and '.join(APART)} read liked and disliked events as separate histories. The weights of each sum to one, "
        f"so that the count of liked events is lost: DIN in this form reaches {cell} (seeds {spread}), "
        f"{_format_difference(*results.difference(arm, ('din', 'past')))} to itself with one history."
    )


def _find_best(results: Results, model: str) -> float:
    return max(results.mean(arm) for arm in results.seeds if arm[0] == model)


def _format_cells(results: Results, arm: Arm) -> list[str]:
    if arm not in results.seeds:
        return ["", "", "", ""]
    half, values = results.half(results.draws[arm], arm), results.seeds[arm]
    cell = f"{values.mean():.4f} [{values.mean() - half:.4f}, {values.mean() + half:.4f}]"
    spread = f"{len(values)}: {values.min():.4f} to {values.max():.4f}" if len(values) > 1 else "1"
    din, others = ("din", arm[1]), [other for other in results.seeds if other[1] == arm[1] and other != arm]
    less = _format_difference(*results.difference(arm, din)) if arm != din and din in results.seeds else ""
    return [cell, spread, less, f"{sum(results.real(arm, other) for other in others)} of {len(others)}"]


def _format_difference(value: float, half: float) -> str:
    text = f"{value:+.4f} [{value - half:+.4f}, {value + half:+.4f}]"
    return f"**{text}**" if abs(value) > half else text


def format_relations(folder: Path, results: Results) -> str:
    """Return the sanity checks on a log of sampled negatives (see ``relations.py``)."""
    path = folder / "relations.json"
    if not path.exists():
        return "Relations: not run (`relations.py`)."
    checked = json.loads(path.read_text(encoding="utf-8"))
    rows = []
    for model in sorted({model for model, _ in results.seeds}):
        own = checked["models"].get(model, {})
        shuffled = own.get("shuffled")
        rows.append(
            [
                model,
                f"{results.mean((model, 'past')):.4f}",
                "yes" if results.mean((model, "past")) > checked["popularity"] else "no",
                "" if shuffled is None else f"{shuffled:.4f}",
                {None: "", True: "yes", False: "no"}[own.get("twin")],
            ]
        )
    head = ["model", "test AUC", "beats popularity", "AUC of random labels", "trained twice, same to the bit"]
    about = (
        f"Popularity of an item alone: AUC {checked['popularity']:.4f}. Uninformed scores reach 0.5 within "
        f"{checked['chance']:.4f} in 95 of 100 cases."
    )
    return f"{about}\n\n{machine.format_table(head, rows)}"


def main() -> None:
    """Write the tables of the finished runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/quality/rankers"))
    parser.add_argument("--n-resamples", type=int, default=300)
    parser.add_argument("--speed", type=Path, default=machine.CACHE / "rankers_speed" / "speed.json")
    args = parser.parse_args()
    kept: dict[str, Any] = {}
    for log, title in TITLES.items():
        results = measure_log(args.work / log, args.n_resamples)
        if results is None:
            continue
        modes = [mode for mode in ("past", "plain") if any(arm[1] == mode for arm in results.seeds)]
        noise = "unknown (one seed per model)" if results.noise is None else f"{results.noise:.4f}"
        more = ", ".join(f"{model} ({', '.join(columns)})" for model, columns in sorted(WANTS.items()))
        about = (
            f"Standard deviation of a seed: {noise}. Bold: real differences. "
            f"Some models read computed columns too: {more}."
        )
        text = [
            f"# {title}",
            about,
            format_table(results, modes),
            *filter(None, [describe_apart(results)]),
            list_machines(args.work / log),
        ]
        if log == "beauty":
            text.append(format_relations(args.work / log, results))
        machine.write(f"rankers_{log}", "\n\n".join(text))
        kept[log] = {}
        for model in sorted({model for model, _ in results.seeds}):
            arm = next((model, mode) for mode in ("past", "plain") if (model, mode) in results.seeds)
            half = results.half(results.draws[arm], arm)
            kept[log][model] = {
                "auc": round(results.mean(arm), 4),
                "low": round(results.mean(arm) - half, 4),
                "high": round(results.mean(arm) + half, 4),
                "seeds": len(results.seeds[arm]),
            }
    if args.speed.exists():
        kept["speed"] = json.loads(args.speed.read_text(encoding="utf-8"))
    (machine.RESULTS / "models.json").write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Instance tokens on a synthetic dataset: a label that depends on hidden functions of an earlier impression's fields.

    python examples/instance_tokens/synthetic_study.py [--seeds 5] [--sweeps]

Narrow models (ids, labels, gaps) are at chance by construction. Tokens come from a source that reads all fields.
"Lift" is the test AUC above one half, as a share of the Bayes-optimal lift. Charts are written beside the tables.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from arms import Arm, TokenStoreSpec
from runner import Study
from tables import format_arms, write_tables

from longrec.data import synthetic
from longrec.metrics import auc
from longrec.reporting.plots import Series, draw_line_chart, draw_swatch
from longrec.reporting.style import CSS
from longrec.reporting.tables import table

BASE = {"name": "deepfm", "mlp": [128, 64], "batch_norm": True, "dropout": 0.0}
STORES = {
    "t": TokenStoreSpec({"order": "temporal"}),
    "u": TokenStoreSpec({"order": "user", "context": 24, "rows_per_user": 64}),
}
KINDS: dict[str, dict[str, Any]] = {
    "last": {},
    # Several impressions of a page at once, two keys: harder is learned too, by more rows than minutes allow here.
    "together": {"fields": 20, "keys": 2, "page": 8, "strength": 3.5},
}
HISTORY = ("item", "category", "outcome", "time_gap")
ARMS = {
    "base": Arm(),
    "history": Arm(history=HISTORY),
    "side-only": Arm("t", reader={"tokens": "zeroed"}),
    "T-IAT": Arm("t"),
    "U-IAT": Arm("u"),
}
SWEEPS: dict[str, tuple[str, list[Any]]] = {
    "strength": ("strength of the dependence", [0.5, 1.0, 2.5, 5.0]),
    "fields": ("fields of an impression", [10, 30, 60, 120]),
    "back": ("number of timestamps back", [1, 2, 4, 8]),
}


def build_study(work: Path, seed: int, users: int, **parameters: Any) -> tuple[Study, Any]:
    """Write one synthetic dataset and build its study."""
    dataset = synthetic.generate_dataset("rich_instances", users=users, seed=seed, **parameters)
    folder = synthetic.write(dataset, work / "dataset")
    narrow, wide = (
        {key: value for key, value in dataset.job(folder, {}, wide=kind)["data"].items() if key != "folder"}
        for kind in (False, True)
    )
    max_length = dataset.schema["histories"]["past"]["max_length"]
    for data, schema in ((narrow, dataset.schema), (wide, dataset.wide)):
        data["schema"] = {key: value for key, value in schema.items() if key != "histories"}
    token_columns = ("token", "label", "outcome", "time_gap")
    study = Study(
        narrow,
        work,
        token_columns,
        max_length,
        STORES,
        {"blocks": 10, "epochs": 2},
        "",
        source=wide,
        base=BASE,
        fit={"lr": 1e-3},
    )
    return study, dataset


def compute_bayes_auc(study: Study, dataset: Any, run: Any) -> float:
    """Compute the AUC of the true probabilities on the test rows of a run."""
    rows = run.predictions("test")["row"].to_numpy()
    log = run.log()
    return float(auc(log.labels.take(rows), dataset.true_probability[rows]))


def compute_lifts(study: Study, dataset: Any, arms: dict[str, Arm], seed: int) -> dict[str, float]:
    """Compute the lift of each arm as a share of the Bayes-optimal lift."""
    runs = {name: study.run(name, arm, seed) for name, arm in arms.items()}
    top = compute_bayes_auc(study, dataset, next(iter(runs.values())))
    return {name: (run.metrics["auc"].value - 0.5) / (top - 0.5) for name, run in runs.items()}


def write_table(work: Path, kind: str, seeds: int, users: int) -> None:
    """Write the table of one kind of dataset over seeds."""
    study, dataset = build_study(work / kind, 0, users, signal=kind, **KINDS[kind])
    runs: dict[str, list[Any]] = {name: [] for name in ARMS}
    for seed in range(seeds):
        for name, arm in ARMS.items():
            runs[name].append(study.run(name, arm, seed))
    top = compute_bayes_auc(study, dataset, runs["base"][0])
    rows = [
        [name, f"{np.mean([(run.metrics['auc'].value - 0.5) / (top - 0.5) for run in several]):.3f}"]
        for name, several in runs.items()
    ]
    blocks = [
        f"## Bayes-optimal AUC {top:.4f}\n",
        table(["arm", "share of the Bayes-optimal lift"], rows),
        format_arms(runs, ("base", "side-only", "T-IAT")),
    ]
    write_tables(work / f"rich_instances_{kind}.md", f"Synthetic dataset rich_instances, kind {kind}", blocks)


def draw_sweep(work: Path, parameter: str, users: int) -> None:
    """Draw one chart: lift against one parameter."""
    axis, values = SWEEPS[parameter]
    arms = {name: ARMS[name] for name in ("side-only", "T-IAT", "U-IAT")}
    lifts: dict[str, list[float]] = {name: [] for name in arms}
    for value in values:
        study, dataset = build_study(work / f"{parameter}-{value:g}", 0, users, **{parameter: value})
        for name, lift in compute_lifts(study, dataset, arms, 0).items():
            lifts[name].append(lift)
    rows = [[f"{value:g}", *(f"{lifts[name][n]:.3f}" for name in arms)] for n, value in enumerate(values)]
    write_tables(work / f"sweep_{parameter}.md", f"Lift against the {axis}", [table([axis, *arms], rows)])
    series = [Series(name, slot, list(zip(values, lifts[name]))) for slot, name in enumerate(arms)]
    (work / f"sweep_{parameter}.html").write_text(draw_picture(series, axis), encoding="utf-8")


def draw_picture(series: list[Series], axis: str) -> str:
    """Build a page with one chart."""
    title = f"Share of the Bayes-optimal lift against the {axis}"
    names = "".join(f"<li>{draw_swatch(one.slot)}{one.name}</li>" for one in series)
    chart = draw_line_chart(series, axis, "share of the Bayes-optimal lift")
    body = f'<main><h3>{title}</h3><figure>{chart}<ul class="legend">{names}</ul></figure></main>'
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{CSS}</style>{body}</html>'
    )


def main() -> None:
    """Write the tables, then the charts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/instance_tokens/synthetic"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--users", type=int, default=4_000)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), help="last, together")
    parser.add_argument("--sweeps", action="store_true", help="also draw the charts")
    args = parser.parse_args()
    for kind in args.kinds:
        write_table(args.work, kind, args.seeds, args.users)
    for parameter in SWEEPS if args.sweeps else ():
        draw_sweep(args.work, parameter, args.users)


if __name__ == "__main__":
    main()

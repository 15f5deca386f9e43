"""The mechanism where the answer is known: a label that depends on hidden functions of an earlier impression's fields.

    python examples/instance_tokens/worlds.py [--seeds 5] [--sweeps]

Narrow models (ids, labels, gaps) are at chance by construction; tokens come from a source that sees all fields.
"Lift" is how far above one half the test AUC is, as a share of the oracle's. Pictures go beside the tables.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from arms import Arm, Tokens
from runner import Study
from tables import arms_table, write

from longrec.data import synthetic
from longrec.metrics import auc
from longrec.report.plots import Series, line_chart, swatch
from longrec.report.style import CSS
from longrec.report.tables import table

BASE = {"name": "deepfm", "mlp": [128, 64], "batch_norm": True, "dropout": 0.0}
STORES = {
    "t": Tokens({"order": "temporal"}),
    "u": Tokens({"order": "user", "context": 24, "rows_per_user": 64}),
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
    "back": ("number of moments back", [1, 2, 4, 8]),
}


def study_of(work: Path, seed: int, users: int, **knobs: Any) -> tuple[Study, Any]:
    """One world, written, and its study."""
    made = synthetic.generate_dataset("rich_instances", users=users, seed=seed, **knobs)
    folder = synthetic.write(made, work / "world")
    narrow, wide = (
        {key: value for key, value in made.job(folder, {}, wide=kind)["data"].items() if key != "folder"}
        for kind in (False, True)
    )
    last = made.schema["histories"]["past"]["last"]
    for data, words in ((narrow, made.schema), (wide, made.wide)):
        data["schema"] = {key: value for key, value in words.items() if key != "histories"}
    of = ("token", "label", "outcome", "time_gap")
    study = Study(
        narrow, work, of, last, STORES, {"blocks": 10, "epochs": 2}, "", source=wide, base=BASE, fit={"lr": 1e-3}
    )
    return study, made


def oracle(study: Study, made: Any, run: Any) -> float:
    """The AUC of the true chances on the test rows of a run."""
    rows = run.predictions("test")["row"].to_numpy()
    log = run.log()
    return float(auc(log.labels.take(rows), made.true_probability[rows]))


def lifts(study: Study, made: Any, arms: dict[str, Arm], seed: int) -> dict[str, float]:
    """Lift of each arm as a share of the oracle's."""
    runs = {name: study.run(name, arm, seed) for name, arm in arms.items()}
    top = oracle(study, made, next(iter(runs.values())))
    return {name: (run.metrics["auc"].value - 0.5) / (top - 0.5) for name, run in runs.items()}


def tell(work: Path, kind: str, seeds: int, users: int) -> None:
    """The table of one kind of world over seeds: worlds, sources and readers are all drawn anew."""
    study, made = study_of(work / kind, 0, users, tell=kind, **KINDS[kind])
    runs: dict[str, list[Any]] = {name: [] for name in ARMS}
    for seed in range(seeds):
        for name, arm in ARMS.items():
            runs[name].append(study.run(name, arm, seed))
    top = oracle(study, made, runs["base"][0])
    rows = [
        [name, f"{np.mean([(run.metrics['auc'].value - 0.5) / (top - 0.5) for run in several]):.3f}"]
        for name, several in runs.items()
    ]
    parts = [
        f"## Oracle {top:.4f}\n",
        table(["arm", "share of the oracle's lift"], rows),
        arms_table(runs, ("base", "side-only", "T-IAT")),
    ]
    write(work / f"rich_instances_{kind}.md", f"World rich_instances, tell {kind}", parts)


def sweep(work: Path, knob: str, users: int) -> None:
    """One picture: lift against one knob."""
    words, values = SWEEPS[knob]
    arms = {name: ARMS[name] for name in ("side-only", "T-IAT", "U-IAT")}
    found: dict[str, list[float]] = {name: [] for name in arms}
    for value in values:
        study, made = study_of(work / f"{knob}-{value:g}", 0, users, **{knob: value})
        for name, lift in lifts(study, made, arms, 0).items():
            found[name].append(lift)
    rows = [[f"{value:g}", *(f"{found[name][n]:.3f}" for name in arms)] for n, value in enumerate(values)]
    write(work / f"sweep_{knob}.md", f"Lift against the {words}", [table([words, *arms], rows)])
    series = [Series(name, slot, list(zip(values, found[name]))) for slot, name in enumerate(arms)]
    (work / f"sweep_{knob}.html").write_text(picture(series, words), encoding="utf-8")


def picture(series: list[Series], words: str) -> str:
    """A page with one chart."""
    title = f"Share of the oracle's lift against the {words}"
    names = "".join(f"<li>{swatch(one.slot)}{one.name}</li>" for one in series)
    chart = line_chart(series, words, "share of the oracle's lift")
    body = f'<main><h3>{title}</h3><figure>{chart}<ul class="legend">{names}</ul></figure></main>'
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{CSS}</style>{body}</html>'
    )


def main() -> None:
    """Tables, then pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/instance_tokens/worlds"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--users", type=int, default=4_000)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), help="last, together")
    parser.add_argument("--sweeps", action="store_true", help="draw the pictures too")
    args = parser.parse_args()
    for kind in args.kinds:
        tell(args.work, kind, args.seeds, args.users)
    for knob in SWEEPS if args.sweeps else ():
        sweep(args.work, knob, args.users)


if __name__ == "__main__":
    main()

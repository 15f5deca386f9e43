"""Models of long histories on real logs, beside DIN with its newest 50 events, 200 events, and whole histories.

    python bench/quality/long_histories.py movielens [--arms din_50 sim] [--seeds 1] [--steps 400] [--write]

``movielens`` is MovieLens-1M, 80/10/10 of the rows by time, whose longest history has 2,314 events. ``kuairand`` is
KuaiRand-Pure, whose histories are cut at 128 events. Histories include the user's feedback on the events (mode ``past``
of ``rankers.py``). Every model has its own defaults, except for the widths that ``rankers.py`` sets for all.
``--steps`` bounds the batches of a training, the same for all arms. A finished run is not repeated, and test is read
once per run.

``--write`` writes the table of all finished runs of this log and number of steps. Users are resampled, the same ones
for all arms, so differences are paired. CPU seconds are those of training and evaluation.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import rankers
from numpy.typing import NDArray
from ranking_logs import TASKS, Task

import longrec
from longrec.metrics import bootstrap
from longrec.reporting.run import read_predictions

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))
import machine

WHOLE = {"movielens": 2_400, "kuairand": 128}
"""Maximum length that cuts no history of the log, or the longest that the log has."""
LEARNING_RATE = {"movielens": 3e-3, "kuairand": 1e-3}
LONG = ("sim", "twin", "eta", "sdim", "longer", "hpmn", "mimn", "hstu", "surge")
ARMS: dict[str, tuple[str, int | None]] = {
    "lr": ("lr", 1),
    "din_50": ("din", 50),
    "din_200": ("din", 200),
    "din_whole": ("din", None),
    **{name: (name, None) for name in LONG},
    "surge": ("surge", 200),
}
"""Model and maximum length of the history. None: the whole one. SURGE compares all pairs of events."""
TITLES = {"movielens": "MovieLens-1M with whole histories", "kuairand": "KuaiRand-Pure with 128 events"}
RESAMPLES, Z = 300, 1.96


def build_job(task: Task, log: str, arm: str, seed: int, steps: int | None, work: Path) -> dict[str, Any]:
    """Return the config of a run."""
    model, length = ARMS[arm]
    config = rankers.job(task, f"{arm}-{seed}", model, "past", seed, work)
    for history in config["data"]["schema"]["histories"].values():
        if model == "hstu":
            history["features"] = [*history["features"], "time_gap", "time_since_previous"]
        history["max_length"] = length or WHOLE[log]
    config["data"]["folder"] = str(work / f"prepared-{model if model == 'hstu' else 'past'}-{length or 'whole'}")
    own = {"epochs": 1, "lr": LEARNING_RATE[log], "threads": 1} | ({} if steps is None else {"max_steps": steps})
    return {**config, "fit": {**config["fit"], **own}, "evaluate": {"n_resamples": 2}}


def run(task: Task, log: str, arm: str, seed: int, steps: int | None, work: Path) -> None:
    """Train an arm, unless it is finished."""
    folder = work / "runs" / f"{arm}-{seed}"
    if (folder / "cpu.json").exists():
        return
    began = time.process_time()
    trained = longrec.train(build_job(task, log, arm, seed, steps, work), quiet=True)
    seconds = time.process_time() - began
    (folder / "cpu.json").write_text(json.dumps({"cpu": seconds}), encoding="utf-8")
    print(f"{folder.name}: test AUC {trained.metrics['auc']}, {seconds:.0f} CPU s", flush=True)


def read_lengths(work: Path) -> NDArray[np.int64]:
    """Return the events of each test row's whole history, as of a finished run that reads it."""
    whole = next(path for path in sorted((work / "runs").glob("*/cpu.json")) if ARMS[path.parent.name[:-2]][1] is None)
    log = longrec.open_run(whole.parent).log()
    lengths: NDArray[np.int64] = log.compute_history_lengths("seen", log.rows_of("test"))
    return lengths


def format_results(work: Path) -> str:
    """Return the table of the finished runs, with differences to DIN with its newest 50 events."""
    folders = {path.parent.name: path.parent for path in sorted((work / "runs").glob("*/cpu.json"))}
    tables = {name: read_predictions(folder) for name, folder in folders.items()}
    first = next(iter(tables.values()))
    assert all(np.array_equal(one.label, first.label) for one in tables.values())
    drawn = bootstrap(
        first.label, {name: one.score for name, one in tables.items()}, first.user, n_resamples=RESAMPLES, seed=0
    )
    runs = {arm: [name for name in tables if name.rpartition("-")[0] == arm] for arm in ARMS}
    runs = {arm: names for arm, names in runs.items() if names}
    draws = {arm: np.mean([drawn.draws[name][:, 0] for name in names], axis=0) for arm, names in runs.items()}
    values = {arm: float(np.mean([drawn.values[name][0] for name in names])) for arm, names in runs.items()}
    is_long = read_lengths(work) > np.median(read_lengths(work))
    rows = []
    for arm, names in runs.items():
        results = [json.loads((folders[name] / "results.json").read_text())["metrics"] for name in names]
        seconds = [json.loads((folders[name] / "cpu.json").read_text())["cpu"] for name in names]
        mean = {key: np.mean([one[key]["value"] for one in results]) for key in ("log_loss", "pcoc")}
        difference = values[arm] - values["din_50"]
        half = Z * float((draws[arm] - draws["din_50"]).std(ddof=1))
        less = "" if arm == "din_50" else f"{difference:+.4f} [{difference - half:+.4f}, {difference + half:+.4f}]"
        long_auc = np.mean([longrec.metrics.auc(first.label[is_long], tables[name].score[is_long]) for name in names])
        seeds = ", ".join(f"{drawn.values[name][0]:.4f}" for name in names)
        rows.append([
            arm, f"{values[arm]:.4f}", seeds, f"**{less}**" if abs(difference) > half else less, f"{long_auc:.4f}",
            f"{mean['log_loss']:.4f}", f"{mean['pcoc']:.3f}", f"{np.mean(seconds):.0f}",
        ])  # fmt: skip
    head = ["arm", "test AUC", "seeds", "less din_50 [95 %]", "AUC, longer half", "log loss", "PCOC", "CPU s"]
    return machine.format_table(head, rows)


def main() -> None:
    """Train the missing runs, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", choices=list(WHOLE))
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of kuairand_pure_14d")
    parser.add_argument("--work", type=Path, default=Path("build/quality/long_histories"))
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, help="batches of a training at most; default: one epoch")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    work = args.work / f"{args.log}-{args.steps or 'epoch'}"
    work.mkdir(parents=True, exist_ok=True)
    task = TASKS[args.log](args.data, work)
    for seed in range(args.seeds):
        for arm in args.arms:
            run(task, args.log, arm, seed, args.steps, work)
    if not args.write:
        return
    table = format_results(work)
    lengths = read_lengths(work)
    budget = "one epoch" if args.steps is None else f"{args.steps} batches"
    about = (
        f"{budget} of {task.fit['batch_size']} rows, learning rate {LEARNING_RATE[args.log]:g}, one thread. Test rows: "
        f"{len(lengths):,}, with histories of {lengths.mean():.0f} events on average, median {np.median(lengths):.0f}, "
        f"{np.mean(lengths > 200):.0%} above 200. AUC, longer half: rows whose history is longer than the median. "
        "Bold: the interval over users, paired, excludes zero; it does not include the variance over seeds."
    )
    machine.write(f"long_histories_{args.log}", f"# {TITLES[args.log]}\n\n{about}\n\n{table}")


if __name__ == "__main__":
    main()

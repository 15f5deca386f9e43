"""Daily training on KuaiRand-Pure, 14 days: a warm start with each new day against training from scratch on all days.

    python bench/quality/daily_training.py --data FOLDER_WITH_PARQUET_FILES [--seeds 2 --last-day 13]

Day by day, each arm trains DIN for one epoch and is tested on the next day, which no arm has seen:

- ``scratch`` on all rows of all days so far;
- ``warm`` starts from its own run of the day before (``fit.init_from``) and trains on the rows of the new day alone
  (``fit.train_from``);
- ``reset`` is ``warm`` with a new optimizer state every day (``fit.reset_optimizer``);
- ``frozen`` is the model of ``scratch`` after day 7, which scores each later day as a new log (``run.predict``);
- ``counting`` is the sum of the logits of the smoothed rates of video, user and tab on all days so far: the floor.

All arms read the same histories. Vocabularies grow: they are those of all days so far. CPU seconds are those of
training and of scoring the next day, without the preparation of the log, which is the same for all.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import machine  # noqa: E402
from kuairand import schema  # noqa: E402
from marks import score_by_counts  # noqa: E402

import longrec  # noqa: E402
from longrec.metrics import auc, log_loss  # noqa: E402

DAY_MS, OFFSET_MS, FROZEN_AFTER = 86_400_000, 8 * 3_600_000, 7
"""Length of a day, China's offset from UTC, and the last day that the frozen model was trained on."""
TRAINED = ("scratch", "warm", "reset")


def begin_of(first: int, day: int) -> int:
    """Return the first millisecond of a day, counted from 1, of a log whose first day has this number."""
    return (first + day - 1) * DAY_MS - OFFSET_MS


def describe(milliseconds: int) -> str:
    """Return a timestamp as ISO text."""
    return str(np.datetime64(milliseconds, "ms")) + "Z"


def job(data: Path, work: Path, first: int, day: int, name: str, seed: int, **fit: Any) -> dict[str, Any]:
    """Return the config of a run that is trained until the end of a day and tested on the next."""
    test, end = begin_of(first, day + 1), begin_of(first, day + 2)
    log = f"read_parquet('{data}/impressions.parquet')"
    query = f"SELECT *, time_ms + play_time_ms AS known_ms FROM {log} WHERE NOT is_repeat AND time_ms < {end}"
    return {
        "name": name,
        "data": {
            "log": {"query": query},
            "users": f"{data}/users.parquet",
            "items": f"{data}/videos.parquet",
            "schema": schema(),
            "split": {"by": "time", "test_from": describe(test)},
            "folder": str(work / "prepared"),
        },
        "model": {"name": "din"},
        "fit": {"epochs": 1, "batch_size": 512, "seed": seed, "runs": str(work / "runs"), **fit},
        "evaluate": {"n_resamples": 2},
    }


def train(config: dict[str, Any], work: Path) -> tuple[longrec.open_run, float]:
    """Train a run, or open it, and return it with its CPU seconds."""
    folder = Path(config["fit"]["runs"]) / config["name"]
    clock = work / f"{config['name']}.seconds"
    if not ((folder / "results.json").exists() and clock.exists()):
        shutil.rmtree(folder, ignore_errors=True)
        longrec.prepare(config)
        began = time.process_time()
        longrec.train(config, quiet=True)
        clock.write_text(f"{time.process_time() - began:.2f}")
    return longrec.open_run(folder), float(clock.read_text())


def score_frozen(run: longrec.open_run, data: Path, first: int, day: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and scores of the rows of a day, of a run whose log ends before."""
    log = f"read_parquet('{data}/impressions.parquet')"
    span = f"time_ms >= {begin_of(first, FROZEN_AFTER + 2)} AND time_ms < {begin_of(first, day + 1)}"
    query = f"SELECT *, time_ms + play_time_ms AS known_ms FROM {log} WHERE NOT is_repeat AND {span}"
    table = run.predict({"query": query})
    times = table["time"].cast("int64").to_numpy()
    rows = times >= begin_of(first, day)
    return table["label"].to_numpy()[rows], table["score"].to_numpy()[rows]


def measure_day(
    data: Path, work: Path, first: int, day: int, seed: int, previous: dict[str, Path]
) -> dict[str, tuple[float, float, float]]:
    """Train the arms until the end of a day, and return AUC, log loss and CPU seconds of each on the next day."""
    results: dict[str, tuple[float, float, float]] = {}
    new_day = {"train_from": describe(begin_of(first, day))}
    for arm in TRAINED:
        fit: dict[str, Any] = {}
        if arm != "scratch" and arm in previous:
            fit = {"init_from": str(previous[arm]), **new_day, "reset_optimizer": arm == "reset"}
        if arm != "scratch" and arm not in previous:
            results[arm], previous[arm] = results["scratch"], previous["scratch"]
            continue
        run, seconds = train(job(data, work, first, day, f"{arm}-{day}-{seed}", seed, **fit), work)
        results[arm] = (run.metrics["auc"].value, run.metrics["log_loss"].value, seconds)
        previous[arm] = run.folder
        if arm == "scratch":
            scores = score_by_counts(run.log(), extra=("tab",))["counting"]
            labels = run.log().labels[run.log().rows_of("test")]
            results["counting"] = (float(auc(labels, scores)), float(log_loss(labels, scores)), 0.0)
            if day == FROZEN_AFTER:
                previous["frozen"] = run.folder
    if day > FROZEN_AFTER:
        began = time.process_time()
        label, score = score_frozen(longrec.open_run(previous["frozen"]), data, first, day + 1)
        seconds = time.process_time() - began
        results["frozen"] = (float(auc(label, score)), float(log_loss(label, score)), seconds)
    else:
        results["frozen"] = results["scratch"]
    return results


def main() -> None:
    """Train day by day, measure, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=machine.CACHE / "daily_training")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--last-day", type=int, default=13, help="last day to train on")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    times = pq.read_table(args.data / "impressions.parquet", columns=["time_ms"])["time_ms"].to_numpy()
    first = int((times.min() + OFFSET_MS) // DAY_MS)
    if (times < begin_of(first, 2)).mean() < 0.01:  # an hour of the evening before
        first += 1
    arms = ("counting", "frozen", *TRAINED)
    every: dict[int, list[dict[str, tuple[float, float, float]]]] = {}
    for seed in range(args.seeds):
        previous: dict[str, Path] = {}
        for day in range(1, args.last_day + 1):
            one = measure_day(args.data.resolve(), args.work, first, day, seed, previous)
            every.setdefault(day, []).append(one)
            print(seed, day, {arm: [round(value, 4) for value in one[arm]] for arm in arms}, flush=True)
    means = {
        day: {arm: np.mean([one[arm] for one in several], axis=0) for arm in arms} for day, several in every.items()
    }
    rows = []
    for day, own in means.items():
        count = int(((times >= begin_of(first, day + 1)) & (times < begin_of(first, day + 2))).sum())
        rows.append([str(day + 1), f"{count:,}", *_format(own, arms)])
    whole = {arm: np.mean([own[arm] for own in means.values()], axis=0) for arm in arms}
    rows.append(["mean", "", *_format(whole, arms)])
    head = ["tested on day", "rows", *(f"AUC {arm}" for arm in arms), *(f"log loss {arm}" for arm in arms)]
    head += [f"CPU s {arm}" for arm in TRAINED]
    lines = []
    for arm, base in (("warm", "scratch"), ("reset", "warm"), ("scratch", "counting"), ("warm", "frozen")):
        after = FROZEN_AFTER if base == "frozen" else 0 if base == "counting" else 1
        days = [day for day in means if day > after]
        gaps = np.array([means[day][arm][:2] - means[day][base][:2] for day in days])
        error = gaps.std(axis=0, ddof=1) / np.sqrt(len(days))
        text = [f"{mean:+.4f} ± {se:.4f}" for mean, se in zip(gaps.mean(axis=0), error)]
        lines.append([f"{arm} less {base}", str(len(days)), *text, str(int((gaps[:, 0] > 0).sum()))])
    totals = {arm: sum(own[arm][2] for own in means.values()) for arm in TRAINED}
    spent = ", ".join(f"{arm} {seconds:,.0f}" for arm, seconds in totals.items())
    arms_text = __doc__.split("\n\n", 2)[2].strip().replace("``", "`")
    about = (
        f"{arms_text}\n\nMeans of {args.seeds} seeds. Day 1 is 25 April 2022, China "
        "time. On the first day all trained arms are the same run, and until day 8 the frozen model is the run from "
        f"scratch. CPU seconds of all days: {spent}."
    )
    pairs = machine.format_table(["difference", "days", "AUC", "log loss", "days with the higher AUC"], lines)
    text = f"# Daily training on KuaiRand-Pure\n\n{about}\n\n{machine.format_table(head, rows)}\n\n"
    text += f"Mean over days and its standard error:\n\n{pairs}"
    machine.write("daily_training_kuairand", text)


def _format(own: dict[str, np.ndarray], arms: tuple[str, ...]) -> list[str]:
    """Return the cells of one day."""
    cells = [f"{own[arm][index]:.4f}" for index in (0, 1) for arm in arms]
    return [*cells, *(f"{own[arm][2]:.1f}" for arm in TRAINED)]


if __name__ == "__main__":
    main()

"""Models with a long memory on the synthetic dataset ``long_memory``: the share of the Bayes-optimal lift they reach.

    python bench/quality/long_memory.py [--length 500] [--models din sim hpmn mimn] [--write]

The labels depend on purchases before the newest tenth of a history, at least 50 events. DIN reads the newest 50 events.
SIM searches the whole history by the candidate's category. HPMN and MIMN read it event by event into a few vectors.
Another model reads the whole history with its default settings. A finished run is not repeated. ``--write`` writes the
table of all finished runs of this length. The lift is AUC - 0.5. CPU seconds are those of training and of scoring the
test rows, on one thread, without preparation.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import machine  # noqa: E402

import longrec  # noqa: E402
from longrec.data import synthetic  # noqa: E402
from longrec.data.synthetic import SyntheticDataset, generate_dataset  # noqa: E402
from longrec.data.synthetic.long_memory import RECENT, cut_history  # noqa: E402
from longrec.metrics import auc, log_loss, pcoc  # noqa: E402

MODELS = ("din", "sim", "hpmn", "mimn")
PERIODS = {500: [5, 5, 5], 2_000: [10, 10]}
"""Periods of HPMN. Those of 2,000 events were chosen by AUC on valid, one seed: .856, and .775 with [5, 5, 5, 4] and
twice the epochs, .735 with [5, 5, 5].
"""
Stage = tuple[int, int, float, float]
MIMN_STAGES: dict[int, tuple[Stage, ...]] = {
    2_000: ((800, 66, 1e-2, 5e-2), (2_000, 44, 3e-3, 1e-2), (2_000, 66, 5e-3, 1.5e-2))
}
"""Stages of MIMN's training: events of a history, batches, learning rate, and that of embeddings. Each begins with the
weights of the one before. In one stage over all 2,000 events it reached .755 of the lift after 44 batches and .671
after 132: the gradient of an old purchase has to pass through all later events.
"""


def settings(model: str, length: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the section of a model and its own settings of training."""
    small: dict[str, Any] = {"name": model, "embedding_dim": 8, "mlp": [32]}
    if model == "din":
        return small, {}
    if model == "sim":
        return {**small, "search": "hard", "short": 0}, {}
    if model == "hpmn":
        own = {
            "init_std": 1.0,
            "hidden": 32,
            "hops": 1,
            "periods": PERIODS.get(length, [10, 10, 10]),
            "attention": [16],
        }
        return {**small, **own}, {}
    if model == "mimn":
        own = {"init_std": 1.0, "memory_slots": 3, "width": 16, "hidden": 16, "attention": [16], "mlp": [16]}
        return {**small, **own}, {"embedding_lr": 5e-2, "clip_norm": None, **_limit(44)}
    return {"name": model}, {}


def _limit(steps: int) -> dict[str, Any]:
    """Return the settings of training of a number of batches."""
    return {"epochs": -(-steps // 22), "max_steps": steps, "schedule": {"name": "cosine", "steps": steps}}


def train(dataset: SyntheticDataset, work: Path, section: Any, fit: Any) -> tuple[Any, float]:
    """Return a finished run and its CPU seconds."""
    synthetic.write(dataset, work)
    job = dataset.job(work, section, runs=str(work / "runs"), tensorboard="off", mlflow="off", threads=1, **fit)
    job["data"]["folder"] = str(work / "prepared")
    job |= {"name": f"{section['name']}-{time.time_ns()}", "evaluate": {"n_resamples": 2}}
    longrec.prepare(job)
    began = time.process_time()
    return longrec.train(job, quiet=True), time.process_time() - began


def measure(dataset: SyntheticDataset, model: str, length: int, work: Path) -> dict[str, float]:
    """Train a model, or open its run, and return its measures on the test rows."""
    stored = work / f"{model}.json"
    if stored.exists():
        measures: dict[str, float] = json.loads(stored.read_text(encoding="utf-8"))
        return measures
    if model == "din":
        dataset, work = cut_history(dataset, RECENT), work / "newest"
    section, fit = settings(model, length)
    stages = MIMN_STAGES.get(length, ()) if model == "mimn" else ()
    seconds, run = 0.0, None
    for events, steps, lr, embedding_lr in stages:
        fit |= {**_limit(steps), "lr": lr, "embedding_lr": embedding_lr}
        if run is not None:
            fit |= {"init_from": str(run.folder), "reset_optimizer": True, "allow_future_weights": True}
        run, own = train(cut_history(dataset, events), work / f"newest_{events}", section, fit)
        seconds += own
    if run is None:
        run, seconds = train(dataset, work, section, fit)
    table = run.predictions("test")
    label, score, row = (table[name].to_numpy() for name in ("label", "score", "row"))
    best = dataset.true_probability[row]
    measures = {
        "rows": len(label),
        "auc": float(auc(label, score)),
        "best_auc": float(auc(label, best)),
        "log_loss": float(log_loss(label, score)),
        "best_log_loss": float(log_loss(label, best)),
        "calibration": float(pcoc(label, score)),
        "seconds": seconds,
    }
    stored.write_text(json.dumps(measures), encoding="utf-8")
    return measures


def format_measures(every: dict[str, dict[str, float]]) -> str:
    """Return the table of all models."""
    head = ["model", "AUC", "optimal", "share of the lift", "log loss", "optimal", "calibration (PCOC)", "CPU s"]
    rows = []
    for model, own in every.items():
        share = (own["auc"] - 0.5) / (own["best_auc"] - 0.5)
        values = [own["auc"], own["best_auc"], share, own["log_loss"], own["best_log_loss"]]
        rows.append(
            [model, *(f"{value:.4f}" for value in values), f"{own['calibration']:.3f}", f"{own['seconds']:.1f}"]
        )
    return machine.format_table(head, rows)


def main() -> None:
    """Train the missing runs, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=500, help="events in the history of each user")
    parser.add_argument("--users", type=int, default=1_500)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--work", type=Path, default=Path("build/quality/long_memory"))
    parser.add_argument("--write", action="store_true", help="write the table of all finished runs of this length")
    args = parser.parse_args()
    work = args.work / f"{args.length}-{args.users}"
    work.mkdir(parents=True, exist_ok=True)
    dataset = generate_dataset("long_memory", args.users, length=args.length)
    every = {}
    for model in args.models:
        every[model] = measure(dataset, model, args.length, work)
        print(model, every[model], flush=True)
    if not args.write:
        print(format_measures(every))
        return
    finished = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(work.glob("*.json"))}
    ordered = {model: finished[model] for model in [*MODELS, *sorted(finished)] if model in finished}
    rows = int(next(iter(ordered.values()))["rows"])
    about = (
        f"{args.users:,} users, {args.length:,} events each, {rows:,} test rows of new users, one seed. DIN reads the "
        f"newest {RECENT} events, without a purchase. The lift is AUC - 0.5. PCOC is predicted over actual clicks. "
        "CPU seconds: training and scoring of the test rows, one thread."
    )
    title = f"# Purchases of long ago: `long_memory`, {args.length:,} events"
    machine.write(f"long_memory_{args.length}", f"{title}\n\n{about}\n\n{format_measures(ordered)}")


if __name__ == "__main__":
    main()

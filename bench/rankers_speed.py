"""Benchmark of training and inference of all ranking models, with the time of their matrix products alone.

    python bench/rankers_speed.py [--models din bst] [--rounds 3]

MovieLens-1M by rows, histories of the last 100 events, settings as in ``quality/rankers.py``, one thread, each model
in a process of its own, all models in turns in every round. Reported per model:

- rows per CPU-second in training, from step 5, with LongRec's own loop and optimizers;
- its floor: rows per CPU-second if a step consisted of the matrix products that torch counts in it, forward and
  backward, at this machine's rate for matrices of such shapes; and the ratio to it. Other operations (gathering rows of
  tables, softmax, norms, recurrence between products, optimizer) have no cost there;
- milliseconds to score 100 candidates with a history of 100 events in the exported program (onnxruntime, median);
- the same request in torch, once as a shared batch (the history once) and once as 100 rows that repeat it, which
  measures the gain of sharing;
- parameters outside of tables and in tables.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import clock
import machine

sys.path.insert(1, str(Path(__file__).resolve().parent / "quality"))
import numpy as np
import rankers
import torch
from ranking_logs import TASKS
from torch.utils.flop_counter import FlopCounterMode

from longrec import commands
from longrec.data.log import Log
from longrec.data.training_histories import iterate_training_histories
from longrec.exporting.inputs import list_inputs, make_random_tensors
from longrec.exporting.program import build_shared_batch, trace
from longrec.features.batch import Batch, Layout
from longrec.features.fields import Fields
from longrec.models.core.base import Model
from longrec.models.core.kinds import Ranker
from longrec.models.core.registry import build
from longrec.training.loaders import build_loader

LAST, BATCH, CANDIDATES = 100, 1024, 100


def job(name: str, work: Path) -> dict[str, Any]:
    """Return the config of a model."""
    task = TASKS["movielens"](Path(), work)
    config = rankers.job(task, name, name, "past", 0, work)
    for history in config["data"]["schema"]["histories"].values():
        history["max_length"] = LAST
    config["data"]["folder"] += f"-{LAST}"
    return config


def train(settings: dict[str, Any], steps: int) -> dict[str, Any]:
    """Measure rows per CPU-second of the package's own loop."""
    timer = clock.StepClock(steps, kinds=("AdamW",))
    with tempfile.TemporaryDirectory() as runs:
        try:
            commands.train({**settings, "fit": {**settings["fit"], "runs": runs}}, quiet=True)
        except clock.StepLimitReached:
            return timer.result(BATCH)
    raise SystemExit("the log has fewer steps than requested")


def count_flops(model: Ranker, log: Log) -> float:
    """Return the floating point operations per row of the matrix products of a step."""
    batch = next(iter(build_loader(model, log, log.rows_of("train"), BATCH, seed=1).epoch(0)))
    counter = FlopCounterMode(display=False)
    with counter:
        model.train().loss(batch).backward()
    return counter.get_total_flops() / batch.size


def measure_flops() -> float:
    """Return the floating point operations per CPU-second of matrix products of usual shapes, forward and backward."""
    done = spent = 0.0
    for rows, inside, outside in [(BATCH * 60, 128, 80), (BATCH * 60, 80, 40), (BATCH, 256, 128), (BATCH, 128, 64)]:
        x, w, g = torch.randn(rows, inside), torch.randn(inside, outside), torch.randn(rows, outside)
        for number in range(12):
            began = time.process_time()
            _ = (x @ w, g @ w.T, x.T @ g)
            if number > 1:
                done, spent = done + 6 * rows * inside * outside, spent + time.process_time() - began
    return done / spent


def repeat_rows(batch: Batch) -> Batch:
    """Return the ragged batch with the content of a shared one."""
    return replace(batch, layout=Layout.grouped(1, np.zeros(batch.size, np.int64))).ungroup()


def median_ms(work: Any, least: float = 1.0) -> float:
    """Return the median CPU milliseconds of one call, over at least a second."""
    times: list[float] = []
    for _ in range(3):
        work()
    while sum(times) < least or len(times) < 10:
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return statistics.median(times) * 1_000


def measure_requests(model: Ranker, fields: Fields) -> dict[str, float]:
    """Measure the request in the program and in torch."""
    import onnxruntime

    inputs = list_inputs(fields, histories=model.reads_history)
    arrays = make_random_tensors(inputs, CANDIDATES, LAST, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        trace(model, inputs, path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    taken = {entry.name for entry in session.get_inputs()}
    feed = {name: array for name, array in arrays.items() if name in taken}
    batch = build_shared_batch(inputs, [torch.from_numpy(arrays[entry.name]) for entry in inputs])
    again = repeat_rows(batch)
    model.eval()
    with torch.no_grad():
        one, many = model(batch), model(again)
        assert torch.allclose(one, many, rtol=1e-3, atol=1e-3), (one - many).abs().max()
        scores = session.run(None, feed)[0]
        assert np.allclose(scores, torch.sigmoid(one).numpy(), atol=1e-3)
        return {
            "inference_ms_100": median_ms(lambda: session.run(None, feed)),
            "torch_shared_ms": median_ms(lambda: model(batch)),
            "torch_repeated_ms": median_ms(lambda: model(again)),
        }


def one(name: str, work: Path, steps: int) -> dict[str, Any]:
    """Measure all figures of a model in this process."""
    torch.set_num_threads(1)
    settings = job(name, work)
    log = Log.open(Path(commands.prepare(settings)["folder"]))
    fields = log.fitted.fields()
    trained = train(settings, steps)
    torch.manual_seed(0)
    model = build(settings["model"], fields)
    assert isinstance(model, Ranker)
    for module in model.modules():
        if isinstance(module, Model) and module.needs_training_window:
            module.fit_statistics(iterate_training_histories(log))
    flops, speed = count_flops(model, log), measure_flops()
    tables = {id(table) for table in model.embedding_parameters()}
    sizes = {True: 0, False: 0}
    for parameter in model.parameters():
        sizes[id(parameter) in tables] += parameter.numel()
    return {
        "train_rows_per_s": trained["rows_per_cpu_second"],
        "floor_rows_per_s": speed / flops if flops else None,
        "peak_mb": trained["peak_mb"],
        **measure_requests(model, fields),
        "parameters": sizes[False],
        "table_parameters": sizes[True],
    }


def main() -> None:
    """Measure, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=rankers.list_rankers())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--work", type=Path, default=machine.CACHE / "rankers_speed")
    parser.add_argument("--one", help="measure this model in this process and print its figures")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.one:
        print("RESULT " + json.dumps(one(args.one, args.work, args.steps)), flush=True)
        return
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in args.models}
    for number in range(args.rounds):
        for name in args.models:
            command = [sys.executable, str(Path(__file__).resolve()), "--one", name, "--steps", str(args.steps)]
            used = machine.measure([*command, "--work", str(args.work)], OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")
            line = next(text for text in used.output.splitlines() if text.startswith("RESULT "))
            runs[name].append(json.loads(line.removeprefix("RESULT ")))
            print(f"round {number + 1}, {name}: {line.removeprefix('RESULT ')}", flush=True)
    figures = {name: {key: _median_or_none([r[key] for r in own]) for key in own[0]} for name, own in runs.items()}
    (args.work / "speed.json").write_text(json.dumps(figures, indent=1))
    machine.write("rankers_speed", report(figures, args.rounds))


def _median_or_none(values: list[Any]) -> Any:
    return None if None in values else statistics.median(values)


def report(figures: dict[str, dict[str, float]], rounds: int) -> str:
    """Return the table, fastest first."""
    rows = []
    for name, own in sorted(figures.items(), key=lambda item: -item[1]["train_rows_per_s"]):
        gain, floor = own["torch_repeated_ms"] / own["torch_shared_ms"], own["floor_rows_per_s"]
        rows.append(
            [
                name,
                f"{own['train_rows_per_s']:,.0f}",
                f"{floor:,.0f}" if floor else "no products",
                f"{own['train_rows_per_s'] / floor:.2f}" if floor else "",
                f"{own['inference_ms_100']:.2f}",
                f"{own['torch_shared_ms']:.2f}",
                f"{own['torch_repeated_ms']:.2f}",
                f"{gain:.1f}",
                f"{own['parameters']:,.0f}",
                f"{own['table_parameters']:,.0f}",
            ]
        )
    head = ["model", "training, rows per CPU-second", "floor", "of the floor", "100 candidates, program, ms"]
    head += ["torch, shared, ms", "torch, repeated, ms", "gain of sharing", "parameters", "in tables"]
    about = (
        f"MovieLens-1M by rows, last {LAST} events, batch {BATCH:,}, one thread; CPU time, median of {rounds} rounds. "
        "The floor is the rate of the matrix products of a step alone. It means little for models without many. A "
        "request is 100 candidates with 100 events."
    )
    return f"# Speed of the ranking models\n\n{about}\n\n{machine.format_table(head, rows)}"


if __name__ == "__main__":
    main()

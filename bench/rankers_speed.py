"""Benchmark of training and inference of all ranking models, with the floor of a training step.

    python bench/rankers_speed.py [--models din bst] [--rounds 3]

MovieLens-1M by rows, histories of the last 100 events, settings as in ``quality/rankers.py``, one thread, each model
in a process of its own, all models in turns in every round. Reported per model:

- rows per CPU-second in training, from step 5, with LongRec's own loop and optimizers;
- its floor: rows per CPU-second if every operator of a step took the time of its products or of its memory traffic,
  whichever is longer, at this machine's rates (``floor.py`` has the rules); and the ratio to it. The share of the
  products in that time says which of both holds a model;
- the operators that take most of a step, by ``torch.profiler``, as shares of its time, beside their floor;
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
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import clock
import floor
import machine

sys.path.insert(1, str(Path(__file__).resolve().parent / "quality"))
import numpy as np
import rankers
import torch
from ranking_logs import TASKS

from longrec import commands
from longrec.data.log import Log
from longrec.data.training_histories import iterate_training_histories
from longrec.exporting.inputs import list_inputs, make_random_tensors
from longrec.exporting.program import build_shared_batch, trace
from longrec.features.batch import Batch, Jagged, Layout
from longrec.features.fields import Fields
from longrec.models.core.base import Model
from longrec.models.core.kinds import Ranker
from longrec.models.core.registry import build
from longrec.training.hooks import Hooks
from longrec.training.loaders import build_loader
from longrec.training.optimizers import build_optimizers
from longrec.training.settings import FitConfig

LAST, BATCH, CANDIDATES = 100, 1024, 100
PROFILED, HOLDING = 3, 6
"""Steps under the profiler, and operators to report."""


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


def measure_floor(model: Ranker, log: Log, settings: dict[str, Any]) -> dict[str, Any]:
    """Count what the operators of a step must compute and move, and return the floor of its time."""
    rates = floor.measure_rates()
    batch = next(iter(build_loader(model, log, log.rows_of("train"), BATCH, seed=1).epoch(0)))
    own = {key: value for key, value in settings["fit"].items() if key in FitConfig.model_fields}
    optimizers = build_optimizers(model.train(), FitConfig(**own), Hooks())

    def step() -> None:
        model.loss(batch).backward()
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    step()  # states of the optimizers are made, and plans of the batch
    counter = floor.FloorCounter(rates)
    counter.add_batch(list_tensors(batch))
    with counter:
        step()
    seconds, flops = sum(counter.seconds.values()), sum(counter.flops.values())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(PROFILED):
            step()
    taken = Counter[str]()
    for event in profile.key_averages():
        taken[event.key.partition("::")[2] or "Python, autograd and allocation"] += event.self_cpu_time_total
    return {
        "floor_rows_per_s": BATCH / seconds,
        "products_share": flops / rates.flops / seconds,
        "gflop": flops / 1e9,
        "megabytes": sum(counter.moved.values()) / 1e6,
        "gflop_per_s": rates.flops / 1e9,
        "bandwidth": {f"{size >> 20} MB": rate / 1e9 for size, rate in rates.bandwidth.items()},
        "operators": {
            name: [value / sum(taken.values()), 1e-3 * value / PROFILED, 1e3 * counter.seconds[name]]
            for name, value in taken.most_common(HOLDING)
        },
    }


def list_tensors(batch: Batch) -> list[torch.Tensor]:
    """Return all tensors of the features and histories of a batch."""
    columns = [*batch.requests.values(), *batch.candidates.values()]
    columns += [column for history in batch.histories.values() for column in history.columns.values()]
    return [x for one in columns for x in ([one.values, one.offsets] if isinstance(one, Jagged) else [one])]


def repeat_rows(batch: Batch) -> Batch:
    """Return the ragged batch with the content of a shared one."""
    return replace(batch, layout=Layout.grouped(1, np.zeros(batch.size, np.int64))).ungroup()


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
            "inference_ms_100": clock.median_ms(lambda: session.run(None, feed)),
            "torch_shared_ms": clock.median_ms(lambda: model(batch)),
            "torch_repeated_ms": clock.median_ms(lambda: model(again)),
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
    bound = measure_floor(model, log, settings)
    tables = {id(table) for table in model.embedding_parameters()}
    sizes = {True: 0, False: 0}
    for parameter in model.parameters():
        sizes[id(parameter) in tables] += parameter.numel()
    return {
        "train_rows_per_s": trained["rows_per_cpu_second"],
        **bound,
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
    figures = {name: merge(own) for name, own in runs.items()}
    (args.work / "speed.json").write_text(json.dumps(figures, indent=1))
    machine.write("rankers_speed", report(figures, args.rounds))


def merge(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the median of every number over the rounds, and what is no number of the last round."""
    last = runs[-1]
    return {
        key: value if isinstance(value, dict) else statistics.median([run[key] for run in runs])
        for key, value in last.items()
    }


def report(figures: dict[str, dict[str, Any]], rounds: int) -> str:
    """Return the tables, fastest first."""
    rows, operators = [], []
    for name, own in sorted(figures.items(), key=lambda item: -item[1]["train_rows_per_s"]):
        gain, bound = own["torch_repeated_ms"] / own["torch_shared_ms"], own["floor_rows_per_s"]
        rows.append(
            [
                name,
                f"{own['train_rows_per_s']:,.0f}",
                f"{bound:,.0f}",
                f"{own['train_rows_per_s'] / bound:.2f}",
                f"{own['products_share']:.2f}",
                f"{own['gflop']:.2f}",
                f"{own['megabytes']:,.0f}",
                f"{own['peak_mb']:,.0f}",
                f"{own['inference_ms_100']:.2f}",
                f"{own['torch_shared_ms']:.2f}",
                f"{own['torch_repeated_ms']:.2f}",
                f"{gain:.1f}",
                f"{own['parameters']:,.0f}",
                f"{own['table_parameters']:,.0f}",
            ]
        )
        shares = [
            f"{key} {share:.2f} ({took:.0f}, {least:.0f})" for key, (share, took, least) in own["operators"].items()
        ]
        operators.append([name, "; ".join(shares)])
    head = ["model", "training, rows per CPU-second", "floor", "of the floor", "products in the floor", "GFLOP", "MB"]
    head += ["peak MB", "100 candidates, program, ms", "torch, shared, ms", "torch, repeated, ms", "gain of sharing"]
    head += ["parameters", "in tables"]
    rates = next(iter(figures.values()))
    about = (
        f"MovieLens-1M by rows, last {LAST} events, batch {BATCH:,}, one thread; CPU time, rounds: {rounds}, medians. "
        "The floor is the sum over all operators of a step of the longer of their products and their memory traffic "
        f"(`floor.py`), here at {rates['gflop_per_s']:.0f} GFLOP/s and at "
        + ", ".join(f"{rate:.0f} GB/s for {size}" for size, rate in rates["bandwidth"].items())
        + ". GFLOP and MB are those of a step. A request is 100 candidates with 100 events."
    )
    holds = (
        f"The {HOLDING} operators with the most time of a step of one batch: share of the step (ms, ms of its floor). "
        "What has no floor is a copy, an allocation or the interpreter. The profiler reads the wall clock: other work "
        "on the machine lengthens its times more than it changes their shares."
    )
    tables = machine.format_table(head, rows), machine.format_table(["model", "operators"], operators)
    return f"# Speed of the ranking models\n\n{about}\n\n{tables[0]}\n\n## What holds a step\n\n{holds}\n\n{tables[1]}"


if __name__ == "__main__":
    main()

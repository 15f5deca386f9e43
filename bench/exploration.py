"""Benchmark of the programs of explorers, for every ranking model.

    python bench/exploration.py [--models din bst] [--direction pgd] [--steps 5] [--uncertainty ucb] [--draws 20]

Each model has its default settings, random weights and the few fields of the conformance suite. Its final layer is
scaled where probabilities would be rounded to 0 or 1, which nothing moves. Reported per model:

- parity: the largest difference between torch and onnxruntime over six shapes, of the probability and of the
  exploration score of AGE, with a gate and strong perturbations (strength 0.3, masks of rate 0.1);
- CPU milliseconds of one request of 100 candidates with 100 events (onnxruntime, one thread, median) in the plain
  program, and in the program with exploration, which returns the plain probability too, and how far AGE moves a score;
- CPU seconds of the export of both programs.

A model that AGE refuses is listed with the reason.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import torch

from longrec.errors import BundleError, ConfigError
from longrec.exploration.age import Age
from longrec.exploration.baselines import find_last_layer
from longrec.exploration.gate import Gate
from longrec.exploration.settings import AgeSettings
from longrec.exporting import parity
from longrec.exporting.exploration_program import ExplorerProgram
from longrec.exporting.inputs import list_inputs
from longrec.exporting.program import ProgramModule, SharedModel, trace_module
from longrec.exporting.runtime import Program
from longrec.exporting.weights import write_program
from longrec.models.core.catalog import names
from longrec.models.core.kinds import Ranker
from longrec.models.core.registry import find
from longrec.testing.batches import shared
from longrec.testing.case import Case

CANDIDATES, EVENTS, STRENGTH, RATE, LARGEST_LOGIT = 100, 100, 0.3, 0.1, 3.0
BLOCK = 0.04
"""CPU seconds of a block of calls, at least."""


def list_rankers() -> list[str]:
    """Return the names of all ranking models."""
    return [name for name in names() if issubclass(find(name), Ranker)]


def build_age(model: Ranker, args: argparse.Namespace) -> Age:
    """Return AGE with a gate of random weights that is open for almost all candidates."""
    width = sum(x.shape[1] for x in model.embed(shared(3, 3, fields=model.fields)).candidate.values())
    gate = Gate(width)
    with torch.no_grad():
        gate.network.output_bias.fill_(-20.0)
    settings = AgeSettings(
        uncertainty=args.uncertainty,
        direction=args.direction,
        steps=args.steps,
        draws=args.draws,
        dropout=RATE,
        strength=STRENGTH,
    )
    return Age(model, settings, gate)


def limit_logits(model: Ranker) -> None:
    """Scale the final layer so that no logit of the measured request is beyond the largest one."""
    with torch.no_grad():
        largest = float(model.logits(shared(CANDIDATES, EVENTS, fields=model.fields)).abs().max())
        if largest > LARGEST_LOGIT:
            with contextlib.suppress(ConfigError):
                for parameter in find_last_layer(model).parameters():
                    parameter.mul_(LARGEST_LOGIT / largest)


def export(module: ProgramModule, folder: Path) -> tuple[Program, float]:
    """Export a program, and return it with the CPU seconds."""
    began = time.process_time()
    path = folder / f"{type(module).__name__}.onnx"
    write_program(trace_module(module.eval()), path)
    return Program(path), time.process_time() - began


def measure_ms(work: Callable[[], Any], seconds: float) -> float:
    """Return the CPU milliseconds of one call, a median over blocks of calls.

    A single call may be shorter than the tick by which a kernel accounts the time of other threads.
    """
    work()
    began = time.process_time()
    calls = 0
    while time.process_time() - began < BLOCK:
        work()
        calls += 1
    blocks = []
    while sum(blocks) * calls < seconds or len(blocks) < 5:
        began = time.process_time()
        for _ in range(calls):
            work()
        blocks.append((time.process_time() - began) / calls)
    return statistics.median(blocks) * 1_000


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of one model."""
    case = Case(name)
    model = case.lively(case.few).served().eval()
    assert isinstance(model, Ranker)
    limit_logits(model)
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        inputs = list_inputs(model.fields, histories=model.reads_history)
        plain, plain_s = export(SharedModel(model, inputs), folder)
        module = ExplorerProgram(build_age(model, args))
        try:
            program, export_s = export(module, folder)
        except BundleError as error:
            return {"model": name, "refused": error.found}
        worst = max(parity.check_shapes(module, program).values())
        tensors = module.make_random_tensors(CANDIDATES, EVENTS, 0)
        probability, score = program.run_outputs(tensors, module.outputs)
        return {
            "model": name,
            "parity": worst,
            "moved": float(abs(score - probability).max()),
            "plain_ms": measure_ms(lambda: plain.run(tensors), args.seconds),
            "explore_ms": measure_ms(lambda: program.run_outputs(tensors, module.outputs), args.seconds),
            "plain_export_s": plain_s,
            "explore_export_s": export_s,
        }


def main() -> None:
    """Measure, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list_rankers())
    parser.add_argument("--uncertainty", default="ucb", choices=["ucb", "thompson"])
    parser.add_argument("--direction", default="pgd", choices=["pgd", "fgm"])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=1.0, help="CPU seconds of each measurement, at least")
    parser.add_argument("--lines", action="store_true", help="only print one line of JSON per model")
    args = parser.parse_args()
    torch.set_num_threads(1)
    parity.TOLERANCE = 1.0  # the difference is reported, whatever it is
    figures = []
    for name in args.models:
        figures.append(measure(name, args))
        print(json.dumps(figures[-1]), flush=True)
    if not args.lines:
        machine.write("exploration", report(figures, args))


def report(figures: list[dict[str, Any]], args: argparse.Namespace) -> str:
    """Return the table, by model."""
    rows = []
    for own in figures:
        if "parity" not in own:
            rows.append([own["model"], f"refused: {own['refused']}", "", "", "", "", ""])
            continue
        rows.append(
            [
                own["model"],
                f"{own['parity']:.0e}",
                f"{own['moved']:.0e}",
                f"{own['plain_ms']:.2f}",
                f"{own['explore_ms']:.2f}",
                f"{own['explore_ms'] / own['plain_ms']:.1f}",
                f"{own['plain_export_s']:.1f}, {own['explore_export_s']:.1f}",
            ]
        )
    head = ["model", "parity", "moved", "plain, ms", "with AGE, ms", "ratio", "export, CPU s"]
    about = (
        f"Programs of AGE ({args.uncertainty}, {args.draws} draws, {args.direction}"
        + (f" of {args.steps} steps" if args.direction == "pgd" else "")
        + f"), CPU time of a request of {CANDIDATES} candidates with {EVENTS} events, one thread. `parity`: "
        "largest difference from torch, of the probability and of the score. `moved`: largest difference between both."
    )
    return f"# Exploration\n\n{about}\n\n{machine.format_table(head, rows)}"


if __name__ == "__main__":
    main()

"""Memory and size of two programs over one table, with one file of weights and with weights of their own.

    python bench/shared_weights.py [--items 1000000] [--width 64]

Exports the two towers of a retriever over a table of items (256 MB by default), opens them in a process of its own with
the runtime of the server, and runs both over all rows of the table. Memory is the proportional set size of the process:
a page that two mappings of one file share counts once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import machine
import numpy as np
import torch
from torch import Tensor

from longrec.config import Strict
from longrec.exporting.inputs import list_inputs
from longrec.exporting.program import trace_module
from longrec.exporting.programs import build_programs
from longrec.exporting.runtime import Program
from longrec.exporting.weights import WEIGHTS, write_program, write_programs
from longrec.features.batch import Batch, Column
from longrec.features.fields import Field, Fields
from longrec.models.core.kinds import VectorRetriever
from longrec.nn.segments import Segments

MB = 1_000_000


class MeanRetriever(VectorRetriever):
    """The mean of the vectors of a history against the vectors of items."""

    reads_history = True

    def __init__(self, fields: Fields, items: int, width: int) -> None:
        super().__init__(Strict(), fields)
        self.width, self.table = width, torch.nn.Embedding(items, width)

    def users(self, batch: Batch) -> Tensor:
        """Return the mean of the history."""
        vectors = self.table(batch.histories["past"].columns["item"])
        return Segments.of(batch, "past").pool(vectors, "mean").unsqueeze(1)

    def items(self, columns: Mapping[str, Column]) -> Tensor:
        """Return rows of the table."""
        vectors: Tensor = self.table(columns["item"])
        return vectors

    def loss(self, batch: Batch) -> Tensor:
        """Return no useful loss."""
        return self.users(batch).sum()


def export_both(folder: Path, items: int, width: int) -> None:
    """Write the two programs with one file of weights (``shared``), and with weights of their own (``separate``)."""
    fields = Fields((Field("item", "id", items, side="item"),), {"past": (Field("item", "id", items),)})
    model = MeanRetriever(fields, items, width).eval()
    modules = build_programs(model, list_inputs(fields, histories=True))
    traced = {name: trace_module(module) for name, module in modules.items()}
    for name in ("separate", "shared"):
        (folder / name).mkdir()
    for name, program in traced.items():
        write_program(program, folder / "separate" / f"{name}.onnx")
    write_programs(traced, folder / "shared")


def measure_memory() -> dict[str, float]:
    """Return the resident memory of this process in MB: proportional, and with every mapping counted in full."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 / MB for line in lines}
    return {"pss": sizes["Pss"], "rss": sizes["Rss"]}


def open_and_run(folder: Path, items: int) -> None:
    """Open one program after the other, run each over all rows, and print the memory after each as JSON."""
    inputs = {"users": "h.past.item", "items": "f.item"}
    steps, opened = [measure_memory()], []
    for name, entry in inputs.items():
        program = Program(folder / f"{name}.onnx")
        for first in range(0, items, 10_000):
            program.run({entry: np.arange(first, min(first + 10_000, items), dtype=np.int32)})
        opened.append(program)
        steps.append(measure_memory())
    print(json.dumps(steps))


def main() -> None:
    """Print a table, and write it to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.open is not None:
        open_and_run(arguments.open, arguments.items)
        return
    machine.CACHE.mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory(dir=machine.CACHE) as scratch:
        folder = Path(scratch)
        export_both(folder, arguments.items, arguments.width)
        for name in ("separate", "shared"):
            command = [sys.executable, __file__, "--items", str(arguments.items), "--open", str(folder / name)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            start, first, both = json.loads(done.stdout)
            size = sum(path.stat().st_size for path in (folder / name).iterdir()) / MB
            grown = [first["pss"] - start["pss"], both["pss"] - first["pss"], both["pss"] - start["pss"]]
            rows.append([name, *(f"{value:,.0f}" for value in (size, *grown, both["rss"] - start["rss"]))])
    table = arguments.items * arguments.width * 4 / MB
    machine.write(
        "shared_weights",
        f"# Two programs over one table\n\nTwo towers of a retriever over {arguments.items:,} items of width "
        f"{arguments.width}: {table:,.0f} MB of weights, all rows read by both. MB; memory without that of the empty "
        f"process, proportional (a page that two mappings share counts once). `shared` reads `{WEIGHTS}`.\n\n"
        + machine.format_table(
            ["weights", "bundle", "first program", "second program", "both", "both, every mapping in full"], rows
        ),
    )


if __name__ == "__main__":
    main()

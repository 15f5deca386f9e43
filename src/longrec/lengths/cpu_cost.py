"""CPU time and memory of a training step and of a request, whose histories all have the same number of events.

Rows are random (``testing/batches.py``), so that any length can be timed, also one that no user of the log has.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from longrec.errors import BundleError
from longrec.exporting.inputs import Input, list_inputs, make_random_tensors
from longrec.exporting.program import SharedModel, run_torch, trace
from longrec.exporting.runtime import Program
from longrec.models.core.kinds import Ranker
from longrec.resources import return_memory
from longrec.testing.batches import ragged
from longrec.training.optimizers import build_optimizers
from longrec.training.settings import FitConfig

CANDIDATES = 100
"""Candidates of a request that is timed."""
EVENTS = 65_536
"""Events in all histories of a training step together, at most. A step has at least ``_ROWS`` rows nevertheless."""
_ROWS = 8
_SECONDS, _REPEATS = 0.5, 20
"""CPU seconds that are timed at least, and repetitions that are timed at most."""


@dataclass(frozen=True)
class StepCost:
    """Cost of a training step: forward, backward and update.

    Attributes:
        rows: rows of the step.
        seconds: CPU seconds of the step.
        megabytes: growth of resident memory during a step, in MB (10^6 bytes). None where the system does not tell.
    """

    rows: int
    seconds: float
    megabytes: float | None

    @property
    def rows_per_second(self) -> float:
        """Rows per CPU-second."""
        return self.rows / self.seconds


def measure_step(model: Ranker, fit: FitConfig, events: int) -> StepCost:
    """Measure training steps of a model whose rows have histories of ``events`` events. Its weights change.

    The step has ``fit.batch_size`` rows, or fewer if their histories have more than ``EVENTS`` events together.
    """
    rows = min(fit.batch_size, max(_ROWS, EVENTS // events))
    batch = ragged(rows, lengths=[events] * rows, fields=model.fields)
    assert batch.label is not None
    batch = replace(batch, task_labels={name: batch.label for name in model.targets})
    model.train()
    optimizers = build_optimizers(model, fit)

    def step() -> None:
        model.loss(batch).backward()  # type: ignore[no-untyped-call]
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    before = _reset_peak_memory()
    first = _time(step)
    peak = _read_memory("VmHWM")
    megabytes = None if before is None or peak is None else max(0, peak - before) / 1e6
    return StepCost(rows, _time_repeatedly(step, first), megabytes)


class RequestTimer:
    """CPU time of requests of ``CANDIDATES`` candidates, in the exported program of a model.

    A model that cannot be exported runs in torch.

    Attributes:
        is_exported: True for the exported program.
    """

    def __init__(self, model: Ranker) -> None:
        self._inputs: Sequence[Input] = list_inputs(model.fields, histories=True)
        self._module = SharedModel(model.eval(), self._inputs).eval()
        self._folder = tempfile.TemporaryDirectory(prefix="longrec-lengths-")
        self._program: Program | None = None
        path = Path(self._folder.name) / "score.onnx"
        try:
            trace(model, self._inputs, path)
            self._program = Program(path)
        except BundleError as error:
            print(f"warning: requests are timed in torch: {error.found}", file=sys.stderr)
        self.is_exported = self._program is not None

    def measure(self, events: int) -> float:
        """Return the CPU seconds of a request whose histories have ``events`` events."""
        tensors = make_random_tensors(self._inputs, CANDIDATES, events, seed=0)
        program, module = self._program, self._module

        def rank() -> None:
            if program is None:
                run_torch(module, tensors)
            else:
                program.run(tensors)

        return _time_repeatedly(rank, _time(rank))

    def close(self) -> None:
        """Remove the exported program."""
        self._program = None
        self._folder.cleanup()


def _time(run: Callable[[], None]) -> float:
    """Return the CPU seconds of one call."""
    began = time.process_time()
    run()
    return time.process_time() - began


def _time_repeatedly(run: Callable[[], None], first: float) -> float:
    """Return the median CPU seconds of calls after the first one.

    Args:
        first: CPU seconds of the first call, which also allocates memory. A long one is not repeated.
    """
    if first > 4 * _SECONDS:
        return first
    times: list[float] = []
    while not times or (sum(times) < _SECONDS and len(times) < _REPEATS):
        times.append(_time(run))
    return median(times)


def _reset_peak_memory() -> int | None:
    """Return freed memory to the system, restart its peak, and return the resident bytes. None without Linux."""
    path = Path("/proc/self/clear_refs")
    if not path.exists():
        return None
    return_memory()  # else a step reuses what an earlier one freed
    path.write_text("5")
    return _read_memory("VmRSS")


def _read_memory(key: str) -> int | None:
    """Return an entry of the process's memory, in bytes: ``VmRSS``, or the peak ``VmHWM``. None without Linux."""
    path = Path("/proc/self/status")
    if not path.exists():
        return None
    line = next(line for line in path.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024

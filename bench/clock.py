"""Clock of all runners: rows per CPU-second between optimizer steps, and peak memory of training.

A hook on torch's optimizers records each step, so every framework trains with its own unchanged loop. CPU time of the
process (one thread) is steady on a shared machine, unlike wall time. Helper processes (FuxiCTR loads DIN's rows through
ray) count with ``children`` alone, so without it frameworks that use them are favored.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WARM = 5
"""Steps before the rate is measured: first allocations, growing caches."""


class StepLimitReached(Exception):
    """The requested number of steps is done."""


def parse_arguments() -> argparse.Namespace:
    """Parse the arguments of every runner."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True, help="folder written by gen_log.py")
    parser.add_argument("--work", type=Path, required=True, help="scratch folder; prepared data stays there")
    parser.add_argument(
        "--steps", type=int, default=0, help="stop after so many steps; 0 is one epoch and the test AUC"
    )
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--loss", default="", help="loss, of runners with a choice")
    parser.add_argument("--negatives", type=int, default=1, help="negatives per target, of losses that draw them")
    parser.add_argument("--model", default="", help="model, of runners with a choice")
    parser.add_argument("--zoo", type=Path, help="checkout of FuxiCTR, for models that its wheel lacks")
    parser.add_argument("--workers", type=int, default=0, help="loading processes, of runners with a choice")
    parser.add_argument("--prepare", action="store_true", help="only prepare the data (a process of its own)")
    args = parser.parse_args()
    args.meta = json.loads((args.data / "meta.json").read_text())
    args.work.mkdir(parents=True, exist_ok=True)
    return args


class StepClock:
    """Recorder of the time of every optimizer step. It raises ``StepLimitReached`` after ``limit`` of them.

    Args:
        kinds: class names of the optimizers whose steps count (a trainer may step two in a row). None counts all.
        children: add CPU time and memory of child processes, such as loaders (Linux).
    """

    def __init__(
        self, limit: int = 0, threads: int = 1, kinds: tuple[str, ...] | None = None, children: bool = False
    ) -> None:
        import torch
        from torch.optim.optimizer import register_optimizer_step_post_hook

        torch.set_num_threads(threads)
        self.limit, self.kinds, self.children = limit, kinds, children
        self.peak = 0
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self._hook = register_optimizer_step_post_hook(self._stamp)

    def _stamp(self, optimizer: Any, *_: Any) -> None:
        if self.kinds is not None and type(optimizer).__name__ not in self.kinds:
            return
        if not self.wall:
            forget_peak()
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time() + (sum_children()[0] if self.children else 0.0))
        if self.limit and len(self.wall) >= self.limit:
            self.peak = peak_mb() + (sum_children()[1] if self.children else 0)
            raise StepLimitReached

    def result(self, batch: int, **more: Any) -> dict[str, Any]:
        """Return rows per CPU-second and per second from step ``WARM``, without the last, shorter batch of an epoch.

        No later step is recorded.
        """
        self._hook.remove()
        last = len(self.wall) - (1 if self.limit else 2)
        first = min(WARM, max(last - 1, 0))
        rows = (last - first) * batch
        return {
            "rows_per_cpu_second": round(rows / (self.cpu[last] - self.cpu[first])),
            "rows_per_second": round(rows / (self.wall[last] - self.wall[first])),
            "steps": len(self.wall),
            "peak_mb": self.peak or peak_mb(),
            **more,
        }


def forget_peak() -> None:
    """Reset the peak of resident memory, where the system supports it (Linux)."""
    if os.path.exists("/proc/self/clear_refs"):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mb() -> int:
    """Return the peak resident memory of this process since ``forget_peak`` (elsewhere: since its start), MB."""
    if os.path.exists("/proc/self/status"):
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) // 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def sum_children() -> tuple[float, int]:
    """Return CPU-seconds of all child processes, and the memory that the running ones share with none, MB (Linux)."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds, kilobytes = ended.ru_utime + ended.ru_stime, 0
    for children in Path("/proc/self/task").glob("*/children"):
        for child in children.read_text().split():
            ticks = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[11:15]
            seconds += sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
            memory = Path(f"/proc/{child}/smaps_rollup").read_text()
            kilobytes += sum(int(line.split()[1]) for line in memory.splitlines() if line.startswith("Private_"))
    return seconds, kilobytes // 1024


def auc(label: Any, score: Any) -> float:
    """Return the area under the ROC curve. Ties count half."""
    import numpy as np

    label, score = np.asarray(label).ravel(), np.asarray(score).ravel()
    _, index, count = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[index]
    positive = label.sum()
    return float((rank[label > 0].sum() - positive * (positive + 1) / 2) / (positive * (len(label) - positive)))


def emit(result: dict[str, Any]) -> None:
    """Print the line that the caller reads."""
    print("RESULT " + json.dumps(result), flush=True)


def median_ms(work: Callable[[], Any], least: float = 1.0) -> float:
    """Return the median CPU milliseconds of one call, over at least ``least`` seconds and 10 calls."""
    times: list[float] = []
    for _ in range(3):
        work()
    while sum(times) < least or len(times) < 10:
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return statistics.median(times) * 1_000

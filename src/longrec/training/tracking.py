"""Metric outputs of a run in training: ``metrics.jsonl``, and TensorBoard and MLflow if they are installed."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from longrec.errors import RunError
from longrec.training.settings import FitConfig


class MetricsFile:
    """``metrics.jsonl``: one JSON object per line, ``{"step", "epoch", "split", "seconds", measures...}``.

    All fields except ``seconds`` are the same in every run of the same job, resumed or not.
    """

    def __init__(self, path: Path, keep: int = 0) -> None:
        """Open the file after its first ``keep`` bytes. Later lines are dropped, because their steps are repeated."""
        size = path.stat().st_size if path.exists() else 0
        if size < keep:
            raise RunError(
                str(path), f"{size} bytes", f"the {keep} bytes of the checkpoint", "the file was cut; start a new run"
            )
        self._file = path.open("r+b" if path.exists() else "w+b")
        self._file.truncate(keep)
        self._file.seek(keep)

    def write(self, split: str, step: int, epoch: float, seconds: float, measures: Mapping[str, float]) -> None:
        """Append one line."""
        line = {"step": step, "epoch": round(epoch, 6), "split": split, **measures, "seconds": round(seconds, 3)}
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()

    def settle(self) -> int:
        """Sync the file to the disk and return its length, which a checkpoint stores."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Tracker(Protocol):
    """Interface of an external tracker of metrics."""

    def train(self, step: int, loss: float) -> None:
        """Log the mean training loss since the last call."""

    def valid(self, step: int, measures: Mapping[str, float]) -> None:
        """Log the metrics of one validation."""

    def close(self, *, finished: bool) -> None:
        """Close the tracker after the run has ended or was stopped."""


@contextmanager
def trackers(config: FitConfig, folder: Path, step: int, settings: Mapping[str, Any]) -> Iterator[list[Tracker]]:
    """Open the trackers that are installed and enabled, and close them at the end.

    Args:
        step: number of steps completed before this process started, more than 0 if the run is resumed.
        settings: settings that a tracker logs, as dotted keys.
    """
    active: list[Tracker] = []
    if config.tensorboard == "auto" and importlib.util.find_spec("tensorboard"):
        active.append(_TensorBoard(folder, step))
    if config.mlflow == "auto" and importlib.util.find_spec("mlflow"):
        active.append(_MLflow(folder, settings))
    finished = False
    try:
        yield active
        finished = True
    finally:
        for tracker in active:
            tracker.close(finished=finished)


class _TensorBoard:
    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        # Steps after the checkpoint are repeated, so TensorBoard purges them.
        self.writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def train(self, step: int, loss: float) -> None:
        self.writer.add_scalar("train/loss", loss, step)

    def valid(self, step: int, measures: Mapping[str, float]) -> None:
        for name, value in measures.items():
            self.writer.add_scalar(f"valid/{name}", value, step)

    def close(self, *, finished: bool) -> None:
        self.writer.close()


class _MLflow:
    """Tracker of validations only, because a call per step would cost more than the step."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        import mlflow

        self.mlflow, self.measures = mlflow, dict[str, float]()
        note = folder / "mlflow.json"
        if note.exists():
            mlflow.start_run(run_id=json.loads(note.read_text())["run_id"])
        else:
            run = mlflow.start_run(run_name=folder.absolute().name)
            note.write_text(json.dumps({"run_id": run.info.run_id}))
            mlflow.log_params(dict(settings))

    def train(self, step: int, loss: float) -> None:
        self.measures["train_loss"] = loss

    def valid(self, step: int, measures: Mapping[str, float]) -> None:
        # MLflow refuses the sign in names such as ndcg@10.
        named = {f"valid_{key.replace('@', '_at_')}": one for key, one in measures.items()}
        self.mlflow.log_metrics({**self.measures, **named}, step=step)

    def close(self, *, finished: bool) -> None:
        self.mlflow.end_run("FINISHED" if finished else "KILLED")

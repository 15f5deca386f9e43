"""Training loop of all models, which depends only on the loss of a model and on its batches."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer

from longrec.errors import StoppedRun
from longrec.features.batch import Batch
from longrec.features.transfer import transfer
from longrec.models.core.base import Model
from longrec.progress import Progress
from longrec.resources import return_memory
from longrec.training import checkpoint
from longrec.training.device import CPU, find_device, precision
from longrec.training.hooks import Hooks
from longrec.training.objectives.objective import Loader
from longrec.training.optimizers import build_optimizers, clip, set_learning_rates
from longrec.training.running_loss import RunningLoss
from longrec.training.settings import FitConfig
from longrec.training.tracking import MetricsFile, Tracker

_CONTINUE = "continue it with --resume, or in Python with the same call of longrec.fit and resume=folder"
_SHARE = 20  # checkpoints by the clock may take at most 1 / _SHARE of the time


class Loop:
    """Training of one model inside a run folder, from its last checkpoint if there is one.

    After ``run`` the folder holds ``metrics.jsonl``, ``checkpoints/last`` and ``checkpoints/best``.

    Args:
        model: built right after ``torch.manual_seed(config.seed)``.
        loader: batches of the training rows.
        save_best: function that writes the current model into a folder.
        validate: function that returns the metrics of a validation. None without rows to validate on.
        lower_is_better: direction of the metric ``config.monitor``.
        device: device to train on. The model is moved there.
        hooks: optimizers of one's own.
        stop: function called after every step. If it returns the number of a signal, the loop writes a checkpoint and
            raises StoppedRun.
    """

    def __init__(
        self,
        model: Model,
        loader: Loader,
        config: FitConfig,
        folder: Path,
        save_best: Callable[[Path], None],
        *,
        validate: Callable[[], dict[str, float]] | None = None,
        lower_is_better: bool = False,
        device: torch.device = CPU,
        stop: Callable[[], int | None] = lambda: None,
        label: str = "train",
        quiet: bool = False,
        hooks: Hooks | None = None,
    ) -> None:
        self.model, self.loader, self.config, self.folder = model, loader, config, folder
        self.save_best, self.validate, self.lower_is_better = save_best, validate, lower_is_better
        self.stop, self.label, self.quiet = stop, label, quiet
        self.optimizers = build_optimizers(model.to(device), config, hooks or Hooks())
        self.checkpoints = folder / "checkpoints"
        checkpoint.recover_folder(self.checkpoints / "best")
        self.state = checkpoint.load(self.checkpoints / "last", model, self.optimizers) or checkpoint.State()
        self.losses = RunningLoss(str(folder), config.bf16, self.state.loss_sum, self.state.loss_rows)

    @property
    def steps(self) -> int:
        """Number of batches of the whole run."""
        return min(self.config.epochs * len(self.loader), self.config.max_steps or 2**63)

    def run(self, trackers: Sequence[Tracker] = ()) -> checkpoint.State:
        """Train to the end.

        Raises:
            RunError: a loss or a score that is not finite, or a stop.
        """
        state = self.state
        self.trackers = trackers
        self.metrics = MetricsFile(self.folder / "metrics.jsonl", state.metrics_bytes)
        self.began = time.perf_counter() - state.seconds
        self.saved, self.save_cost = time.perf_counter(), 0.0
        label = self.label if not state.step else f"{self.label} from step {state.step:,}"
        return_memory()  # of preparing and loading the log
        try:
            with Progress(
                self.steps - state.step, label, "steps", stream=io.StringIO() if self.quiet else None
            ) as progress:
                while state.stopped is None:
                    self._epoch(progress)
        finally:
            self.metrics.close()
        return state

    def _epoch(self, progress: Progress) -> None:
        state, config, batches = self.state, self.config, len(self.loader)
        checks = config.val_checks_per_epoch
        check_positions = {max(round(batches * number / checks), 1) for number in range(1, checks + 1)}
        if (state.epoch + 1) % config.check_val_every_n_epoch:
            check_positions = set()
        self.model.train()
        for batch in self.loader.epoch(state.epoch, state.position):
            # Batch statistics need two rows, so a last batch of one row is skipped for all models.
            if batch.size > 1 or config.batch_size == 1:
                update(self.model, self.optimizers, config, state.step, batch, self.losses)
            del batch  # before the next one is gathered
            state.step += 1
            state.position += 1
            checking = state.position in check_positions or state.step == self.steps
            if checking or state.step % config.log_steps == 0:
                self._write_train_line()
            note = self._validate() if checking else ""
            if state.position == batches:
                state.epoch, state.position = state.epoch + 1, 0
            if state.step == self.steps and state.stopped is None:
                state.stopped = "max_steps" if state.step == config.max_steps else "epochs"
            stopping = self.stop()
            if checking or stopping is not None or self._checkpoint_due():
                self._checkpoint()
            progress.advance(note=note)
            if state.stopped is not None:
                return
            if stopping is not None:
                raise StoppedRun(str(self.folder), state.step, stopping)

    def _write_train_line(self) -> None:
        state = self.state
        if self.losses.rows:
            loss = self.losses.read() / self.losses.rows
            self.metrics.write("train", state.step, self._epochs_done(), self._seconds(), {"loss": loss})
            for tracker in self.trackers:
                tracker.train(state.step, loss)
        self.losses.reset()

    def _validate(self) -> str:
        """Validate, and save the model if it is the best. Without validations the last model is the best."""
        state, config = self.state, self.config
        if self.validate is None:
            if state.step == self.steps:
                state.best_step = state.step
                checkpoint.replace_folder(self.checkpoints / "best", self.save_best)
            return ""
        measures = self.validate()
        self.metrics.write("valid", state.step, self._epochs_done(), self._seconds(), measures)
        for tracker in self.trackers:
            tracker.valid(state.step, measures)
        assert config.monitor is not None
        value = measures[config.monitor]
        if state.best is None or (value < state.best if self.lower_is_better else value > state.best):
            state.best, state.best_step, state.stale = value, state.step, 0
            checkpoint.replace_folder(self.checkpoints / "best", self.save_best)
        else:
            state.stale += 1
            if config.patience and state.stale >= config.patience:
                state.stopped = "patience"
        return f"valid {config.monitor} {value:.4f}"

    def _epochs_done(self) -> float:
        return self.state.epoch + self.state.position / len(self.loader)

    def _seconds(self) -> float:
        return time.perf_counter() - self.began

    def _checkpoint_due(self) -> bool:
        config = self.config
        if config.checkpoint_steps is not None and self.state.step % config.checkpoint_steps == 0:
            return True
        if config.checkpoint_seconds is None:
            return False
        return time.perf_counter() - self.saved >= max(config.checkpoint_seconds, _SHARE * self.save_cost)

    def _checkpoint(self) -> None:
        began, state = time.perf_counter(), self.state
        # Read first: a loss that was not finite ends the run here, and the last good checkpoint stays.
        state.loss_sum, state.loss_rows = self.losses.read(), self.losses.rows
        state.metrics_bytes, state.seconds = self.metrics.settle(), self._seconds()
        checkpoint.save(self.checkpoints / "last", self.model, self.optimizers, state)
        self.saved = time.perf_counter()
        self.save_cost = self.saved - began


def update(
    model: Model,
    optimizers: dict[str, Optimizer],
    config: FitConfig,
    step: int,
    batch: Batch,
    losses: RunningLoss,
    loss_of: Callable[[Batch], Tensor] | None = None,
) -> None:
    """Do one step of every optimizer, on the device of the model.

    Args:
        step: number of steps done before.
        batch: on the host.
        losses: sum to which the loss of the batch before the step is added.
        loss_of: function used instead of ``model.loss``.

    Raises:
        RunError: on the CPU, a loss that is not finite. No parameter was changed.
    """
    set_learning_rates(optimizers, config, step)
    device, rows = find_device(model), batch.loss_rows
    batch = transfer(batch, device)
    with precision(config.bf16, device):
        loss = (loss_of or model.loss)(batch)
    losses.add(loss, rows, step)
    loss.backward()  # type: ignore[no-untyped-call]
    if config.clip_norm is not None:
        clip(model, config.clip_norm)
    for optimizer in optimizers.values():
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

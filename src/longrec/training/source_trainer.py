"""Trainer of a token source, which encodes impressions with its current weights and trains on blocks of the log."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from longrec.data.gather import gather
from longrec.data.log import Log
from longrec.data.negative_sampling import sample_negatives
from longrec.errors import RunError
from longrec.features.batch import Batch
from longrec.features.transfer import transfer
from longrec.models.core import artifact
from longrec.models.core import registry as models
from longrec.models.core.base import ContextInstances, Model
from longrec.models.core.kinds import Encoder
from longrec.store.token_store import TokenStore, Version
from longrec.store.visibility import read_visible_tokens
from longrec.training.base_rate import start_at_base_rates
from longrec.training.blocks import Block, refuse_training_window
from longrec.training.device import CPU, choose_device, choose_run_device
from longrec.training.finished_run import Run
from longrec.training.instances import LABEL, Instances
from longrec.training.job import Job
from longrec.training.loaders import build_loader
from longrec.training.loop import update
from longrec.training.negative_correction import check_negative_rate, correct_output_bias
from longrec.training.optimizers import build_optimizers
from longrec.training.running_loss import RunningLoss
from longrec.training.scoring import score

_TOGETHER = 4_096
_TINY = 1e-6
"""Deviation below which a component keeps its scale."""


def choose_source_device(source: Run | str | Path | Mapping[str, Any], job: Job, override: str | None) -> torch.device:
    """Return the device of a source: ``fit.device`` of a config, which binds, or of a run, which does not."""
    is_run = isinstance(source, Run) or (not isinstance(source, Mapping) and Path(source).is_dir())
    if is_run or override is not None:
        return choose_run_device(job.fit.device, override)
    return choose_device(job.fit.device)


class SourceTrainer:
    """Encoder with its optimizers, on one log.

    Attributes:
        steps: number of training batches.
        pretrained: True if its weights come from the run.
        device: device of the encoder.
        version: the current version.
    """

    def __init__(
        self, model: Encoder, log: Log, job: Job, name: str, pretrained: bool, device: torch.device = CPU
    ) -> None:
        self.model, self.log, self.name, self.pretrained = model.to(device), log, name, pretrained
        self.fit, self.device = job.fit, device
        self.optimizers = build_optimizers(model, self.fit)
        self.losses = RunningLoss(name, self.fit.bf16)
        self.steps, self.passes = 0, 0
        self.version = Version(0, None, None, 0, None, None)

    @classmethod
    def of(cls, job: Job, log: Log, name: str, trained: Model | None, device: torch.device = CPU) -> SourceTrainer:
        """Create a trainer for a job, with trained or with new weights.

        Raises:
            RunError: the model is no encoder, needs the training window, or starts from another run.
        """
        model = models.build(job.model, log.fields(), model_class=job.model_class) if trained is None else trained
        if not isinstance(model, Encoder):
            description = f"a {type(model).__mro__[1].__name__.lower()}, {job.model['name']}"
            raise RunError(name, description, "an encoder, such as iat", "train a source: model: {name: iat}")
        if trained is None:
            refuse_training_window(model, name)
            for key, expected in (("init_from", "starts from no run"), ("train_from", "trains on all blocks")):
                if (value := getattr(job.fit, key)) is not None:
                    description = f"fit.{key}: {value}, of a source trained from scratch, block by block"
                    raise RunError(name, description, f"a source that {expected}", f"remove fit.{key}")
            check_negative_rate(model, job.fit)
        return cls(model, log, job, name, trained is not None, device)

    def train(self, rows: NDArray[np.int64], epochs: int, available_before: int | None) -> None:
        """Train on rows of the log, each ``epochs`` times.

        Args:
            available_before: timestamp before which further labels must be available.
        """
        if not len(rows):
            return
        for _ in range(epochs):
            loader = build_loader(
                self.model,
                self.log,
                rows,
                self.fit.batch_size,
                seed=self.fit.seed,
                available_before=available_before,
                negative_rate=self.fit.negative_rate,
                group_requests=self.fit.group_requests,
            )
            self._start_at_base_rates(loader.loss_rows, available_before)
            self.model.train()
            for batch in loader.epoch(self.passes):
                if batch.size > 1:
                    self.learn(batch)
            self.passes += 1
            self._check_losses()

    def _start_at_base_rates(self, rows: NDArray[np.int64], available_before: int | None) -> None:
        """Initialize the output biases of a new model at the rates of its first training rows."""
        if not self.steps and not self.pretrained:
            start_at_base_rates(self.model, self.log, rows, available_before)

    def learn(self, batch: Batch, context: ContextInstances | None = None) -> None:
        """Do one step of every optimizer."""
        if context is None:
            update(self.model, self.optimizers, self.fit, self.steps, batch, self.losses)
        else:
            loss = partial(self.model.loss_with_context, context=context.to(self.device))
            update(self.model, self.optimizers, self.fit, self.steps, batch, self.losses, loss)
        self.steps += 1

    def _check_losses(self) -> None:
        """Refuse losses that were not finite, before the weights are used."""
        self.losses.read()
        self.losses.reset()

    def encode(self, rows: NDArray[np.int64], coded: bool = False) -> NDArray[Any]:
        """Return the unscaled vectors of rows in their order, float32 ``[n, width]``, with the current weights.

        Args:
            coded: return uint8 codes ``[n, C]`` instead.
        """
        self.model.eval()
        outputs: list[NDArray[Any]] = []
        with torch.inference_mode():
            if not self.model.encodes_in_context:
                for at in range(0, len(rows), _TOGETHER):
                    outputs.append(self._encode_batch(gather(self.log, rows[at : at + _TOGETHER]), coded))
                return np.concatenate(outputs)
            order = np.argsort(rows, kind="stable")
            for batch in build_loader(self.model, self.log, rows[order], _TOGETHER, shuffle=False).epoch(0):
                output = self._encode_batch(batch, coded)
                outputs.append(output if batch.loss_mask is None else output[batch.loss_mask.numpy()])
        in_order = np.concatenate(outputs)
        result = np.empty_like(in_order)
        result[order] = in_order
        return result

    def _encode_batch(self, batch: Batch, coded: bool) -> NDArray[Any]:
        batch = transfer(batch, self.device)
        output = self.model.codes(batch) if coded else self.model.encode(batch).float()
        return output.cpu().numpy()

    def encode_for_store(self, rows: NDArray[np.int64], codec: str) -> NDArray[Any]:
        """Return the stored form of rows: vectors on the scale of the version, or codes."""
        return self.encode(rows, coded=True) if codec == "codes" else self.standardize(self.encode(rows))

    def score(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the probabilities of rows, float32 ``[n]``, with the current weights."""
        return score(self.model, self.log, rows, 4_096)

    def scale(self, rows: NDArray[np.int64]) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation of the vectors of rows."""
        vectors = self.encode(rows).astype(np.float64)
        std = vectors.std(0)
        books = self.model.codebooks()
        if books is not None:
            # The few codes of earlier rows may be close together, and other codes far away.
            std = np.maximum(std, books[:, 0].std(1).double().cpu().numpy().ravel() / 10)
        return vectors.mean(0).tolist(), np.where(std < _TINY, 1.0, std).tolist()

    def standardize(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Convert vectors to the scale of the current version."""
        if self.version.mean is None:
            return vectors
        mean, std = np.array(self.version.mean), np.array(self.version.std)
        return ((vectors - mean) / std).astype(np.float32)

    def unstandardize(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Convert stored vectors to the scale of the source."""
        if self.version.mean is None:
            return vectors
        return (vectors * np.array(self.version.std) + np.array(self.version.mean)).astype(np.float32)

    def codebooks(self) -> NDArray[np.float32] | None:
        """Return the codebooks on the scale of the version, float32 ``[slots, levels, size, width]``.

        All levels are divided by its deviation. Its mean is subtracted from the first. None without codes.
        """
        outputs = self.model.codebooks()
        if outputs is None:
            return None
        books = outputs.detach().cpu().numpy().astype(np.float64)
        if self.version.mean is not None:
            slots, _, _, width = books.shape
            mean, std = (np.array(chunk).reshape(slots, 1, 1, width) for chunk in (self.version.mean, self.version.std))
            books = books / std
            books[:, :1] -= mean / std
        return books.astype(np.float32)

    def stream(
        self, block: Block, instances: Instances, store: TokenStore, context: int
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]]:
        """Yield (rows, vectors, probabilities) of a block in order of time, batch by batch.

        Before it encodes a batch, the source trains on all labels that were available before the batch.

        Args:
            context: number of stored tokens in the context of a row, in user order.
        """
        rows = block.rows[np.argsort(self.log.timestamps.take(block.rows), kind="stable")]
        back = context if self.model.user_order else 0
        for at in range(0, len(rows), self.fit.batch_size):
            chunk = rows[at : at + self.fit.batch_size]
            self._learn_available(instances, store, int(self.log.timestamps[chunk[0]]), back)
            batch, before = self._gather_with_context(instances, store, chunk, back)
            batch = transfer(batch, self.device)
            self.model.eval()
            with torch.inference_mode():
                vectors = self.model.encode(batch).float().cpu().numpy()
                logits = (
                    self.model(batch)
                    if before is None
                    else self.model.logits_with_context(batch, before.to(self.device))
                )
            coded = store.info.codec == "codes"
            yield (
                chunk,
                self.encode(chunk, coded=True) if coded else self.standardize(vectors),
                torch.sigmoid(logits.float()).cpu().numpy(),
            )
            instances.feed(chunk)
        if block.stop is not None:
            self._learn_available(instances, store, block.stop, back)

    def _learn_available(self, instances: Instances, store: TokenStore, timestamp: int, back: int) -> None:
        ready = instances.take_ready(timestamp)
        ready = sample_negatives(ready, self.log.labels.take(ready), self.fit.negative_rate, self.fit.seed)
        ready = ready[np.argsort(self.log.timestamps.take(ready), kind="stable")]
        if len(ready):
            self._start_at_base_rates(ready, timestamp)
        for at in range(0, len(ready), self.fit.batch_size):
            rows = ready[at : at + self.fit.batch_size]
            if len(rows) > 1:
                self.model.train()
                batch, before = self._gather_with_context(instances, store, rows, back, timestamp)
                self.learn(batch, before)
        self._check_losses()

    def _gather_with_context(
        self,
        instances: Instances,
        store: TokenStore,
        rows: NDArray[np.int64],
        back: int,
        learns_at: int | None = None,
    ) -> tuple[Batch, ContextInstances | None]:
        """Return the batch of rows, and the last visible tokens of each row's user, on the scale of the source.

        Args:
            learns_at: timestamp at which the source trains on the rows. None if it only encodes them.
        """
        batch = gather(self.log, rows, () if learns_at is None else self.model.targets, learns_at)
        timestamps = self.log.timestamps.take(rows)
        if not back:
            return batch, None
        tokens = read_visible_tokens(store, instances.users(rows), timestamps, back)
        owner = np.repeat(timestamps, np.diff(tokens.offsets))
        label = np.where(tokens.available_at[LABEL] < owner, tokens.sides[LABEL], instances.side_rows[LABEL])
        vectors = torch.from_numpy(self.unstandardize(tokens.vectors))
        times, labels = torch.from_numpy(tokens.times), torch.from_numpy(label.astype(np.int64))
        return batch, ContextInstances(vectors, torch.from_numpy(tokens.offsets), times, labels)

    def save(self, folder: Path, versions: Sequence[Mapping[str, Any]]) -> None:
        """Write the current source: its weights, the fitted schema, and the next version."""
        # The weights of a run are corrected already.
        with correct_output_bias(self.model, 1.0 if self.pretrained else self.fit.negative_rate):
            artifact.save(self.model, folder / "model")
        self.log.fitted.save(folder / "schema")
        about = {
            "run": self.name,
            "log": str(self.log.folder.absolute()),
            "version": self.version.number,
            "mean": self.version.mean,
            "std": self.version.std,
            "versions": list(versions),
        }
        (folder / "source.json").write_text(json.dumps(about, indent=1))

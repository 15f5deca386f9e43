"""A source at work: it encodes impressions as it is, and trains on stretches of the log."""

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
from longrec.data.negatives import sample_negatives
from longrec.errors import RunError
from longrec.features.batch import Batch
from longrec.models.core import artifact
from longrec.models.core import base as models
from longrec.models.core.base import ContextInstances, Encoder, Model
from longrec.store.token_store import TokenStore, Version
from longrec.store.visibility import read_visible_tokens
from longrec.train.base_rate import start_at_base_rates
from longrec.train.blocks import Block, refuse_looking_back
from longrec.train.instances import LABEL, Instances
from longrec.train.job import Job
from longrec.train.loop import loader_of, update
from longrec.train.negatives import check_negative_rate, corrected
from longrec.train.optimisers import build_optimisers
from longrec.train.scoring import score

_TOGETHER = 4_096
_TINY = 1e-6
"""A number that hardly moves keeps its scale."""


class Source:
    """An encoder with its optimizers, on one log.

    Attributes:
        steps: batches it was trained on.
        given: its weights come from the run; it does not begin untrained.
        version: the version that writes now.
    """

    def __init__(self, model: Encoder, log: Log, job: Job, name: str, given: bool) -> None:
        self.model, self.log, self.name, self.given = model, log, name, given
        self.fit = job.fit
        self.optimizers = build_optimisers(model, self.fit)
        self.steps, self.passes = 0, 0
        self.version = Version(0, None, None, 0, None, None)

    @classmethod
    def of(cls, job: Job, log: Log, name: str, trained: Model | None) -> Source:
        """The encoder of a job: trained, or new as its training began.

        Raises:
            RunError: the job's model is no encoder, looks back at a training window, or starts from another run.
        """
        model = models.build(job.model, log.fields()) if trained is None else trained
        if not isinstance(model, Encoder):
            found = f"a {type(model).__mro__[1].__name__.lower()}, {job.model['name']}"
            raise RunError(name, found, "an encoder, such as iat", "train a source: model: {name: iat}")
        if trained is None:
            refuse_looking_back(model, name)
            if job.fit.init_from is not None:
                found = f"fit.init_from: {job.fit.init_from}, of a source that is trained anew, block by block"
                raise RunError(name, found, "a source that starts from no run", "leave fit.init_from out")
            check_negative_rate(model, job.fit)
        return cls(model, log, job, name, trained is not None)

    def train(self, rows: NDArray[np.int64], epochs: int, known_before: int | None) -> None:
        """Train on rows of the log, each ``epochs`` times.

        Args:
            known_before: the moment before which further labels must be known.
        """
        if not len(rows):
            return
        for _ in range(epochs):
            loader = loader_of(
                self.model,
                self.log,
                rows,
                self.fit.batch_size,
                seed=self.fit.seed,
                known_before=known_before,
                negative_rate=self.fit.negative_rate,
            )
            self._start(loader.loss_rows, known_before)
            self.model.train()
            for batch in loader.epoch(self.passes):
                if batch.size > 1:
                    self.learn(batch)
            self.passes += 1

    def _start(self, rows: NDArray[np.int64], known_before: int | None) -> None:
        """A new model starts at the rates of the first rows it learns."""
        if not self.steps and not self.given:
            start_at_base_rates(self.model, self.log, rows, known_before)

    def learn(self, batch: Batch, past: ContextInstances | None = None) -> None:
        """One step of every optimizer."""
        if past is None:
            update(self.model, self.optimizers, self.fit, self.steps, batch, self.name)
        else:
            loss = partial(self.model.loss_with_context, context=past)
            update(self.model, self.optimizers, self.fit, self.steps, batch, self.name, loss)
        self.steps += 1

    def encode(self, rows: NDArray[np.int64], coded: bool = False) -> NDArray[Any]:
        """float32 ``[n, width]``: what the source makes of rows as it is, unscaled, in the order of the rows.

        Args:
            coded: uint8 codes ``[n, C]`` instead.
        """
        self.model.eval()
        parts: list[NDArray[Any]] = []
        with torch.inference_mode():
            if not self.model.encodes_in_context:
                for at in range(0, len(rows), _TOGETHER):
                    parts.append(self._made(gather(self.log, rows[at : at + _TOGETHER]), coded))
                return np.concatenate(parts)
            order = np.argsort(rows, kind="stable")
            for batch in loader_of(self.model, self.log, rows[order], _TOGETHER, shuffle=False).epoch(0):
                made = self._made(batch, coded)
                parts.append(made if batch.loss_mask is None else made[batch.loss_mask.numpy()])
        found = np.concatenate(parts)
        back = np.empty_like(found)
        back[order] = found
        return back

    def _made(self, batch: Batch, coded: bool) -> NDArray[Any]:
        made = self.model.codes(batch) if coded else self.model.encode(batch).float()
        return made.numpy()

    def stored(self, rows: NDArray[np.int64], codec: str) -> NDArray[Any]:
        """What a store takes of rows: vectors on the scale of the version, or codes."""
        return self.encode(rows, coded=True) if codec == "codes" else self.standard(self.encode(rows))

    def score(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """float32 ``[n]``: its probabilities of rows as it is."""
        return score(self.model, self.log, rows, 4_096)

    def scale(self, rows: NDArray[np.int64]) -> tuple[list[float], list[float]]:
        """Mean and deviation of the vectors of rows."""
        vectors = self.encode(rows).astype(np.float64)
        std = vectors.std(0)
        books = self.model.codebooks()
        if books is not None:
            # The few codes that earlier rows happened to use may lie close together, and others far away.
            std = np.maximum(std, books[:, 0].std(1).double().numpy().ravel() / 10)
        return vectors.mean(0).tolist(), np.where(std < _TINY, 1.0, std).tolist()

    def standard(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Vectors on the scale of the version that writes now."""
        if self.version.mean is None:
            return vectors
        mean, std = np.array(self.version.mean), np.array(self.version.std)
        return ((vectors - mean) / std).astype(np.float32)

    def raw(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Stored vectors on the scale of the source itself."""
        if self.version.mean is None:
            return vectors
        return (vectors * np.array(self.version.std) + np.array(self.version.mean)).astype(np.float32)

    def codebooks(self) -> NDArray[np.float32] | None:
        """float32 ``[slots, levels, size, width]`` of a source that makes codes, on the scale of the version: all
        levels over its deviation, the first less its mean.
        """
        found = self.model.codebooks()
        if found is None:
            return None
        books = found.detach().numpy().astype(np.float64)
        if self.version.mean is not None:
            slots, _, _, width = books.shape
            mean, std = (np.array(part).reshape(slots, 1, 1, width) for part in (self.version.mean, self.version.std))
            books = books / std
            books[:, :1] -= mean / std
        return books.astype(np.float32)

    def stream(
        self, block: Block, instances: Instances, store: TokenStore, past: int
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]]:
        """(rows, vectors, probabilities) of a block in order of time, a batch at a time. A batch is encoded by the
        source as it is, once it has learned what was known before the batch began; then it is handed over.

        Args:
            past: stored tokens that a row looks back at, in user order.
        """
        rows = block.rows[np.argsort(self.log.moments.take(block.rows), kind="stable")]
        back = past if self.model.user_order else 0
        for at in range(0, len(rows), self.fit.batch_size):
            part = rows[at : at + self.fit.batch_size]
            self._learn_stream(instances, store, int(self.log.moments[part[0]]), back)
            batch, before = self._with_past(instances, store, part, back)
            self.model.eval()
            with torch.inference_mode():
                vectors = self.model.encode(batch).float().numpy()
                logits = self.model.logits_with_context(batch, before) if before is not None else self.model(batch)
            coded = store.info.codec == "codes"
            yield (
                part,
                self.encode(part, coded=True) if coded else self.standard(vectors),
                torch.sigmoid(logits.float()).numpy(),
            )
            instances.feed(part)
        if block.stop is not None:
            self._learn_stream(instances, store, block.stop, back)

    def _learn_stream(self, instances: Instances, store: TokenStore, moment: int, back: int) -> None:
        ready = instances.ready(moment)
        ready = sample_negatives(ready, self.log.labels.take(ready), self.fit.negative_rate, self.fit.seed)
        ready = ready[np.argsort(self.log.moments.take(ready), kind="stable")]
        if len(ready):
            self._start(ready, moment)
        for at in range(0, len(ready), self.fit.batch_size):
            rows = ready[at : at + self.fit.batch_size]
            if len(rows) > 1:
                self.model.train()
                batch, before = self._with_past(instances, store, rows, back, moment)
                self.learn(batch, before)

    def _with_past(
        self,
        instances: Instances,
        store: TokenStore,
        rows: NDArray[np.int64],
        back: int,
        learns_at: int | None = None,
    ) -> tuple[Batch, ContextInstances | None]:
        """The batch of rows, and the last stored tokens that each row's user could read, on the source's scale.

        Args:
            learns_at: the moment at which the source learns the rows; None where it only encodes them.
        """
        batch = gather(self.log, rows, () if learns_at is None else self.model.targets, learns_at)
        moments = self.log.moments.take(rows)
        if not back:
            return batch, None
        tokens = read_visible_tokens(store, instances.users(rows), moments, back)
        owner = np.repeat(moments, np.diff(tokens.offsets))
        label = np.where(tokens.available_at[LABEL] < owner, tokens.sides[LABEL], instances.side_rows[LABEL])
        vectors = torch.from_numpy(self.raw(tokens.vectors))
        times, labels = torch.from_numpy(tokens.times), torch.from_numpy(label.astype(np.int64))
        return batch, ContextInstances(vectors, torch.from_numpy(tokens.offsets), times, labels)

    def save(self, folder: Path, versions: Sequence[Mapping[str, Any]]) -> None:
        """Write the source as it is now: its weights, the fitted schema, and the version that writes next."""
        # The weights of a run are corrected already.
        with corrected(self.model, 1.0 if self.given else self.fit.negative_rate):
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

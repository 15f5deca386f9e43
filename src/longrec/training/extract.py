"""Extraction of user and item vectors by a KEEP extractor, version by version, for other models.

The log is processed in blocks of time. At the start of a block the extractor, trained on labels available strictly
before it, writes a version: the vector of every user so far, with the history at that time, and of every item. Then it
trains on the block. A sample reads the newest version published strictly before it, so the version depends on nothing
available at or after the timestamp of the sample.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longrec import metrics
from longrec.config import apply_overrides, parse
from longrec.data.entity_batches import build_item_batch, build_user_batch
from longrec.data.label_checks import check_classes
from longrec.data.log import Log
from longrec.data.splits import TRAIN
from longrec.data.targets import check_targets
from longrec.errors import RunError
from longrec.features.batch import Batch
from longrec.features.transfer import transfer
from longrec.features.vocabulary import compute_key_numbers
from longrec.models.core.kinds import Extractor
from longrec.progress import Progress
from longrec.store.knowledge_store import KnowledgeInfo, KnowledgeStore, KnowledgeVersion, SideVectors
from longrec.training.blocks import Block, split_into_blocks
from longrec.training.compress import EncodeReport
from longrec.training.compress_settings import CompressConfig, ExtractConfig
from longrec.training.device import prepare_torch
from longrec.training.finished_run import Run, open_run, read_log
from longrec.training.folder import write_atomically
from longrec.training.instances import Instances
from longrec.training.job import Job, read_job
from longrec.training.source_trainer import SourceTrainer, choose_source_device

_TINY = 1e-6
"""Deviation below which a component keeps its scale."""


class ExtractReport(EncodeReport):
    """Report of an extraction, one version per block, without ``leak``: no weights have seen later labels."""

    @property
    def hint(self) -> str:
        """Entries of a schema that reads the vectors."""
        return (
            f"features: {{about_user: {{kind: embedding, from: {self.into}, side: user}}}}, and likewise for the item"
        )


def extract(
    source: Run | str | Path | Mapping[str, Any],
    into: str | Path,
    overrides: Sequence[str] = (),
    *,
    device: str | None = None,
    quiet: bool = False,
) -> ExtractReport:
    """Write the knowledge of a log with a new extractor, trained block by block.

    Args:
        source: a finished run of an extractor, or a config (a YAML file or a dict). Only the config is used.
        into: a new folder, such as ``knowledge/v1``.
        overrides: settings of ``ExtractConfig`` such as ``every=7d``.
        device: ``auto``, ``cpu`` or ``cuda``. Default: ``fit.device``, or the CPU for a run where there is no GPU.

    Raises:
        ConfigError: settings that cannot be used.
        RunError: no run of an extractor.
        StoreError: the folder exists already.
        ResourceError: ``cuda`` without a CUDA device.
    """
    config = parse(ExtractConfig, apply_overrides({}, overrides), "extract")
    name, job, log = _open_source(source)
    target = choose_source_device(source, job, device)
    with prepare_torch(job.fit.threads, job.fit.seed, target):
        trainer = SourceTrainer.of(job, log, name, None, target)
        if not isinstance(trainer.model, Extractor):
            description = f"a {job.model['name']}, which has no vectors of users and items"
            raise RunError(name, description, "an extractor", "train one: model: {name: keep}")
        check_targets(log, trainer.model.targets)
        block_config = CompressConfig(every=config.every, blocks=config.blocks, first_slices=1)
        blocks, report = split_into_blocks(block_config, log), ExtractReport(str(into))
        stream = io.StringIO() if quiet else None
        with write_atomically(into) as partial_path:
            with (
                KnowledgeStore.create(partial_path, _build_info(config, name, job, log, trainer.model)) as store,
                Progress(len(blocks), f"extract {name}", "blocks", stream=stream) as progress,
            ):
                version_writer = _VersionWriter(config, log, trainer, Instances(log), store, report)
                for block in blocks:
                    version_writer.write(block)
                    progress.advance()
                store.compact()
            trainer.save(Path(partial_path) / "source", report.versions)
    return report


def _open_source(source: Run | str | Path | Mapping[str, Any]) -> tuple[str, Job, Log]:
    """Return name, job and log of a run or a config."""
    if isinstance(source, Mapping) or (not isinstance(source, Run) and Path(source).is_file()):
        job = read_job(source)
        log = read_log(job)
        check_classes(log)
        return job.name or str(job.model["name"]), job, log
    run = source if isinstance(source, Run) else open_run(source)
    return run.name, run.config, run.log()


@dataclass
class _VersionWriter:
    """Writer of one folder, block by block."""

    config: ExtractConfig
    log: Log
    source: SourceTrainer
    instances: Instances
    store: KnowledgeStore
    report: ExtractReport
    before: int = 0  # the training labels so far were available before this timestamp

    def write(self, block: Block) -> None:
        """Publish a version at the start of a block, and train on the block."""
        if self.source.steps:
            published = self._publish(block)
            start_text = str(np.datetime64(published.published, "ms")) if self.store.info.unit == "ms" else block.start
            count = published.users + published.items
            self.report.versions.append(
                {"version": published.number, "from": start_text, "rows": count, "auc": self._compute_auc(block.rows)}
            )
            self.report.tokens += count
        rows = block.rows
        if self.config.learn == "train":
            rows = rows[self.log.splits.take(rows) == TRAIN]
        self.instances.feed(rows)
        ready = self.instances.take_ready(block.stop)
        if len(ready) and block.stop is not None:
            self.before = block.stop
            self.source.train(ready, self.config.epochs, block.stop)

    def _publish(self, block: Block) -> KnowledgeVersion:
        timestamp, model, log = block.start, self.source.model, self.log
        assert isinstance(model, Extractor)
        model.eval()
        first = np.full(len(log.users), np.iinfo(np.int64).max)
        has_events = np.diff(log.events.offsets) > 0
        if has_events.any():
            first[has_events] = np.minimum.reduceat(self.instances.available, log.events.offsets[:-1][has_events])
        users = np.flatnonzero(first < timestamp)
        items = np.arange(1, len(log.items))
        k_u = self._encode_side(users, build_user_batch, model.user_knowledge, timestamp, log.users.keys.values)
        k_v = self._encode_side(items, build_item_batch, model.item_knowledge, timestamp, log.items.keys.values)
        return self.store.publish(self.before, timestamp + log.schema.delay(self.config.visibility_delay), k_u, k_v)

    def _encode_side(
        self,
        rows: NDArray[np.int64],
        build: Callable[[Log, NDArray[np.int64], int], Batch],
        encode: Callable[[Batch], Tensor],
        timestamp: int,
        keys: Any,
    ) -> SideVectors:
        """Return the vectors of rows of an entity table, scaled to mean 0 and deviation 1."""
        with torch.inference_mode():
            batches = (build(self.log, chunk, timestamp) for chunk in self._split_chunks(rows))
            chunks = [encode(transfer(batch, self.source.device)).float().cpu().numpy() for batch in batches]
        vectors = np.concatenate(chunks).astype(np.float64)
        mean, std = vectors.mean(0), vectors.std(0)
        std = np.where(std < _TINY, 1.0, std)
        standard = ((vectors - mean) / std).astype(np.float32)
        return SideVectors(compute_key_numbers(keys).take(rows - 1), standard, mean.tolist(), std.tolist())

    def _split_chunks(self, rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        for at in range(0, len(rows), self.config.batch_size):
            yield rows[at : at + self.config.batch_size]

    def _compute_auc(self, rows: NDArray[np.int64]) -> float | None:
        labels = self.log.labels.take(rows)
        labeled = ~np.isnan(labels)
        if not labeled.any() or labels[labeled].min() == labels[labeled].max():
            return None
        return float(metrics.auc(labels[labeled], self.source.score(rows[labeled])))


def _build_info(config: ExtractConfig, name: str, job: Job, log: Log, model: Extractor) -> KnowledgeInfo:
    return KnowledgeInfo(
        widths={"user": model.widths[0], "item": model.widths[1]},
        unit="step" if log.schema.time is not None and log.schema.time.unit == "step" else "ms",
        keys={"user": _name_key_type(log.users.keys.numeric), "item": _name_key_type(log.items.keys.numeric)},
        codec=config.codec,
        visibility_delay=log.schema.delay(config.visibility_delay),
        leak=log.leak,
        column_delays=log.column_delays,
        source={
            "run": name,
            "model": dict(job.model),
            "log": log.folder.name,
            "extract": config.model_dump(mode="json"),
        },
    )


def _name_key_type(numeric: bool) -> str:
    return "int64" if numeric else "text"

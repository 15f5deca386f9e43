"""Compression of the impressions of a log to tokens in a store, by weights that have not seen their labels.

The log is processed in blocks of time. A block is first encoded by the source that was trained on the blocks before it.
Then the source trains on the block, on rows whose labels were available when the next block begins. So the token of an
impression at t depends on nothing available at or after t. The first slice has an untrained source and no tokens.

Versions of a source drift apart (by up to several standard deviations), so the vectors of each version are scaled to
mean 0 and deviation 1, with statistics of earlier impressions that the same version encodes again.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec import metrics
from longrec.config import apply_overrides, parse
from longrec.data.label_checks import check_classes
from longrec.data.log import Log
from longrec.errors import RunError, StoreError
from longrec.models.core.base import Model
from longrec.models.core.kinds import Encoder
from longrec.progress import Progress
from longrec.store.token_store import TokenInfo, TokenStore, Version
from longrec.training.blocks import Block, split_into_blocks
from longrec.training.compress_settings import CompressConfig
from longrec.training.device import prepare_torch
from longrec.training.finished_run import Run, open_run, read_log
from longrec.training.folder import write_atomically
from longrec.training.instances import LABEL, Instances
from longrec.training.job import Job, read_job
from longrec.training.seen_labels import collect_delays, read_seen_labels
from longrec.training.source_trainer import SourceTrainer, choose_source_device

LEAK = (
    "written by a checkpoint that was trained on these impressions: its user and item tables have seen their labels, "
    "and later labels of the same users; a model that reads such tokens looks better on the training window than it is"
)


@dataclass
class EncodeReport:
    """Report of a compression.

    Attributes:
        into: the store.
        versions: one entry per version: its number, its first timestamp (of knowledge the start of its block), the
            number of impressions (vectors), and the AUC of the source on them before it trained on them (of knowledge
            on the block that follows). None if the labels have one class.
        tokens: number of all tokens.
        leak: reason why the tokens leak. Empty if they do not.
    """

    into: str
    versions: list[dict[str, Any]] = field(default_factory=list)
    tokens: int = 0
    leak: str = ""

    @property
    def hint(self) -> str:
        """Entry of a schema that reads the tokens."""
        return f"histories: {{tokens: {{from: {self.into}, features: [token, label, time_gap], max_length: 256}}}}"


def compress(
    source: Run | str | Path | Mapping[str, Any],
    into: str | Path,
    overrides: Sequence[str] = (),
    *,
    device: str | None = None,
    quiet: bool = False,
) -> EncodeReport:
    """Write the tokens of a log.

    Args:
        source: a finished run of an encoder, whose weights some modes use, or a config (a YAML file or a dict), which
            is enough for the modes that train a new source.
        into: a new folder (``tokens/v1``), or a ``redis://`` address.
        overrides: settings of ``CompressConfig`` such as ``every=2d`` or ``codec=int8``.
        device: ``auto``, ``cpu`` or ``cuda``. Default: ``fit.device``, or the CPU for a run where there is no GPU.

    Raises:
        ConfigError: settings that cannot be used.
        RunError: no run of an encoder, or a mode that leaks without an explicit choice.
        StoreError: the store exists already.
        ResourceError: ``cuda`` without a CUDA device.
    """
    config = parse(CompressConfig, apply_overrides({}, overrides), "compress")
    with_weights = config.mode in ("checkpoint", "leaky_checkpoint")
    name, job, log, trained, after = _open_source(source, with_weights)
    _refuse_leak(config, name, log, after)
    target = choose_source_device(source, job, device)
    with prepare_torch(job.fit.threads, job.fit.seed, target):
        trainer = SourceTrainer.of(job, log, name, trained, target)
        instances = Instances(log)
        blocks, info = _plan_blocks(config, log, after), _build_info(config, name, job, log, trainer.model, instances)
        report = EncodeReport(str(into), leak=info.leak)
        stream = io.StringIO() if quiet else None
        total = sum(len(block.rows) for block in blocks)
        with (
            write_atomically(into) as partial_path,
            TokenStore.create(partial_path, info) as store,
            Progress(total, f"compress {name}", "impressions", stream=stream) as progress,
        ):
            block_writer = _BlockWriter(config, log, trainer, instances, store, report, progress)
            for block in blocks:
                block_writer.write(block)
            store.compact()
    trainer.save(_source_folder(job, into), report.versions)
    return report


def _open_source(
    source: Run | str | Path | Mapping[str, Any], with_weights: bool
) -> tuple[str, Job, Log, Model | None, int | None]:
    """Return name, job, log and (with weights) trained model of a run or a config, and the timestamp from which on the
    model has seen no label. None if there is no such timestamp.
    """
    if isinstance(source, Mapping) or (not isinstance(source, Run) and Path(source).is_file()):
        if with_weights:
            description, do = "a config", "train it first, or set mode=blocks"
            raise RunError("compress", description, "a finished run: this mode writes with its weights", do)
        job = read_job(source)
        log = read_log(job)
        check_classes(log)
        return job.name or str(job.model["name"]), job, log, None, None
    run = source if isinstance(source, Run) else open_run(source)
    log = run.log()
    if not with_weights:
        return run.name, run.config, log, None, None
    lines, seen = log.manifest.get("lines"), read_seen_labels(run).with_delays(collect_delays(log.schema))
    after = None if lines is None or seen.validated is None else max(int(lines[1]), seen.validated)
    return run.name, run.config, log, run.model(), after


def _refuse_leak(config: CompressConfig, name: str, log: Log, after: int | None) -> None:
    if config.mode == "checkpoint" and (after is None or after > int(log.timestamps.max())):
        raise RunError(
            name,
            f"mode checkpoint with only tokens that would be {LEAK}",
            "impressions later than all training and validation data of the run",
            "set mode=blocks (the default) or mode=stream; mode=leaky_checkpoint writes them nevertheless",
        )


def _plan_blocks(config: CompressConfig, log: Log, after: int | None) -> list[Block]:
    """Return the blocks to write, in order of time. With the weights of a run there is one block."""
    if config.mode == "leaky_checkpoint":
        return [Block(0, int(log.timestamps.min()), None, np.arange(len(log)))]
    if config.mode == "checkpoint":
        assert after is not None
        return [Block(0, after, None, np.flatnonzero(log.timestamps >= after))]
    return split_into_blocks(config, log)


@dataclass
class _BlockWriter:
    """Writer of one store, block by block."""

    config: CompressConfig
    log: Log
    source: SourceTrainer
    instances: Instances
    store: TokenStore
    report: EncodeReport
    progress: Progress
    steps: int = -1  # steps of the source at its last version

    def write(self, block: Block) -> None:
        """Encode a block with the current source, append the tokens, and train the source on the block."""
        config, source = self.config, self.source
        last = config.train_blocks
        learns = not source.pretrained and (last is None or block.number < last)
        streams = learns and config.mode == "stream" and source.steps > 0
        if source.pretrained or source.steps:
            self._start_version(block)
            self._append(
                block,
                source.stream(block, self.instances, self.store, config.context_length)
                if streams
                else self._encode_chunks(block),
            )
        else:
            self.progress.advance(len(block.rows))
        if learns and not streams:
            self.instances.feed(block.rows)
            source.train(self.instances.take_ready(block.stop), config.epochs, block.stop)

    def _start_version(self, block: Block) -> None:
        """Start a new version if the weights have changed."""
        source = self.source
        if self.steps == source.steps:
            return
        self.steps = source.steps
        mean, std = source.scale(self._sample_scale_rows(block)) if self.store.info.standardized else (None, None)
        number = len(self.report.versions)
        # Weights that have seen later labels were trained before no timestamp of this log.
        start = None if self.config.mode == "leaky_checkpoint" else block.start
        source.version = Version(number, start, start, 0, mean, std)
        self.store.add_version(source.version, source.codebooks() if self.store.info.codec == "codes" else None)
        start_text = block.start if self.store.info.unit == "step" else str(np.datetime64(block.start, "ms"))
        self.report.versions.append({"version": number, "from": start_text, "rows": 0, "auc": None})

    def _sample_scale_rows(self, block: Block) -> NDArray[np.int64]:
        """Return rows before a block (or of the whole log) for the mean and deviation of a version."""
        before = np.flatnonzero((self.log.timestamps < block.start) & (self.instances.available < block.start))
        before = before if len(before) else np.arange(len(self.log))
        random = np.random.default_rng([block.number, len(before)])
        return np.sort(random.choice(before, min(self.config.scale_sample, len(before)), replace=False))

    def _encode_chunks(self, block: Block) -> Iterator[Chunk]:
        scores = self.source.score(block.rows)
        for at in range(0, len(block.rows), self.config.batch_size):
            rows = block.rows[at : at + self.config.batch_size]
            yield rows, self.source.encode_for_store(rows, self.store.info.codec), scores[at : at + len(rows)]

    def _append(self, block: Block, chunks: Iterable[Chunk]) -> None:
        block_scores = np.full(len(self.log), np.nan, np.float32)
        entry, instances, number = self.report.versions[-1], self.instances, self.source.version.number
        for chunk_rows, vectors, scores in chunks:
            block_scores[chunk_rows] = scores
            selected = instances.select(chunk_rows, self.config.filter)
            rows, times = chunk_rows[selected], instances.times.take(chunk_rows[selected])
            visible = np.maximum(times + self.store.info.visibility_delay, instances.available.take(rows))
            if self.config.filter == "positive":  # the existence of such a token reveals the label
                visible = np.maximum(visible, instances.available_at[LABEL].take(rows))
            self.store.append(
                instances.users(rows),
                times,
                instance=instances.ids.take(rows),
                visible=visible,
                version=np.full(len(rows), number, np.int64),
                vectors=vectors[selected],
                sides={name: values.take(rows) for name, values in instances.sides.items()},
                available_at={name: values.take(rows) for name, values in instances.available_at.items()},
            )
            self.report.tokens += len(rows)
            self.progress.advance(len(chunk_rows))
        entry["rows"] += len(block.rows)
        entry["auc"] = _compute_auc(self.log, block.rows, block_scores.take(block.rows))


Chunk = tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]
"""Rows, their vectors, and their probabilities."""


def _compute_auc(log: Log, rows: NDArray[np.int64], scores: NDArray[np.float32]) -> float | None:
    """Return the AUC of the source on labels before it trained on them."""
    labels = log.labels.take(rows)
    scored = ~np.isnan(labels) & ~np.isnan(scores)
    if not scored.any() or labels[scored].min() == labels[scored].max():
        return None
    return float(metrics.auc(labels[scored], scores[scored]))


def _build_info(
    config: CompressConfig, name: str, job: Job, log: Log, model: Encoder, instances: Instances
) -> TokenInfo:
    makes_codes = model.codebooks() is not None
    codec = config.codec or ("codes" if makes_codes else "fp16")
    if codec == "codes" and not makes_codes:
        raise StoreError("compress: codec", "codes, of a source that computes none", "codec fp32, fp16 or int8")
    return TokenInfo(
        width=model.width,
        slots=model.slots,
        codec=codec,
        sides=instances.side_rows,
        unit="step" if log.schema.time is not None and log.schema.time.unit == "step" else "ms",
        keys="int64" if log.users.keys.numeric else "text",
        visibility_delay=log.schema.delay(config.visibility_delay),
        leak=LEAK if config.mode == "leaky_checkpoint" else log.leak,
        column_delays=log.column_delays,
        standardized=config.standardize,
        source={
            "run": name,
            "model": dict(job.model),
            "log": log.folder.name,
            "compress": config.model_dump(mode="json"),
        },
        versions=(),
    )


def _source_folder(job: Job, into: str | Path) -> Path:
    """Return the folder of the source after the last block, from which it can be exported and continue."""
    text = str(into)
    return (
        Path(job.fit.runs) / "sources" / text.rpartition("://")[2].replace("/", "-")
        if "://" in text
        else Path(text) / "source"
    )

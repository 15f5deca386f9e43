"""Incremental protocol: train on day d, test on day d + 1, add knowledge on some day, and record the AUC per day.

Arms of the comparison:
    base        the ranker without knowledge, day by day
    keep        the same ranker with knowledge added on the day, weights and optimizer state kept
    shuffled    the same with the knowledge of another user for every user: it must gain nothing
    random      the same with noise instead of knowledge: it must gain nothing
    concat      a new ranker with the knowledge among its inputs, trained on all days before the day

A plug starts at zero: on its first day ``keep`` has the scores of ``base``, before either trains on that day.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim import Optimizer

from longrec import metrics
from longrec.data.knowledge_join import Control
from longrec.data.log import Log
from longrec.errors import ConfigError
from longrec.models.core import registry as models
from longrec.models.core.base import Model
from longrec.models.core.kinds import Ranker
from longrec.models.keep_plug import KEEPPlug, plug, without
from longrec.progress import Progress
from longrec.training.base_rate import start_at_base_rates
from longrec.training.blocks import Block, refuse_training_window, split_into_blocks
from longrec.training.compress_settings import CompressConfig
from longrec.training.finished_run import read_log
from longrec.training.instances import Instances
from longrec.training.job import Job, read_job
from longrec.training.loaders import build_loader
from longrec.training.loop import update
from longrec.training.machine import keep_large_blocks, torch_threads
from longrec.training.negative_correction import check_negative_rate
from longrec.training.optimizers import build_optimizers
from longrec.training.running_loss import RunningLoss
from longrec.training.scoring import score
from longrec.training.warm_start import move_optimizer_state

ARMS = ("base", "keep", "shuffled", "random", "concat")


@dataclass(frozen=True)
class Day:
    """One day of the protocol.

    Attributes:
        number: number of the day, from 0.
        rows: impressions with a label.
        auc: AUC of each arm on the day, before it trained on it. None if the labels have one class.
        share: share of the knowledge in ``keep`` (``KEEPPlug.shares``, the first plugged layer).
    """

    number: int
    rows: int
    auc: Mapping[str, float | None]
    share: float | None = None


@dataclass
class Curve:
    """Results of the days in order.

    Attributes:
        plugged: day on which knowledge was added.
        arms: arms of the study.
    """

    plugged: int
    arms: tuple[str, ...]
    days: list[Day] = field(default_factory=list)

    def gain(self, arm: str = "keep", first: int | None = None) -> float:
        """Return the mean AUC difference between an arm and base over the days from ``first`` on.

        ``first`` is by default the day after knowledge was added. NaN if no day has both.
        """
        first = self.plugged + 1 if first is None else first
        pairs = [(day.auc.get(arm), day.auc.get("base")) for day in self.days if day.number >= first]
        differences = [one - other for one, other in pairs if one is not None and other is not None]
        return float(np.mean(differences)) if differences else float("nan")

    def lines(self) -> list[list[str]]:
        """Return a text table: the head, then one line per day."""
        head = ["day", "rows", *self.arms, *(["|P(K)|/|a|"] if "keep" in self.arms else [])]
        body = []
        for day in self.days:
            auc_cells = [_format_number(day.auc.get(arm)) for arm in self.arms]
            share_cells = [_format_number(day.share)] if "keep" in self.arms else []
            body.append(
                [f"{day.number}{' *' if day.number == self.plugged else ''}", f"{day.rows:,}", *auc_cells, *share_cells]
            )
        return [head, *body]

    def __str__(self) -> str:
        lines = self.lines()
        widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
        rows = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in lines]
        return "\n".join([*rows, f"* knowledge is added; gain of keep since: {self.gain():+.4f} AUC per day"])


def run_incremental(
    source: str | Path | Mapping[str, Any] | Job,
    overrides: Sequence[str] = (),
    *,
    plug_on: int,
    every: str = "1d",
    days: int | None = None,
    arms: Sequence[str] = ("base", "keep"),
    quiet: bool = False,
) -> Curve:
    """Run the protocol for a job whose model is ``keep_plug``.

    Every day has one pass (``fit.epochs`` is ignored). Labels are used once they are available. Vocabularies are
    those of the training window of the job's split.

    Args:
        plug_on: day, from 0, at whose beginning knowledge is added.
        every: length of a day.
        days: number of days. Default: all days of the log.
        arms: arms from ``ARMS``, with base.

    Raises:
        ConfigError: another model, unknown arms, or a day outside the log.
    """
    job = source if isinstance(source, Job) else read_job(source, overrides)
    faults = [f"arms: no arm named {arm!r}; known: {', '.join(ARMS)}" for arm in arms if arm not in ARMS]
    if "base" not in arms:
        faults.append("arms: base is what the others are held against")
    if job.model["name"] != "keep_plug":
        faults.append(f"model.name: {job.model['name']}; the protocol plugs: it takes keep_plug")
    if job.fit.init_from is not None:
        faults.append("fit.init_from: every arm begins untrained on the first day; leave it out")
    if faults:
        raise ConfigError("incremental", faults)
    log = read_log(job)
    blocks = split_into_blocks(CompressConfig(every=every, first_slices=1), log)[:days]
    if not 0 < plug_on < len(blocks):
        raise ConfigError(
            "incremental", [f"plug_on: {plug_on}; the log has days 0 to {len(blocks) - 1}, take 1 or more"]
        )
    keep_large_blocks()
    curve = Curve(plug_on, tuple(arms))
    stream = io.StringIO() if quiet else None
    with (
        torch_threads(job.fit.threads),
        torch.random.fork_rng(devices=[]),
        Progress(len(blocks), "incremental", "days", stream=stream) as progress,
    ):
        protocol = _Protocol(job, log, curve)
        for block in blocks:
            protocol.day(block)
            progress.advance()
    return curve


class _Protocol:
    """State of all arms, day by day."""

    def __init__(self, job: Job, log: Log, curve: Curve) -> None:
        self.job, self.log, self.curve = job, log, curve
        self.instances = Instances(log)
        self.learned: list[tuple[NDArray[np.int64], int | None]] = []
        self.fields = log.fields()
        torch.manual_seed(job.fit.seed)
        self.plugged = models.build(job.model, self.fields)
        assert isinstance(self.plugged, KEEPPlug)
        refuse_training_window(self.plugged, "incremental")
        check_negative_rate(self.plugged, job.fit)
        torch.manual_seed(job.fit.seed)
        bare = models.build(job.model["base"], without(self.fields, self.plugged.knowledge))
        self.arms = {"base": _Learner(bare, log, job)}

    def day(self, block: Block) -> None:
        """Add knowledge on its day, then test and train."""
        number = len(self.curve.days)
        if number == self.curve.plugged:
            self._plug_in()
        rows = block.rows[self.instances.has_label(block.rows)]
        auc = {name: arm.auc(rows) for name, arm in self.arms.items()}
        share = self.arms["keep"].share(rows) if "keep" in self.arms else None
        self.curve.days.append(Day(number, len(rows), auc, share))
        self.instances.feed(block.rows)
        ready = self.instances.take_ready(block.stop)
        self.learned.append((ready, block.stop))
        for arm in self.arms.values():
            arm.learn(ready, block.stop)

    def _plug_in(self) -> None:
        base, settings = self.arms["base"], {key: value for key, value in self.job.model.items()
                                             if key not in ("name", "base")}  # fmt: skip
        for name in self.curve.arms:
            torch.manual_seed(self.job.fit.seed)
            if name in ("keep", "shuffled", "random"):
                assert isinstance(base.model, Ranker)
                log = (
                    self.log
                    if name == "keep"
                    else self._replace_knowledge("shuffled" if name == "shuffled" else "random")
                )
                arm = _Learner(plug(base.model, self.fields, settings), log, self.job)
                move_optimizer_state(arm.model, arm.optimizers, base.model, base.optimizers)
                arm.steps, arm.passes = base.steps, base.passes
                self.arms[name] = arm
            elif name == "concat":
                arm = _Learner(models.build(self.job.model["base"], self.fields), self.log, self.job)
                for rows, available_before in self.learned:
                    arm.learn(rows, available_before)
                self.arms[name] = arm

    def _replace_knowledge(self, control: Control) -> Log:
        log = copy.copy(self.log)
        log.knowledge = {name: vectors.control(control, seed=1) for name, vectors in self.log.knowledge.items()}
        return log


class _Learner:
    """Arm: a model with its optimizers, on its log."""

    def __init__(self, model: Model, log: Log, job: Job) -> None:
        self.model, self.log, self.job = model, log, job
        self.optimizers: dict[str, Optimizer] = build_optimizers(model, job.fit)
        self.losses = RunningLoss("incremental", job.fit.bf16)
        self.steps, self.passes = 0, 0

    def learn(self, rows: NDArray[np.int64], available_before: int | None) -> None:
        """Train one pass over rows, with the further labels that were available before a timestamp."""
        if not len(rows):
            return
        fit = self.job.fit
        loader = build_loader(
            self.model,
            self.log,
            rows,
            fit.batch_size,
            seed=fit.seed,
            available_before=available_before,
            negative_rate=fit.negative_rate,
        )
        if not self.steps:
            start_at_base_rates(self.model, self.log, loader.loss_rows, available_before)
        torch.manual_seed(fit.seed + self.passes)
        self.model.train()
        for batch in loader.epoch(self.passes):
            if batch.size > 1:
                update(self.model, self.optimizers, fit, self.steps, batch, self.losses)
                self.steps += 1
        self.passes += 1

    def auc(self, rows: NDArray[np.int64]) -> float | None:
        """Return the AUC on rows with the current weights. None if the labels have one class."""
        labels = self.log.labels.take(rows)
        if not len(rows) or labels.min() == labels.max():
            return None
        scores = score(self.model, self.log, rows, self.job.evaluate.batch_size, bf16=self.job.fit.bf16)
        return float(metrics.auc(labels, scores))

    def share(self, rows: NDArray[np.int64]) -> float | None:
        """Return ``KEEPPlug.shares`` of the first layer with knowledge, over a batch of the rows."""
        if not len(rows) or not isinstance(self.model, KEEPPlug):
            return None
        self.model.eval()
        few = rows[:: max(len(rows) // self.job.evaluate.batch_size, 1)][: self.job.evaluate.batch_size]
        with torch.inference_mode():
            batch = next(iter(build_loader(self.model, self.log, few, len(few), shuffle=False).epoch(0)))
            return float(self.model.shares(batch)[0])


def _format_number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"

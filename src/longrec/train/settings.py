"""The ``fit`` and ``evaluate`` sections of a config: how a model is trained, and how it is measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field as Setting
from pydantic import model_validator

from longrec.config import Strict
from longrec.train.schedules import Rate, Schedule

Monitor = Literal["auc", "gauc", "log_loss"]
Dense = Literal["adamw", "adam", "adagrad", "sgd"]
Tables = Literal["lazy_adam", "rowwise_adam", "adagrad", "rowwise_adagrad", "sgd"]
Beta = Annotated[float, Setting(ge=0, lt=1)]


class FitConfig(Strict):
    """How a model is trained. The defaults were measured on four logs: two passes, three looks at valid a pass."""

    renamed_keys: ClassVar[Mapping[str, str]] = {
        "optimiser": "optimizer",
        "tables_optimiser": "embedding_optimizer",
        "tables_lr": "embedding_lr",
        "accumulator": "initial_accumulator_value",
        "by_length": "bucket_by_length",
        "validations_per_epoch": "val_checks_per_epoch",
        "start_from": "init_from",
    }

    epochs: int = Setting(2, ge=1, description="passes over the training rows; click models overfit after one to three")
    max_steps: int | None = Setting(None, ge=1, description="stop after so many batches even inside an epoch")
    batch_size: int = Setting(1024, ge=1, description="training rows a step")
    optimizer: Dense = Setting("adamw", description="optimizer of the dense parameters")
    lr: float = Setting(1e-3, gt=0, description="learning rate of the dense parameters")
    weight_decay: float = Setting(
        0.0,
        ge=0,
        description="decay of the dense matrices, biases and norms are left alone: decoupled with adamw, with the "
        "others that times the weight is added to its gradient",
    )
    momentum: float = Setting(0.0, ge=0, lt=1, description="of sgd: part of the last step that the next one keeps")
    betas: tuple[Beta, Beta] = Setting((0.9, 0.999), description="how fast the two moments of every Adam forget")
    initial_accumulator_value: float = Setting(
        0.0, ge=0, description="what the sums of squares of every Adagrad start with"
    )
    warmup_steps: int = Setting(0, ge=0, description="steps over which both learning rates rise")
    warmup_from: Rate | None = Setting(
        None, description="learning rate of the first step of that rise; one step's part above zero when not given"
    )
    schedule: Schedule = Setting(
        Schedule(), description="how both learning rates go on, as {name: cosine, steps: 9000}"
    )
    embedding_optimizer: Tables = Setting(
        "lazy_adam", description="optimizer of the embedding tables; each touches only the rows of the batch"
    )
    embedding_lr: float | None = Setting(None, gt=0, description="learning rate of the tables; lr when not given")
    l2: float = Setting(1e-5, ge=0, description="L2 penalty on the table rows that a batch touches")
    clip_norm: float | None = Setting(None, gt=0, description="longest gradient allowed, over all parameters at once")
    bf16: bool = Setting(False, description="compute in bfloat16 where that is safe (autocast); weights stay fp32")
    bucket_by_length: bool = Setting(
        False, description="fill batches with rows of like history length: faster for models that pad, costs quality"
    )
    val_checks_per_epoch: int = Setting(3, ge=1, description="how often a pass stops to measure valid")
    monitor: Monitor = Setting(
        "log_loss",
        description="metric on valid that picks the best checkpoint; auc and gauc rank, and are blind to calibration",
    )
    patience: int = Setting(
        5, ge=0, description="stop after so many validations in a row without a better monitor; 0 never stops early"
    )
    negative_rate: float = Setting(
        1.0, gt=0, le=1, description="share of the negative training rows that are kept; scores are corrected for it"
    )
    sample_weight: str | None = Setting(
        None, description="column of the log that weighs each training row in the loss; all alike when not given"
    )
    seed: int = Setting(0, ge=0, lt=2**63, description="of weights, batch order and dropout: same seed, same run")
    threads: int = Setting(1, ge=1, description="torch threads")
    log_steps: int = Setting(50, ge=1, description="batches a training line of metrics.jsonl averages over")
    checkpoint_seconds: float | None = Setting(
        60.0, gt=0, description="seconds between two checkpoints to resume from; null for none by the clock"
    )
    checkpoint_steps: int | None = Setting(None, ge=1, description="batches between two checkpoints")
    tensorboard: Literal["auto", "off"] = Setting("auto", description="write TensorBoard events when it is installed")
    mlflow: Literal["auto", "off"] = Setting(
        "auto", description="log each validation to MLflow when it is installed (its tracking address decides where)"
    )
    init_from: str | None = Setting(
        None,
        min_length=1,
        description="folder of a finished run whose last weights and optimizer moments training begins with; keep_plug "
        "may start from a run of its base",
    )
    allow_future_weights: bool = Setting(
        False,
        description="let init_from take a run that may have seen labels this run is measured on; results then carry a "
        "warning",
    )
    runs: str = Setting("runs", description="folder the run folders are kept in")

    @model_validator(mode="after")
    def _check_unused_settings(self) -> FitConfig:
        used = (self.optimizer, self.embedding_optimizer)
        faults = []
        for key, default, of in (
            ("momentum", 0.0, ("sgd",)),
            ("betas", (0.9, 0.999), ("adamw", "adam", "lazy_adam", "rowwise_adam")),
            ("initial_accumulator_value", 0.0, ("adagrad", "rowwise_adagrad")),
        ):
            if getattr(self, key) != default and not set(of) & set(used):
                chosen = f"optimizer is {self.optimizer}, embedding_optimizer {self.embedding_optimizer}"
                faults.append(f"{key} is of {', '.join(of)}, but {chosen}")
        if self.warmup_from is not None and not self.warmup_steps:
            faults.append("warmup_from is given without warmup_steps")
        if self.allow_future_weights and self.init_from is None:
            faults.append("allow_future_weights is given without init_from")
        if self.warmup_from is not None and self.warmup_from > self.lr:
            faults.append(f"warmup_from is {self.warmup_from:g}, above lr {self.lr:g}: a warm-up rises")
        if faults:
            raise ValueError("; ".join(faults))
        return self


class EvaluateConfig(Strict):
    """How a finished model is measured."""

    renamed_keys: ClassVar[Mapping[str, str]] = {"unit": "resample", "replicates": "n_resamples"}

    batch_size: int = Setting(4096, ge=1, description="rows scored at once")
    resample: Literal["user", "row"] = Setting("user", description="what the bootstrap draws: whole users, or rows")
    n_resamples: int = Setting(300, ge=2, description="bootstrap draws behind every interval")
    seed: int = Setting(0, ge=0, description="of the bootstrap")
    sample_weight: str | None = Setting(
        None, description="column of the log that weighs each row in every metric, those of validations too"
    )

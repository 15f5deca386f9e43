"""Settings of training (section ``fit``) and evaluation (section ``evaluate``) of a config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field as Setting
from pydantic import model_validator

from longrec.config import Strict
from longrec.data.settings import TimestampT
from longrec.signatures import show_keys
from longrec.training.schedules import Rate, Schedule

Device = Literal["auto", "cpu", "cuda"]
Dense = Literal["adamw", "adam", "adagrad", "sgd"]
Tables = Literal["lazy_adam", "rowwise_adam", "adagrad", "rowwise_adagrad", "sgd"]
Beta = Annotated[float, Setting(ge=0, lt=1)]
Cuts = Annotated[tuple[Annotated[int, Setting(ge=1)], ...], Setting(min_length=1)]


@show_keys
class FitConfig(Strict):
    """Settings of training. Defaults were chosen on four logs, with two epochs and three validations per epoch."""

    renamed_keys: ClassVar[Mapping[str, str]] = {
        "optimiser": "optimizer",
        "tables_optimiser": "embedding_optimizer",
        "tables_lr": "embedding_lr",
        "accumulator": "initial_accumulator_value",
        "by_length": "bucket_by_length",
        "validations_per_epoch": "val_checks_per_epoch",
        "start_from": "init_from",
    }

    epochs: int = Setting(2, ge=1, description="epochs over the training rows; click models overfit after one to three")
    max_steps: int | None = Setting(None, ge=1, description="maximum number of batches, also inside an epoch")
    batch_size: int = Setting(1024, ge=1, description="training rows per step")
    optimizer: Dense = Setting("adamw", description="optimizer of the dense parameters")
    lr: float = Setting(1e-3, gt=0, description="learning rate of the dense parameters")
    weight_decay: float = Setting(
        0.0,
        ge=0,
        description="weight decay of the dense matrices, without biases and norms; decoupled with adamw, "
        "L2 regularization (added to the gradient) with other optimizers",
    )
    momentum: float = Setting(0.0, ge=0, lt=1, description="momentum of sgd")
    betas: tuple[Beta, Beta] = Setting((0.9, 0.999), description="beta1 and beta2 of Adam")
    initial_accumulator_value: float = Setting(0.0, ge=0, description="initial accumulator value of Adagrad")
    warmup_steps: int = Setting(0, ge=0, description="warm-up steps of both learning rates")
    warmup_from: Rate | None = Setting(
        None, description="learning rate of the first warm-up step; default: one step above zero"
    )
    schedule: Schedule = Setting(
        Schedule(), description="schedule of both learning rates, for example {name: cosine, steps: 9000}"
    )
    embedding_optimizer: Tables = Setting(
        "lazy_adam", description="optimizer of the embedding tables; updates only the embeddings looked up in the batch"
    )
    embedding_lr: float | None = Setting(None, gt=0, description="learning rate of the embedding tables; default: lr")
    l2: float = Setting(1e-5, ge=0, description="L2 penalty on the embeddings looked up in the batch")
    clip_norm: float | None = Setting(None, gt=0, description="maximum gradient norm of all parameters together")
    bf16: bool = Setting(False, description="compute in bfloat16 where autocast allows it; weights stay fp32")
    bucket_by_length: bool = Setting(
        False, description="batches of rows with similar history length: faster for models that pad, lower quality"
    )
    group_requests: bool = Setting(
        False,
        description="batch the rows of one request (user, timestamp, context) together and encode their history once, "
        "if the model can; faster where requests have several impressions",
    )
    val_checks_per_epoch: int = Setting(3, ge=1, description="validations per epoch")
    check_val_every_n_epoch: int = Setting(1, ge=1, description="epochs between two epochs with validations")
    monitor: str | None = Setting(
        None,
        min_length=1,
        description="validation metric that selects the best checkpoint: log_loss, auc or gauc of a ranker (the last "
        "two ignore calibration), ndcg@K, hr@K or mrr of a retriever or a re-ranker, pair_accuracy of alignment; "
        "default: log_loss of a ranker, ndcg@K of a retriever or a re-ranker",
    )
    patience: int = Setting(
        5, ge=0, description="validations without improvement before training stops; 0 never stops early"
    )
    negative_rate: float = Setting(
        1.0, gt=0, le=1, description="share of the negative training rows to keep; scores are corrected for it"
    )
    sample_weight: str | None = Setting(
        None, description="column with the weight of each training row in the loss; default: equal weights"
    )
    ties: Literal["strict", "order"] = Setting(
        "strict",
        description="events that a target of a retriever reads in training: those strictly before its timestamp, or "
        "also earlier rows of the log at that timestamp (past baskets); predictions are always strict",
    )
    windows: Literal["last", "all"] = Setting(
        "last",
        description="events of a user that a retriever learns from in one pass: the last ones, as many as the history "
        "holds, or all, in windows of that length",
    )
    seed: int = Setting(0, ge=0, lt=2**63, description="seed of weights, batch order and dropout: same seed, same run")
    device: Device = Setting("auto", description="device to compute on; auto is the GPU if torch can use one")
    threads: int = Setting(1, ge=1, description="torch threads")
    log_steps: int = Setting(
        50, ge=1, description="number of batches between two entries of the mean training loss in metrics.jsonl"
    )
    checkpoint_seconds: float | None = Setting(
        60.0, gt=0, description="seconds between checkpoints for resuming; null disables time-based checkpoints"
    )
    checkpoint_steps: int | None = Setting(None, ge=1, description="batches between checkpoints for resuming")
    tensorboard: Literal["auto", "off"] = Setting("auto", description="auto writes TensorBoard events if installed")
    mlflow: Literal["auto", "off"] = Setting(
        "auto", description="auto logs each validation to MLflow if it is installed (at its tracking address)"
    )
    init_from: str | None = Setting(
        None,
        min_length=1,
        description="folder of a finished run whose last weights and optimizer state training begins with; rows of "
        "embedding tables are matched by value; keep_plug may start from a run of its base, prm and alignment do",
    )
    reset_optimizer: bool = Setting(
        False, description="let init_from load the weights only, and start with a new optimizer state"
    )
    train_from: TimestampT = Setting(
        None,
        description="timestamp of the first row to train on; earlier rows are in histories and vocabularies only. With "
        "init_from, the first moment of the new day",
    )
    allow_future_weights: bool = Setting(
        False,
        description="let init_from accept a run that may be trained or validated on labels of the evaluation period "
        "of this run; results then contain a warning",
    )
    runs: str = Setting("runs", description="folder of the run folders")

    @model_validator(mode="after")
    def _check_unused_settings(self) -> FitConfig:
        used = (self.optimizer, self.embedding_optimizer)
        faults = []
        for key, default, optimizers in (
            ("momentum", 0.0, ("sgd",)),
            ("betas", (0.9, 0.999), ("adamw", "adam", "lazy_adam", "rowwise_adam")),
            ("initial_accumulator_value", 0.0, ("adagrad", "rowwise_adagrad")),
        ):
            if getattr(self, key) != default and not set(optimizers) & set(used):
                chosen = f"optimizer is {self.optimizer}, embedding_optimizer {self.embedding_optimizer}"
                faults.append(f"{key} applies only to {', '.join(optimizers)}, but {chosen}")
        if self.warmup_from is not None and not self.warmup_steps:
            faults.append("warmup_from is given without warmup_steps")
        if self.group_requests and self.bucket_by_length:
            faults.append("bucket_by_length is given with group_requests, which batches rows by request; remove one")
        if self.check_val_every_n_epoch > 1 and self.val_checks_per_epoch > 1:
            faults.append("check_val_every_n_epoch is given with val_checks_per_epoch above 1; set that to 1")
        for key in ("allow_future_weights", "reset_optimizer"):
            if getattr(self, key) and self.init_from is None:
                faults.append(f"{key} is given without init_from")
        if self.warmup_from is not None and self.warmup_from > self.lr:
            faults.append(f"warmup_from is {self.warmup_from:g}, but must not exceed lr {self.lr:g}")
        if faults:
            raise ValueError("; ".join(faults))
        return self


def find_set_keys(config: Strict, keys: Sequence[str], section: str) -> list[str]:
    """Return the keys with another value than their default, as ``section.key``."""
    fields = type(config).model_fields
    return [f"{section}.{key}" for key in keys if getattr(config, key) != fields[key].default]


@show_keys
class EvaluateConfig(Strict):
    """Settings of evaluation."""

    renamed_keys: ClassVar[Mapping[str, str]] = {"unit": "resample", "replicates": "n_resamples"}

    batch_size: int = Setting(
        4096, ge=1, description="rows scored at once, or fewer with histories of over 250,000 events together"
    )
    resample: Literal["user", "row"] = Setting("user", description="unit of the bootstrap: whole users, or rows")
    n_resamples: int = Setting(300, ge=2, description="bootstrap draws per interval")
    seed: int = Setting(0, ge=0, description="seed of the bootstrap")
    sample_weight: str | None = Setting(
        None, description="column with the weight of each row in all metrics, also in validations"
    )
    k: Cuts = Setting((10,), description="cuts of HR and NDCG of a retriever or a re-ranker")
    recall_k: Cuts = Setting((50, 200), description="cuts of recall of a retriever, for lists that a ranker gets")
    seen: Literal["mask", "mask_same_time", "keep"] = Setting(
        "mask",
        description="items of the user's earlier events in the ranking of a retriever: masked, or kept; "
        "mask_same_time also masks those of earlier rows with the timestamp of the target, as published protocols do",
    )
    catalog: Literal["existing", "all"] = Setting(
        "existing",
        description="items that a retriever's ranking has: those with an event before the timestamp of the target, or "
        "all items of the log; the target is always one",
    )
    valid_rows: int | None = Setting(
        None, ge=1, description="rows that a validation of a retriever measures, drawn once; default: all"
    )
    list_rows: int | None = Setting(
        2000,
        ge=0,
        description="rows whose lists of a retriever are measured for coverage, Gini, entropy, novelty and popularity "
        "bias by longrec evaluate, drawn once; 0 for none, null for all",
    )
    sampled_negatives: int | None = Setting(
        None,
        ge=1,
        description="also rank each target of a retriever among so many sampled items, in longrec evaluate, to compare "
        "with papers that do; these metrics begin with sampled_ and can order models the other way",
    )

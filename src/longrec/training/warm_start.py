"""Warm start: training that begins with the last weights and optimizer state of another run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from longrec.errors import RunError
from longrec.features.feature_encoders import Encoder, IdEncoder, dump_encoder
from longrec.features.fitted_schema import FittedSchema
from longrec.models.core.base import Model
from longrec.models.core.registry import name_of
from longrec.training import checkpoint
from longrec.training.finished_run import open_earlier_run
from longrec.training.hook_record import read_record
from longrec.training.hooks import Hooks
from longrec.training.negative_correction import move_rate
from longrec.training.optimizers import build_optimizers
from longrec.training.settings import FitConfig


def warm_start(
    run_path: str | Path,
    model: Model,
    optimizers: Mapping[str, Optimizer],
    config: FitConfig,
    fitted: FittedSchema,
    hooks: Hooks | None = None,
) -> None:
    """Load the last weights and optimizer state of a finished run into a model and its optimizers.

    Every tensor of the run must exist in the model under the prefix of the other model (``Model.warm_start_prefix``),
    and the reverse. Tensors outside the prefix, as those of a plug, keep their initial values. The last checkpoint is
    loaded, not the best one, because the optimizer state belongs to it.

    Args:
        fitted: encoders of the log of the new training. Ids must have the same meaning as in the run.
        hooks: optimizers of one's own. The run must have been trained with functions of the same names.

    Raises:
        RunError: no finished run, weights that do not fit, another optimizer, or other vocabularies.
    """
    run = open_earlier_run(run_path, model)
    with torch.random.fork_rng(devices=[]):  # the random generator of the run is not restored
        old = run.model()
        _check_own_optimizers(f"fit.init_from: {run_path}", run.folder, hooks or Hooks())
        before = build_optimizers(old, run.config.fit, hooks or Hooks())
        state = checkpoint.load(run.folder / "checkpoints" / "last", old, before)
    where = f"fit.init_from: {run_path}"
    if state is None:
        raise RunError(where, "no checkpoints/last", "a complete run folder", "copy the complete run")
    _check_same_optimizers(where, run.config.fit, config)
    _check_same_ids(where, old, run.fitted, fitted)
    inherit(model, old, where)
    move_rate(model, old, run.config.fit.negative_rate, config.negative_rate)
    move_optimizer_state(model, optimizers, old, before)


def inherit(model: Model, old: Model, where: str) -> None:
    """Load the weights and running statistics of another model.

    Raises:
        RunError: a missing or an unexpected tensor. No tensor was changed.
    """
    prefix, own, old_state = model.warm_start_prefix(old), model.state_dict(), old.state_dict()
    faults = [f"{name} is unexpected" for name in old_state if prefix + name not in own]
    faults += [
        f"{name} is missing" for name in own if name.startswith(prefix) and name.removeprefix(prefix) not in old_state
    ]
    faults += [
        f"{name} is {_format_shape(tensor)}, not {_format_shape(own[prefix + name])}"
        for name, tensor in old_state.items()
        if prefix + name in own and tensor.shape != own[prefix + name].shape
    ]
    if faults:
        more = f"; and {len(faults) - 4} more" if len(faults) > 4 else ""
        raise RunError(
            where,
            f"a {name_of(old)} whose weights do not fit this {name_of(model)}: {'; '.join(faults[:4])}{more}",
            "the same model with the same fields" + (", or the base of this one" if prefix else ""),
            "give it the settings and the schema of that run",
        )
    model.load_state_dict({**own, **{prefix + name: tensor for name, tensor in old_state.items()}})


def move_optimizer_state(
    model: Model, optimizers: Mapping[str, Optimizer], old: Model, before: Mapping[str, Optimizer]
) -> None:
    """Copy the optimizer state of another model, parameter by parameter."""
    prefix, own = model.warm_start_prefix(old), dict(model.named_parameters())
    names = {id(parameter): name for name, parameter in old.named_parameters()}
    for kind, optimizer in before.items():
        for parameter, state in optimizer.state.items():
            target = own[prefix + names[id(parameter)]]
            if not target.requires_grad:
                continue
            for key, value in state.items():
                checkpoint.set_state(optimizers[kind], target, key, value)


def _check_own_optimizers(where: str, folder: Path, hooks: Hooks) -> None:
    """Refuse the state of an optimizer of one's own for another optimizer."""
    before, now = read_record(folder), hooks.record()
    for key in ("optimizer", "embedding_optimizer"):
        if before.get(key) != now.get(key):
            one, other = before.get(key) or f"fit.{key}", now.get(key) or f"fit.{key}"
            raise RunError(where, f"state of {one}", f"that of {other}", f"give the same {key} to longrec.fit")


def _check_same_optimizers(where: str, before: FitConfig, now: FitConfig) -> None:
    for key in ("optimizer", "embedding_optimizer"):
        one, other = getattr(before, key), getattr(now, key)
        if one != other:
            raise RunError(where, f"state of {one}", f"that of {other}", f"set fit.{key}: {one}")
    if before.momentum != now.momentum and "sgd" in (now.optimizer, now.embedding_optimizer):
        setting = f"fit.momentum: {before.momentum:g}"
        raise RunError(where, f"state of {setting}", f"that of {now.momentum:g}", f"set {setting}")


def _check_same_ids(where: str, old: Model, before: FittedSchema, now: FittedSchema) -> None:
    """Refuse encoders that map values to other ids or numbers than those of the old model."""
    for field in old.fields.distinct_fields():
        one, other = before.encoders.get(field.name), now.encoders.get(field.name)
        if one is None and other is None:
            continue  # computed columns, tokens and knowledge
        same = one is not None and other is not None and _encoding_state(one) == _encoding_state(other)
        if same and isinstance(one, IdEncoder) and isinstance(other, IdEncoder):
            same = one.keys.values.equals(other.keys.values)
        if not same:
            raise RunError(
                where,
                f"feature {field.name!r} has another encoding: its ids have another meaning in this log",
                "the same vocabularies, edges and scales",
                "train on the same prepared log, or fix them in the schema (vocab, hash, edges)",
            )


def _encoding_state(encoder: Encoder) -> dict[str, Any]:
    """Return the state that determines the id of a value. The number of distinct values of a hash does not."""
    return {key: value for key, value in dump_encoder(encoder).items() if key != "distinct"}


def _format_shape(tensor: Tensor | nn.Parameter) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"

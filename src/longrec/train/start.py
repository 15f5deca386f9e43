"""Warm starts: training that begins with the weights and the optimizer moments another run ended with."""

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
from longrec.models.core.base import Model, name_of
from longrec.train import checkpoint
from longrec.train.negatives import move_rate
from longrec.train.optimisers import build_optimisers
from longrec.train.run import open_run
from longrec.train.settings import FitConfig


def init_from(
    place: str | Path, model: Model, optimizers: Mapping[str, Optimizer], config: FitConfig, fitted: FittedSchema
) -> None:
    """Put what a finished run ended with into a model and its optimizers.

    Every tensor of the run must find its place, and every tensor of the model must get one, except what stands outside
    the place of the other model (``Model.warm_start_prefix``): a plug begins as it was built. The last checkpoint is
    taken, not the best one, since the moments belong to it.

    Args:
        fitted: how the log of the new training is encoded: an id must mean what it meant.

    Raises:
        RunError: no finished run, weights that do not fit, another optimizer, or other vocabularies.
    """
    run = open_run(place)
    with torch.random.fork_rng(devices=[]):  # the run's random generator is not ours
        old = run.model()
        before = build_optimisers(old, run.config.fit)
        state = checkpoint.load(run.folder / "checkpoints" / "last", old, before)
    where = f"fit.init_from: {place}"
    if state is None:
        raise RunError(where, "no checkpoints/last", "the run as training left it", "copy the run whole")
    _same_optimisers(where, run.config.fit, config)
    _same_ids(where, old, run.fitted, fitted)
    inherit(model, old, where)
    move_rate(model, old, run.config.fit.negative_rate, config.negative_rate)
    move_moments(model, optimizers, old, before)


def inherit(model: Model, old: Model, where: str) -> None:
    """Give a model the weights and running statistics of another.

    Raises:
        RunError: a tensor without its place, or a place without its tensor; nothing was changed.
    """
    home, own, given = model.warm_start_prefix(old), model.state_dict(), old.state_dict()
    faults = [f"{name} has no place" for name in given if home + name not in own]
    faults += [f"nothing for {name}" for name in own if name.startswith(home) and name.removeprefix(home) not in given]
    faults += [
        f"{name} is {_shape(tensor)}, not {_shape(own[home + name])}"
        for name, tensor in given.items()
        if home + name in own and tensor.shape != own[home + name].shape
    ]
    if faults:
        more = f"; and {len(faults) - 4} more" if len(faults) > 4 else ""
        raise RunError(
            where,
            f"a {name_of(old)} whose weights do not fit this {name_of(model)}: {'; '.join(faults[:4])}{more}",
            "the same model with the same fields" + (", or the base of this one" if home else ""),
            "give it the settings and the schema of that run",
        )
    model.load_state_dict({**own, **{home + name: tensor for name, tensor in given.items()}})


def move_moments(
    model: Model, optimizers: Mapping[str, Optimizer], old: Model, before: Mapping[str, Optimizer]
) -> None:
    """Give the optimizers of a model the state that another model's optimizers hold, parameter by parameter."""
    home, own = model.warm_start_prefix(old), dict(model.named_parameters())
    names = {id(parameter): name for name, parameter in old.named_parameters()}
    for kind, optimizer in before.items():
        for parameter, state in optimizer.state.items():
            heir = own[home + names[id(parameter)]]
            optimizers[kind].state[heir] = {
                key: value.clone() if isinstance(value, Tensor) else value for key, value in state.items()
            }


def _same_optimisers(where: str, before: FitConfig, now: FitConfig) -> None:
    for key in ("optimizer", "embedding_optimizer"):
        one, other = getattr(before, key), getattr(now, key)
        if one != other:
            raise RunError(where, f"moments of {one}", f"those of {other}", f"set fit.{key}: {one}")
    if before.momentum != now.momentum and "sgd" in (now.optimizer, now.embedding_optimizer):
        told = f"fit.momentum: {before.momentum:g}"
        raise RunError(where, f"moments of {told}", f"those of {now.momentum:g}", f"set {told}")


def _same_ids(where: str, old: Model, before: FittedSchema, now: FittedSchema) -> None:
    """Whether values become the ids and numbers that the old model knows."""
    for field in old.fields.tables():
        one, other = before.encoders.get(field.name), now.encoders.get(field.name)
        if one is None and other is None:
            continue  # computed columns, tokens and knowledge
        same = one is not None and other is not None and _meaning(one) == _meaning(other)
        if same and isinstance(one, IdEncoder) and isinstance(other, IdEncoder):
            same = one.keys.values.equals(other.keys.values)
        if not same:
            raise RunError(
                where,
                f"feature {field.name!r} was encoded otherwise: its ids do not mean what they mean in this log",
                "the same vocabularies, edges and scales",
                "train on the same prepared log, or fix them in the schema (vocab, hash, edges)",
            )


def _meaning(encoder: Encoder) -> dict[str, Any]:
    """What decides the id of a value; how many values a hash met in training does not."""
    return {key: value for key, value in dump_encoder(encoder).items() if key != "distinct"}


def _shape(tensor: Tensor | nn.Parameter) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"

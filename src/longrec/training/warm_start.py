"""Warm start: training that begins with the last weights and optimizer state of another run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from longrec.errors import RunError
from longrec.features.fitted_schema import FittedSchema
from longrec.models.core.base import Model
from longrec.models.core.registry import name_of
from longrec.nn.embedding import Embeddings
from longrec.training import checkpoint
from longrec.training.finished_run import Run, open_earlier_run
from longrec.training.hook_record import read_record
from longrec.training.hooks import Hooks
from longrec.training.negative_correction import move_rate
from longrec.training.optimizers import build_optimizers
from longrec.training.row_matches import (
    CarryReport,
    RowMatch,
    TableReport,
    describe_change,
    find_encoding_fault,
    match_rows,
)
from longrec.training.settings import FitConfig
from longrec.training.sparse_optimizers import SparseOptimizer

_SHOWN = 12
"""Number of faults in a message."""


def warm_start(
    run_path: str | Path,
    model: Model,
    optimizers: Mapping[str, Optimizer],
    config: FitConfig,
    fitted: FittedSchema,
    hooks: Hooks | None = None,
) -> CarryReport:
    """Load the last weights and optimizer state of a finished run into a model and its optimizers.

    Every tensor of the run must exist in the model under the prefix of the other model (``Model.warm_start_prefix``),
    and the reverse. Tensors outside the prefix, as those of a plug, keep their initial values. Rows of embedding tables
    are matched by the values that they stand for (``training/row_matches.py``). Rows of new values keep their initial
    values. The last checkpoint is loaded, not the best one, because the optimizer state belongs to it. A model with
    ``starts_from_best`` reads the best weights of another model, without optimizer state, and its rows of new values
    have the vectors of unseen ones: so this part scores as the run that is served.

    Args:
        config: with ``reset_optimizer``, the optimizers keep their initial state.
        fitted: encoders of the log of the new training.
        hooks: optimizers of one's own. The run must have been trained with functions of the same names.

    Raises:
        RunError: no finished run, weights or encodings that do not fit, or another optimizer.
    """
    run = open_earlier_run(run_path, model)
    if model.starts_from_best and run.results.get("model") != name_of(model):
        return _load_best(run, model, fitted)
    with torch.random.fork_rng(devices=[]):  # the random generator of the run is not restored
        old = run.model()
        _check_own_optimizers(f"fit.init_from: {run_path}", run.folder, hooks or Hooks())
        before = build_optimizers(old, run.config.fit, hooks or Hooks())
        state = checkpoint.load(run.folder / "checkpoints" / "last", old, before)
    where = f"fit.init_from: {run_path}"
    if state is None:
        raise RunError(where, "no checkpoints/last", "a complete run folder", "copy the complete run")
    if not config.reset_optimizer:
        _check_same_optimizers(where, run.config.fit, config)
    faults, notes = _compare_encodings(old, run.fitted, fitted)
    matches = {} if faults else _match_tables(model, old, run.fitted, fitted)
    inherit(model, old, where, matches, faults)
    move_rate(model, old, run.config.fit.negative_rate, config.negative_rate)
    if not config.reset_optimizer:
        move_optimizer_state(model, optimizers, old, before, matches)
    tables = [
        TableReport(name.removeprefix("embeddings.table_"), len(match.target), match.new, match.dropped)
        for name, match in matches.items()
    ]
    return CarryReport(str(run_path), tables, len(old.state_dict()) - len(tables), not config.reset_optimizer, notes)


def _load_best(run: Run, model: Model, fitted: FittedSchema) -> CarryReport:
    """Load the best weights of a run, which score as those of the run."""
    where, old = f"fit.init_from: {run.folder}", run.model()
    faults, notes = _compare_encodings(old, run.fitted, fitted)
    matches = {} if faults else _match_tables(model, old, run.fitted, fitted)
    inherit(model, old, where, {name: match.fill_unseen() for name, match in matches.items()}, faults)
    model.receive_base()
    tables = [
        TableReport(name.removeprefix("embeddings.table_"), len(match.target), match.new, match.dropped)
        for name, match in matches.items()
    ]
    return CarryReport(str(run.folder), tables, len(old.state_dict()) - len(tables), False, notes)


def inherit(
    model: Model,
    old: Model,
    where: str,
    matches: Mapping[str, RowMatch] | None = None,
    encoding_faults: Sequence[str] = (),
) -> None:
    """Load the weights and running statistics of another model.

    Args:
        matches: rows of the tables of the other model whose rows move, by parameter name.
        encoding_faults: further faults for the message.

    Raises:
        RunError: encoding faults, or missing, unexpected or misshaped tensors. All are listed. No tensor was changed.
    """
    prefix, own, old_state, matches = model.warm_start_prefix(old), model.state_dict(), old.state_dict(), matches or {}
    computed = _list_statistics(old)
    faults = [*encoding_faults, *(f"{name} is unexpected" for name in old_state if prefix + name not in own)]
    faults += [
        f"{name} is missing" for name in own if name.startswith(prefix) and name.removeprefix(prefix) not in old_state
    ]
    misfits = [n for n, tensor in old_state.items() if prefix + n in own and tensor.shape != own[prefix + n].shape]
    misfits = [name for name in misfits if name not in computed]
    if encoding_faults:  # which explain the heights of tables
        misfits = [name for name in misfits if "table_" not in name]
    for name in misfits:
        shapes = old_state[name].shape, own[prefix + name].shape
        if name not in matches or shapes[0][1:] != shapes[1][1:]:
            faults.append(f"{name} is {_format_shape(old_state[name])}, not {_format_shape(own[prefix + name])}")
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise RunError(
            where,
            f"a {name_of(old)} whose weights do not fit this {name_of(model)}: {'; '.join(faults[:_SHOWN])}{more}",
            "the same model with the same fields" + (", or the base of this one" if prefix else ""),
            "give it the settings and the schema of that run",
        )
    loaded = {name: tensor for name, tensor in old_state.items() if tensor.shape == own[prefix + name].shape}
    loaded |= {name: match.copy(old_state[name], own[prefix + name]) for name, match in matches.items()}
    model.load_state_dict({**own, **{prefix + name: tensor for name, tensor in loaded.items()}})


def move_optimizer_state(
    model: Model,
    optimizers: Mapping[str, Optimizer],
    old: Model,
    before: Mapping[str, Optimizer],
    matches: Mapping[str, RowMatch] | None = None,
) -> None:
    """Copy the optimizer state of another model, parameter by parameter, and of tables row by row.

    Args:
        matches: rows of the tables whose rows move, by parameter name. New rows have the state before a first step.
    """
    prefix, own, matches = model.warm_start_prefix(old), dict(model.named_parameters()), matches or {}
    names = {id(parameter): name for name, parameter in old.named_parameters()}
    for kind, optimizer in before.items():
        for parameter, state in optimizer.state.items():
            name = names[id(parameter)]
            target, match = own[prefix + name], matches.get(name)
            if not target.requires_grad:
                continue
            fresh: Mapping[str, Any] = {}
            if match is not None:
                moved = optimizers[kind]
                assert isinstance(moved, SparseOptimizer)
                fresh = moved.build_state(target)
            for key, value in state.items():
                if match is not None and key in fresh:
                    value = match.copy(value, fresh[key])
                checkpoint.set_state(optimizers[kind], target, key, value)


def _match_tables(model: Model, old: Model, before: FittedSchema, now: FittedSchema) -> dict[str, RowMatch]:
    """Return the matches of all tables of the other model whose rows move, by parameter name."""
    prefix, own, matches = model.warm_start_prefix(old), dict(model.named_parameters()), {}
    for path, module in old.named_modules():
        for parameter, owner in module.table_owners().items() if isinstance(module, Embeddings) else ():
            name = f"{path}.{parameter}" if path else parameter
            one, other, target = before.encoders.get(owner), now.encoders.get(owner), own.get(prefix + name)
            if one is None or other is None or target is None:
                continue
            match = match_rows(one, other, len(old.get_parameter(name)), len(target))
            if match is not None:
                matches[name] = match
    return matches


def _compare_encodings(old: Model, before: FittedSchema, now: FittedSchema) -> tuple[list[str], list[str]]:
    """Return the encodings that cannot be matched, and a note per feature whose numbers have another meaning."""
    faults, notes = [], []
    for field in old.fields.distinct_fields():
        one, other = before.encoders.get(field.name), now.encoders.get(field.name)
        if fault := find_encoding_fault(field.name, one, other):
            faults.append(fault)
        elif note := describe_change(field.name, one, other):
            notes.append(note)
    return faults, notes


def _list_statistics(model: Model) -> set[str]:
    """Return the names of the tensors that a model computes from the training window."""
    names = set()
    for path, module in model.named_modules():
        if isinstance(module, Model):
            names |= {f"{path}.{name}" if path else name for name in module.statistics}
    return names


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


def _format_shape(tensor: Tensor | nn.Parameter) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"

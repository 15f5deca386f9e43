"""Optimizers of a model and their learning rates: lazy for the embedding tables, dense for other parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from longrec.errors import ConfigError
from longrec.models.core.base import Model
from longrec.nn.row_sums import sum_by_row
from longrec.training.hooks import Hooks, OptimizerFunction
from longrec.training.schedules import warmup
from longrec.training.settings import FitConfig
from longrec.training.sparse_optimizers import LazyAdagrad, LazyAdam, LazySGD, RowwiseAdagrad

_NO_HOOKS = Hooks()
_OWN_RATE = "own_lr"
"""Key of a group with the learning rate that an optimizer of one's own was built with."""


def build_optimizers(model: Model, config: FitConfig, hooks: Hooks = _NO_HOOKS) -> dict[str, Optimizer]:
    """Return the optimizers ``dense`` and ``tables``, each only if the model has such parameters.

    Raises:
        ConfigError: an optimizer of one's own that does not train exactly the parameters it is given.
    """
    tables = list(model.embedding_parameters())
    own = {id(table) for table in tables}
    dense = [parameter for parameter in model.parameters() if id(parameter) not in own and parameter.requires_grad]
    optimizers: dict[str, Optimizer] = {}
    if dense and hooks.optimizer is not None:
        optimizers["dense"] = _build_own(hooks.optimizer, dense, "optimizer")
    elif dense:
        groups = [
            {"params": [p for p in dense if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in dense if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizers["dense"] = _build_dense([group for group in groups if group["params"]], config)
    if tables and hooks.embedding_optimizer is not None:
        optimizers["tables"] = _build_own(hooks.embedding_optimizer, tables, "embedding_optimizer")
    elif tables:
        optimizers["tables"] = _build_embedding(tables, config)
    return optimizers


def _build_own(build: OptimizerFunction, parameters: list[nn.Parameter], setting: str) -> Optimizer:
    """Return the optimizer of one's own function. The learning rate that it sets is that of every step, see below."""
    optimizer: Any = build(parameters)
    if not isinstance(optimizer, Optimizer):
        fault = f"{setting}: must return a torch.optim.Optimizer, got {type(optimizer).__name__}"
        raise ConfigError("fit", [fault])
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if trained != {id(parameter) for parameter in parameters}:
        fault = (
            f"{setting}: trains {len(trained)} parameters, and was given {len(parameters)}; it must train all of them"
        )
        raise ConfigError("fit", [fault])
    for group in optimizer.param_groups:
        group[_OWN_RATE] = group.get("lr")
    return optimizer


def _build_dense(groups: list[dict[str, Any]], config: FitConfig) -> Optimizer:
    """Return the fused optimizer of the dense parameters."""
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, lr=config.lr, betas=config.betas, fused=True)
    if config.optimizer == "adagrad":
        return torch.optim.Adagrad(
            groups, lr=config.lr, initial_accumulator_value=config.initial_accumulator_value, fused=True
        )
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def _build_embedding(tables: list[nn.Parameter], config: FitConfig) -> Optimizer:
    """Return the optimizer of the embedding tables, which updates only the embeddings looked up in the batch."""
    rate, kind = config.embedding_lr or config.lr, config.embedding_optimizer
    if kind == "sgd":
        return LazySGD(tables, lr=rate, l2=config.l2, momentum=config.momentum)
    if kind == "adagrad":
        return LazyAdagrad(tables, lr=rate, l2=config.l2, initial_accumulator_value=config.initial_accumulator_value)
    if kind == "rowwise_adagrad":
        return RowwiseAdagrad(tables, lr=rate, l2=config.l2, initial_accumulator_value=config.initial_accumulator_value)
    return LazyAdam(tables, lr=rate, betas=config.betas, l2=config.l2, rowwise=kind == "rowwise_adam")


def set_learning_rates(optimizers: dict[str, Optimizer], config: FitConfig, step: int) -> None:
    """Set the learning rates of a step: schedule x warm-up factor.

    The learning rates of the embedding tables and of optimizers of one's own are multiplied by the same factors.

    Args:
        step: number of steps done before.
    """
    factor = warmup(config.warmup_steps, config.warmup_from, config.lr, step)
    factor *= config.schedule.rate(config.lr, step) / config.lr
    for name, optimizer in optimizers.items():
        rate = config.lr if name == "dense" else config.embedding_lr or config.lr
        for group in optimizer.param_groups:
            own = group.get(_OWN_RATE, rate)
            if own is not None:
                group["lr"] = own * factor


@torch.no_grad()
def clip(model: Model, max_norm: float) -> None:
    """Clip the global gradient norm, including the gradients of the embedding tables, to ``max_norm``.

    Pascanu et al., ICML 2013, algorithm 1.
    """
    gradients: list[Tensor] = []
    for parameter in model.parameters():
        grad = parameter.grad
        if grad is None:
            continue
        if grad.is_sparse:
            # The norm is that of the sums, because a raw sparse gradient may repeat rows.
            rows, sums, distinct = sum_by_row(grad)
            sums = sums if distinct is None else sums * distinct.unsqueeze(1)
            parameter.grad = torch.sparse_coo_tensor(rows.unsqueeze(0), sums, grad.shape, check_invariants=False)
            grad = sums
        gradients.append(grad)
    if not gradients:
        return
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients]))
    # A factor of 1 changes no bit. A test of the norm on the host would wait for the device.
    factor = torch.where(norm > max_norm, max_norm / norm, 1.0)
    for gradient in gradients:
        gradient.mul_(factor)

"""Which optimiser moves which parameter: AdamW the dense ones, a lazy one the tables."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from longrec.models.base import Model
from longrec.nn.sparse_optim import LazyAdam, RowwiseAdagrad, grouped
from longrec.train.settings import FitConfig


def build_optimisers(model: Model, config: FitConfig) -> dict[str, Optimizer]:
    """``dense`` and ``tables``, each only where the model has such parameters."""
    tables = list(model.tables())
    own = {id(table) for table in tables}
    dense = [parameter for parameter in model.parameters() if id(parameter) not in own and parameter.requires_grad]
    optimisers: dict[str, Optimizer] = {}
    if dense:
        groups = [
            {"params": [p for p in dense if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in dense if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimisers["dense"] = torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, fused=True)
    if tables:
        rate = config.tables_lr or config.lr
        if config.tables_optimiser == "rowwise_adagrad":
            optimisers["tables"] = RowwiseAdagrad(tables, lr=rate, l2=config.l2)
        else:
            rowwise = config.tables_optimiser == "rowwise_adam"
            optimisers["tables"] = LazyAdam(tables, lr=rate, l2=config.l2, rowwise=rowwise)
    return optimisers


def set_rates(optimisers: dict[str, Optimizer], config: FitConfig, step: int) -> None:
    """Learning rates of a step: rising in a line over the first ``warmup_steps``, then as configured.

    Args:
        step: steps done before.
    """
    if step > config.warmup_steps or not config.warmup_steps:
        return
    share = min((step + 1) / config.warmup_steps, 1.0)
    for name, optimiser in optimisers.items():
        rate = config.lr if name == "dense" else config.tables_lr or config.lr
        for group in optimiser.param_groups:
            group["lr"] = rate * share


@torch.no_grad()
def clip(model: Model, longest: float) -> None:
    """Shorten all gradients together, those of the tables too, to a norm of at most ``longest``.

    Pascanu et al., ICML 2013, algorithm 1.
    """
    parts: list[Tensor] = []
    for parameter in model.parameters():
        grad = parameter.grad
        if grad is None:
            continue
        if grad.is_sparse:
            # The norm is that of the sums: equal rows come several times in a raw sparse gradient.
            rows, sums = grouped(grad)
            parameter.grad = torch.sparse_coo_tensor(rows.unsqueeze(0), sums, grad.shape, check_invariants=False)
            grad = sums
        parts.append(grad)
    if not parts:
        return
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(part) for part in parts]))
    if norm > longest:
        share = longest / norm
        for part in parts:
            part.mul_(share)

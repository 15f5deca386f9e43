"""Optimizers that update only the rows of a table that the batch looked up.

Every step groups the equal ids of a sparse gradient, sums their gradients and updates those rows. The rest of the table
and its state stay the same to the bit. The cost of a step does not grow with the table.

Steps are counted per table, not per row. Adam's bias correction uses the number of steps of the table, so a row that
first occurs late in training takes a somewhat longer first step than one that occurs at once.

``l2`` is the mini-batch-aware penalty of DIN (section 5.1) with the same weight for every row: ``l2 * row`` is added to
the gradient of the looked-up rows only.

Shapes: R rows of a table, D width, m distinct rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from longrec.nn.row_sums import sum_by_row


class SparseOptimizer(Optimizer, ABC):
    """Base class of the sparse optimizers: grouping, the penalty and the count of steps."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the rows that have a gradient.

        Raises:
            TypeError: a gradient is dense. These optimizers are for tables with sparse gradients.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is None:
                    continue
                if not table.grad.is_sparse:
                    raise TypeError(f"{type(self).__name__} takes sparse gradients, but this parameter has a dense one")
                state = self.state[table]
                if not state:
                    state["step"] = torch.tensor(0)
                    self._init_state(group, table, state)
                state["step"] += 1
                rows_m, g_mD, _ = sum_by_row(table.grad)  # repeated rows are written with equal values
                p_mD = table.index_select(0, rows_m)
                if group["l2"]:
                    g_mD.add_(p_mD, alpha=group["l2"])
                self._update_rows(group, state, rows_m, g_mD, p_mD)
                table.index_copy_(0, rows_m, p_mD)
        return loss

    def build_state(self, table: Tensor) -> dict[str, Any]:
        """Return the state of a table before its first step, without the count of steps."""
        group = next(one for one in self.param_groups if any(own is table for own in one["params"]))
        state: dict[str, Any] = {}
        self._init_state(group, table, state)
        return state

    @abstractmethod
    def _init_state(self, group: dict[str, Any], table: Tensor, state: dict[str, Any]) -> None:
        """Create the state of a table."""

    @abstractmethod
    def _update_rows(self, group: dict[str, Any], state: dict[str, Any], rows: Tensor, g: Tensor, p: Tensor) -> None:
        """Update the rows ``p`` in place, and write their state back."""


class LazySGD(SparseOptimizer):
    """Stochastic gradient descent: ``p -= lr g``, or with momentum ``b = momentum b + g``, ``p -= lr b``.

    The momentum ``b`` of a row decays only when the row is looked up.
    """

    def __init__(self, params: ParamsT, lr: float = 0.01, momentum: float = 0.0, l2: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "l2": l2})

    def _init_state(self, group: dict[str, Any], table: Tensor, state: dict[str, Any]) -> None:
        if group["momentum"]:
            state["momentum"] = torch.zeros_like(table)

    def _update_rows(self, group: dict[str, Any], state: dict[str, Any], rows: Tensor, g: Tensor, p: Tensor) -> None:
        if group["momentum"]:
            g = state["momentum"].index_select(0, rows).mul_(group["momentum"]).add_(g)
            state["momentum"].index_copy_(0, rows, g)
        p.add_(g, alpha=-group["lr"])


class LazyAdagrad(SparseOptimizer):
    """Adagrad with one accumulator per weight: ``a += g^2``, ``p -= lr g / (sqrt(a) + eps)``.

    Without ``l2`` it is exactly Adagrad, in which a weight with a zero gradient does not move either.

    Args:
        initial_accumulator_value: initial value of every accumulator.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.01,
        eps: float = 1e-10,
        l2: float = 0.0,
        initial_accumulator_value: float = 0.0,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "eps": eps, "l2": l2, "initial_accumulator_value": initial_accumulator_value}
        )

    def _init_state(self, group: dict[str, Any], table: Tensor, state: dict[str, Any]) -> None:
        state["accumulator"] = torch.full_like(table, group["initial_accumulator_value"])

    def _update_rows(self, group: dict[str, Any], state: dict[str, Any], rows: Tensor, g: Tensor, p: Tensor) -> None:
        a_mD = state["accumulator"].index_select(0, rows).addcmul_(g, g)
        state["accumulator"].index_copy_(0, rows, a_mD)
        p.addcdiv_(g, a_mD.sqrt_().add_(group["eps"]), value=-group["lr"])


class RowwiseAdagrad(SparseOptimizer):
    """Adagrad with one accumulator per row: ``a += mean(g^2)``, ``p -= lr g / (sqrt(a) + eps)``.

    Args:
        initial_accumulator_value: initial value of every accumulator.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.01,
        eps: float = 1e-10,
        l2: float = 0.0,
        initial_accumulator_value: float = 0.0,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "eps": eps, "l2": l2, "initial_accumulator_value": initial_accumulator_value}
        )

    def _init_state(self, group: dict[str, Any], table: Tensor, state: dict[str, Any]) -> None:
        state["accumulator"] = table.new_full((table.shape[0],), group["initial_accumulator_value"])

    def _update_rows(self, group: dict[str, Any], state: dict[str, Any], rows: Tensor, g: Tensor, p: Tensor) -> None:
        a_m = state["accumulator"].index_select(0, rows).add_(g.square().mean(1))
        state["accumulator"].index_copy_(0, rows, a_m)
        p.addcdiv_(g, a_m.sqrt().add_(group["eps"]).unsqueeze(1), value=-group["lr"])


class LazyAdam(SparseOptimizer):
    """Adam whose moving averages decay only when their row is looked up.

    Args:
        rowwise: one average of squared gradients per row (the mean over its width) instead of one per weight: half the
            state.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        l2: float = 0.0,
        rowwise: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "l2": l2, "rowwise": rowwise})

    def _init_state(self, group: dict[str, Any], table: Tensor, state: dict[str, Any]) -> None:
        state["moment1"] = torch.zeros_like(table)
        state["moment2"] = table.new_zeros(table.shape[0]) if group["rowwise"] else torch.zeros_like(table)

    def _update_rows(self, group: dict[str, Any], state: dict[str, Any], rows: Tensor, g: Tensor, p: Tensor) -> None:
        beta1, beta2 = group["betas"]
        step = int(state["step"])
        m = state["moment1"].index_select(0, rows).lerp_(g, 1 - beta1)
        square = g.square().mean(1) if group["rowwise"] else g.square_()
        v = state["moment2"].index_select(0, rows).lerp_(square, 1 - beta2)
        state["moment1"].index_copy_(0, rows, m)
        state["moment2"].index_copy_(0, rows, v)
        root = v.div_(1 - beta2**step).sqrt_().add_(group["eps"])
        p.addcdiv_(m, root.unsqueeze(1) if group["rowwise"] else root, value=-group["lr"] / (1 - beta1**step))

"""Sum of the training losses since the last line of the metrics, kept on the device until it is read."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from longrec.errors import RunError

_NEVER = 2**62


class RunningLoss:
    """Sum of the losses of steps, each weighted by its number of rows.

    On the CPU a loss that is not finite is an error before the weights change. On a GPU the host would have to wait for
    every step. There the loss is checked when the sum is read, which must happen before weights are saved.

    Args:
        where: name of the run for messages.
        bf16: the run computes in bfloat16.
        total, rows: the sum so far.
    """

    def __init__(self, where: str, bf16: bool, total: float = 0.0, rows: int = 0) -> None:
        self.where, self.bf16, self.rows = where, bf16, rows
        self._total: float | Tensor = total
        self._first_bad: Tensor | None = None

    def add(self, loss: Tensor, rows: int, step: int) -> None:
        """Add the loss of a step.

        Args:
            step: number of steps done before.

        Raises:
            RunError: on the CPU, a loss that is not finite.
        """
        self.rows += rows
        if loss.device.type == "cpu":
            value = loss.item()
            self._refuse(step, value)
            self._total += value * rows
            return
        loss = loss.detach().double()
        bad = torch.where(loss.isfinite(), _NEVER, step)
        self._first_bad = bad if self._first_bad is None else torch.minimum(self._first_bad, bad)
        self._total = self._total + loss * rows

    def read(self) -> float:
        """Return the sum.

        Raises:
            RunError: a loss that was not finite.
        """
        if isinstance(self._total, Tensor):
            assert self._first_bad is not None
            total, first_bad = torch.stack([self._total, self._first_bad.double()]).tolist()
            if first_bad < _NEVER:
                self._refuse(int(first_bad), total if not math.isfinite(total) else math.nan)
            self._total, self._first_bad = float(total), None
        return float(self._total)

    def reset(self) -> None:
        """Start a new sum."""
        self._total, self.rows, self._first_bad = 0.0, 0, None

    def _refuse(self, step: int, value: float) -> None:
        if not math.isfinite(value):
            raise RunError(
                f"{self.where}: step {step + 1:,}",
                f"the loss is {value}",
                "a finite number",
                "lower fit.lr, or set fit.clip_norm or fit.warmup_steps; check for extreme values in numeric features"
                + ("; train without fit.bf16" if self.bf16 else ""),
            )

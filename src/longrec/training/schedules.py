"""Learning rate schedules of a run, and the warm-up factor.

A step is one update of the weights, on one batch. The learning rate depends only on the number of steps, so a resumed
run has the same rates as an uninterrupted one. With n the number of completed steps minus ``hold``, at least 0:

    constant      lr
    exponential   max(lr factor^(n / steps), floor); staircase: n / steps rounded down
    polynomial    (lr - floor) (1 - min(n / steps, 1))^power + floor
    cosine        (lr - floor) (1 + cos(pi min(n / steps, 1))) / 2 + floor
    step          rates[i] after at[i] completed steps, lr before; ramp: linear from lr to rates[0] until at[0]
    transformer   lr width^(-1/2) min((n s + 1) (warmup s)^(-3/2), (n s + 1)^(-1/2)) with s = scale

``floor`` is the minimum learning rate.

Cosine: Loshchilov and Hutter, ICLR 2017; transformer: Vaswani et al., NeurIPS 2017, eq. 3.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import Annotated, Literal

from pydantic import Field as Setting
from pydantic import model_validator

from longrec.config import Strict

Kind = Literal["constant", "exponential", "polynomial", "cosine", "step", "transformer"]
Rate = Annotated[float, Setting(ge=0)]

_NEEDED: dict[str, tuple[str, ...]] = {
    "constant": (),
    "exponential": ("steps", "factor"),
    "polynomial": ("steps",),
    "cosine": ("steps",),
    "step": ("at", "rates"),
    "transformer": ("width", "warmup"),
}
_ALLOWED: dict[str, tuple[str, ...]] = {
    "exponential": ("floor", "staircase", "hold"),
    "polynomial": ("floor", "power", "hold"),
    "cosine": ("floor", "hold"),
    "step": ("ramp",),
    "transformer": ("scale",),
}


class Schedule(Strict):
    """Schedule of the learning rate."""

    name: Kind = Setting("constant", description="shape of the schedule")
    steps: int | None = Setting(None, ge=1, description="steps of the whole decay, or of one factor (exponential)")
    factor: float | None = Setting(None, gt=0, le=1, description="exponential: factor per `steps` steps")
    staircase: bool = Setting(
        False, description="exponential: round n / `steps` down, so that the rate changes only every `steps` steps"
    )
    floor: Rate = Setting(0.0, description="minimum learning rate")
    power: float = Setting(1.0, gt=0, description="polynomial: exponent; 1 is linear")
    hold: int = Setting(0, ge=0, description="steps at the full rate before the decay begins")
    at: tuple[Annotated[int, Setting(ge=1)], ...] | None = Setting(
        None, min_length=1, description="schedule step: numbers of completed steps at which the learning rate changes"
    )
    rates: tuple[Rate, ...] | None = Setting(
        None, min_length=1, description="schedule step: learning rates; rates[i] applies from at[i] on"
    )
    ramp: bool = Setting(False, description="schedule step: change linearly from lr to the first of `rates`")
    width: int | None = Setting(None, ge=1, description="transformer: the width of the model")
    warmup: int | None = Setting(
        None, ge=1, description="transformer: warm-up steps of the formula, in addition to warmup_steps"
    )
    scale: float = Setting(1.0, gt=0, description="transformer: multiplier of the step number")

    @model_validator(mode="after")
    def _check_keys(self) -> Schedule:
        needed, own = _NEEDED[self.name], {*_NEEDED[self.name], *_ALLOWED.get(self.name, ())}
        faults = [f"{key} is required with name: {self.name}" for key in needed if getattr(self, key) is None]
        for key, setting in type(self).model_fields.items():
            if key != "name" and key not in own and getattr(self, key) != setting.default:
                takes = f"it takes {', '.join(sorted(own))}" if own else "it takes no key"
                faults.append(f"{key} does not belong to name: {self.name}; {takes}")
        if self.at is not None and any(after <= before for before, after in zip(self.at, self.at[1:])):
            faults.append(f"at must rise, got {list(self.at)}")
        if self.at is not None and self.rates is not None and len(self.at) != len(self.rates):
            faults.append(f"rates and at must have the same length, got {len(self.rates)} and {len(self.at)}")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def rate(self, lr: float, step: int) -> float:
        """Return the learning rate of a step.

        Args:
            lr: initial learning rate.
            step: number of steps done before.
        """
        done = max(step - self.hold, 0)
        fraction = min(done / self.steps, 1.0) if self.steps else 0.0
        match self.name:
            case "exponential":
                assert self.steps is not None
                assert self.factor is not None
                times = done // self.steps if self.staircase else done / self.steps
                return max(lr * self.factor**times, self.floor)
            case "polynomial":
                return (lr - self.floor) * (1 - fraction) ** self.power + self.floor
            case "cosine":
                return (lr - self.floor) * (1 + math.cos(math.pi * fraction)) / 2 + self.floor
            case "step":
                return self._step_rate(lr, step)
            case "transformer":
                return self._transformer_rate(lr, step)
        return lr

    def _step_rate(self, lr: float, step: int) -> float:
        assert self.at is not None
        assert self.rates is not None
        index = bisect_right(self.at, step)
        if index:
            return self.rates[index - 1]
        return lr + (self.rates[0] - lr) * step / self.at[0] if self.ramp else lr

    def _transformer_rate(self, lr: float, step: int) -> float:
        assert self.width is not None
        assert self.warmup is not None
        n, warmup = step * self.scale + 1, self.warmup * self.scale
        return float(lr * self.width**-0.5 * min(n * warmup**-1.5, n**-0.5))


def warmup(steps: int, start: float | None, lr: float, step: int) -> float:
    """Return the warm-up factor of a step: rising over the first ``steps`` steps, 1 after them.

    Args:
        start: learning rate of step 0. None begins one step above zero.
        lr: learning rate at the end.
        step: number of steps done before.
    """
    if step >= steps:
        return 1.0
    if start is None:
        return (step + 1) / steps
    return (start + (lr - start) * step / steps) / lr

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from longrec.config import parse
from longrec.errors import ConfigError
from longrec.training.optimizers import set_learning_rates
from longrec.training.schedules import Schedule, warmup
from longrec.training.settings import FitConfig


def rates(settings: dict[str, Any], steps: range, lr: float = 0.1) -> list[float]:
    schedule = parse(Schedule, settings, "job.yaml", "fit.schedule")
    return [schedule.rate(lr, step) for step in steps]


def test_constant_is_the_rate_to_the_bit() -> None:
    assert rates({}, range(0, 10**6, 10**5)) == [0.1] * 10


def test_exponential_in_stairs_and_smooth() -> None:
    stairs = {"name": "exponential", "steps": 2, "factor": 0.5, "staircase": True}
    assert rates(stairs, range(6)) == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.025, 0.025])
    assert rates({**stairs, "floor": 0.04}, range(6)) == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.04, 0.04])
    smooth = {"name": "exponential", "steps": 2, "factor": 0.5, "hold": 3}
    assert rates(smooth, range(7)) == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.1 / 2**0.5, 0.05, 0.05 / 2**0.5])


def test_polynomial_ends_at_its_floor() -> None:
    line = {"name": "polynomial", "steps": 4, "floor": 0.02}
    assert rates(line, range(7)) == pytest.approx([0.1, 0.08, 0.06, 0.04, 0.02, 0.02, 0.02])
    square = {"name": "polynomial", "steps": 4, "power": 2.0}
    assert rates(square, range(5)) == pytest.approx([0.1 * (1 - n / 4) ** 2 for n in range(5)])


def test_cosine_falls_to_its_floor_and_stays() -> None:
    curve = {"name": "cosine", "steps": 4, "floor": 0.02, "hold": 1}
    expected = [0.1, *(0.08 * (1 + math.cos(math.pi * n / 4)) / 2 + 0.02 for n in range(5)), 0.02]
    assert rates(curve, range(7)) == pytest.approx(expected)


def test_steps_jump_and_ramp() -> None:
    stairs = {"name": "step", "at": [2, 5], "rates": [0.04, 0.01]}
    assert rates(stairs, range(7)) == [0.1, 0.1, 0.04, 0.04, 0.04, 0.01, 0.01]
    assert rates({**stairs, "ramp": True}, range(4)) == pytest.approx([0.1, 0.07, 0.04, 0.04])


def test_transformer_rises_to_its_warmup_and_falls_like_the_root() -> None:
    values = rates({"name": "transformer", "width": 16, "warmup": 4}, range(16), lr=2.0)
    assert values[3] == max(values) == pytest.approx(2 / 4 / 2)
    assert values[0] == pytest.approx(2 / 4 * 4**-1.5)
    assert values[15] == pytest.approx(2 / 4 / 4)


def test_warm_up_times_schedule_for_dense_and_tables() -> None:
    """The published burn-in: linear from its rate to lr, then the decay."""
    config = FitConfig(
        lr=0.1,
        embedding_lr=0.4,
        warmup_steps=4,
        warmup_from=0.02,
        schedule=Schedule(name="exponential", steps=2, factor=0.5, staircase=True, hold=4, floor=0.03),
    )
    table = torch.nn.Embedding(3, 2, sparse=True)
    dense, tables = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))]), torch.optim.SGD(table.parameters())
    values = []
    for step in range(10):
        set_learning_rates({"dense": dense, "tables": tables}, config, step)
        values.append((dense.param_groups[0]["lr"], tables.param_groups[0]["lr"]))
    expected = [0.02, 0.04, 0.06, 0.08, 0.1, 0.1, 0.05, 0.05, 0.03, 0.03]
    assert [rate for rate, _ in values] == pytest.approx(expected)
    assert [rate for _, rate in values] == pytest.approx([4 * rate for rate in expected])


def test_warm_up_without_a_first_rate_begins_one_step_above_zero() -> None:
    assert [warmup(4, None, 0.1, step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert warmup(0, None, 0.1, 0) == 1.0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"name": "exponential"}, "steps is required with name: exponential; factor is required"),
        ({"name": "constant", "steps": 5}, "steps does not belong to name: constant; it takes no key"),
        ({"name": "cosine", "steps": 5, "power": 2}, "power does not belong to name: cosine; it takes floor, hold"),
        ({"name": "step", "at": [5, 5], "rates": [0.1, 0.2]}, "at must rise, got [5, 5]"),
        ({"name": "step", "at": [5, 6], "rates": [0.1]}, "rates and at must have the same length, got 1 and 2"),
        ({"name": "cosin", "steps": 5}, "fit.schedule.name: must be one of"),
        ({"name": "cosine", "step": 5}, "fit.schedule.step: unknown key; did you mean 'steps'?"),
        ({"name": "exponential", "steps": 5, "factor": 1.5}, "fit.schedule.factor: input should be less than"),
    ],
)
def test_keys_of_another_schedule_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(Schedule, settings, "job.yaml", "fit.schedule")
    assert says in str(caught.value)


def test_settings_written_out_are_read_again() -> None:
    fit_config = FitConfig(schedule=Schedule(name="step", at=(3,), rates=(0.1,)))
    assert parse(FitConfig, fit_config.model_dump(mode="json"), "config.yaml", "fit") == fit_config

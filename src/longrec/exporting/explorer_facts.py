"""Description of the explorer of a bundle, and its noise from the seed of a request. No torch is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from numpy.typing import NDArray

from longrec.exploration.noise import Noise, draw_noise
from longrec.exporting.inputs import NOISE

if TYPE_CHECKING:
    from longrec.exploration.explorer import Explorer


class ExplorerFacts(msgspec.Struct, frozen=True):
    """Description of an explorer, in addition to its program.

    Attributes:
        name: its name, such as ``age``.
        task: task whose probability is explored.
        settings: its settings.
        noise: what the program reads besides the request.
    """

    name: str
    task: str
    settings: dict[str, Any]
    noise: list[Noise]

    def draw(self, seed: int, candidates: int) -> dict[str, NDArray[Any]]:
        """Return the noise inputs of a request: ``[1, W]`` or ``[C, W]`` each, by the name of the input."""
        drawn = draw_noise(self.noise, seed, candidates)
        return {f"{NOISE}{name}": array for name, array in drawn.items()}


def describe_explorer(explorer: Explorer) -> ExplorerFacts:
    """Return the description of an explorer."""
    from longrec.exploration.choice import name_explorer  # imports torch

    return ExplorerFacts(
        name=name_explorer(explorer),
        task=explorer.settings.task,
        settings=explorer.settings.model_dump(mode="json"),
        noise=list(explorer.noise),
    )


def draw_uniform(seed: int, name: str) -> float:
    """Return a number in [0, 1) of a seed. Each name has a stream of its own.

    >>> draw_uniform(3, "coin") == draw_uniform(3, "coin") != draw_uniform(3, "other")
    True
    """
    return float(draw_noise([Noise(name, "request", 1, "uniform")], seed, 1)[name][0, 0])

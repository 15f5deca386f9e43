"""Choice of an explorer by name: ``{name: age, strength: 0.002}``.

age        a step of the item's embeddings along the gradient, as large as the prediction is uncertain
ucb        Monte Carlo dropout, an upper confidence bound
thompson   Monte Carlo dropout, one draw
ensemble   further runs of the schema, one of them or their deviation
gradient   norm of the gradient of the last layer
epsilon    a random order of a share of the requests
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import Field

from longrec.config import parse
from longrec.errors import ConfigError, nearest
from longrec.exploration.age import Age
from longrec.exploration.baselines import UCB, EpsilonGreedy, Thompson, WeightGradient
from longrec.exploration.ensemble import Ensemble
from longrec.exploration.explorer import Explorer
from longrec.exploration.gate import Gate
from longrec.exploration.settings import (
    AgeSettings,
    EnsembleSettings,
    EpsilonGreedySettings,
    GradientSettings,
    TaskSettings,
    ThompsonSettings,
    UCBSettings,
)
from longrec.models.core.kinds import Ranker

WHERE = "explore"
"""Location of faults of the settings of an explorer."""


class RunsSettings(EnsembleSettings):
    """Settings of exploration by several trained runs, with the folders of the further runs."""

    runs: tuple[str, ...] = Field(description="Folders of further runs, trained on the same schema.", min_length=1)


EXPLORERS: dict[str, type[TaskSettings]] = {
    "age": AgeSettings,
    "ucb": UCBSettings,
    "thompson": ThompsonSettings,
    "ensemble": RunsSettings,
    "gradient": GradientSettings,
    "epsilon": EpsilonGreedySettings,
}
"""Settings of each explorer, by its name."""


def read_explorer(content: Mapping[str, Any]) -> TaskSettings:
    """Return the settings of an explorer from a mapping with its ``name``.

    Raises:
        ConfigError: if there is no such explorer, or a setting has a fault. All are listed.
    """
    name = content.get("name")
    if name not in EXPLORERS:
        near = nearest(str(name), EXPLORERS)
        hint = f"did you mean {near!r}?" if near else f"known: {', '.join(EXPLORERS)}"
        raise ConfigError(WHERE, [f"name: {'is required' if name is None else f'no explorer {name!r}'}; {hint}"])
    return parse(EXPLORERS[name], {key: value for key, value in content.items() if key != "name"}, WHERE)


def name_explorer(explorer: Explorer) -> str:
    """Return the name of an explorer, that of its class if it is not one of these."""
    classes: dict[type[Explorer], str] = {
        Age: "age",
        UCB: "ucb",
        Thompson: "thompson",
        Ensemble: "ensemble",
        WeightGradient: "gradient",
        EpsilonGreedy: "epsilon",
    }
    return classes.get(type(explorer), type(explorer).__name__)


def build_explorer(
    settings: TaskSettings,
    model: Ranker,
    fit: Callable[[str], Gate] | None = None,
    members: Sequence[Ranker] = (),
) -> Explorer:
    """Return the explorer of a trained ranker.

    Args:
        fit: function that returns the fitted gate of a task, called if the settings want one.
        members: the further models of an ensemble.

    Raises:
        ConfigError: if the model cannot explore this way. The message names it.
    """
    if isinstance(settings, AgeSettings):
        gate = fit(settings.task) if settings.gate and fit is not None else None
        return Age(model, settings, gate)
    if isinstance(settings, EnsembleSettings):
        own = {name: value for name, value in settings.model_dump().items() if name in EnsembleSettings.model_fields}
        return Ensemble([model, *members], EnsembleSettings(**own))
    if isinstance(settings, UCBSettings):
        return UCB(model, settings)
    if isinstance(settings, ThompsonSettings):
        return Thompson(model, settings)
    if isinstance(settings, GradientSettings):
        return WeightGradient(model, settings)
    assert isinstance(settings, EpsilonGreedySettings)
    return EpsilonGreedy(model, settings)

"""Construction of models in Python: ``DIN(fields, attention=(80, 40), seed=0)``.

The signature and the docstring of a model class show its settings. Weights depend on the seed alone, so that a model
built here starts from the weights that a config with the same seed starts from.
"""

from __future__ import annotations

import inspect
from abc import ABCMeta
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from longrec.config import Strict, parse
from longrec.errors import ConfigError
from longrec.features.fields import Fields
from longrec.signatures import list_parameters, list_setting_lines


@dataclass(frozen=True)
class Construction:
    """How the weights of a model were drawn.

    Attributes:
        seed: seed of the random generator.
        random_state: state of the generator afterwards.
        sums: sum of each weight and statistic, which shows later that one was changed.
    """

    seed: int
    random_state: Tensor
    sums: Mapping[str, float]

    def matches(self, model: nn.Module) -> bool:
        """Return True if the weights of a model are those that were drawn."""
        return compute_sums(model) == self.sums


def compute_sums(model: nn.Module) -> dict[str, float]:
    """Return the sum of every parameter and buffer of a model, in float64."""
    return {name: float(value.detach().sum(dtype=torch.float64)) for name, value in model.state_dict().items()}


class ModelType(ABCMeta):
    """Class of all model classes: builds a model from its fields and keyword settings."""

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **options: Any) -> None:
        super().__init__(name, bases, namespace, **options)
        if not inspect.isabstract(cls) and _takes_config(cls):
            text = inspect.cleandoc(namespace.get("__doc__") or f"Model {name}.")
            cls.__doc__ = "\n".join([text, "", *_describe_arguments(cls)])

    def __call__(cls, *arguments: Any, **settings: Any) -> Any:
        """Build a model from fields and keyword settings, or from a config object and fields.

        Raises:
            ConfigError: settings that cannot be used, all together, or no fields.
        """
        of_config = len(arguments) > 1 and (isinstance(arguments[0], Strict) or isinstance(arguments[1], Fields))
        if of_config or not _takes_config(cls):
            return super().__call__(*arguments, **settings)
        fields, *more = arguments or (settings.pop("fields", None),)
        if not isinstance(fields, Fields) or more:
            got = f"got {type(fields).__name__}" if not more else f"and {len(more)} more without a name"
            example = f"{cls.__name__}(log.fields(), ...), with every setting by its name"
            raise ConfigError(cls.__name__, [f"fields: must be the fields of a prepared log, {got}; write {example}"])
        seed = settings.pop("seed", 0)
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
            raise ConfigError(cls.__name__, [f"seed: must be a whole number from 0 to 2**63 - 1, got {seed!r}"])
        config = parse(cls.Config, settings, cls.__name__)  # type: ignore[attr-defined]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = super().__call__(config, fields)
            model.construction = Construction(seed, torch.get_rng_state(), compute_sums(model))
        return model

    @property
    def __signature__(cls) -> inspect.Signature:
        """The fields, the seed and every setting of the model."""
        if not _takes_config(cls):
            raise AttributeError("__signature__")
        positional, named = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
        parameters = [inspect.Parameter("fields", positional, annotation=Fields)]
        parameters += list_parameters(cls.Config)  # type: ignore[attr-defined]
        parameters.append(inspect.Parameter("seed", named, default=0, annotation=int))
        return inspect.Signature(parameters)


def _takes_config(cls: Any) -> bool:
    """Return True for a model class with settings, whose constructor takes them and the fields."""
    if not isinstance(getattr(cls, "Config", None), type):
        return False
    return list(inspect.signature(cls.__init__).parameters)[1:3] == ["config", "fields"]


def _describe_arguments(cls: Any) -> Iterator[str]:
    yield "Args:"
    yield "    fields: the inputs of the model: ``fields()`` of a prepared log."
    yield "    seed: seed of the initial weights. Default 0."
    yield ""
    yield "Settings:"
    yield from list_setting_lines(cls.Config)

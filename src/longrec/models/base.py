"""What a model is, and how one is found and built.

The folder is the registry: ``din`` is ``models/din.py``; a dotted path is a module of yours. A module defines exactly
one concrete model, with a ``Config`` of its own.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from inspect import isabstract, isclass
from typing import Any, ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from longrec.config import Strict, parse
from longrec.errors import ConfigError, UnknownName
from longrec.features.batch import Batch
from longrec.features.schema import Fields
from longrec.models.catalogue import Card, describe, help_text, names
from longrec.nn.embedding import Embeddings

__all__ = ["Card", "Model", "Ranker", "build", "describe", "find", "help_text", "name_of", "names", "one_width"]


class Model(nn.Module, ABC):
    """A model: it sees a ``Batch`` and returns tensors; it opens no file and knows no loop.

    Attributes:
        Config: its settings, each with a default and a description.
        reads_history: whether it reads what the user did before.
        order_matters: whether the order of the events in a history may change a score.
        variants: settings that the conformance suite runs besides the defaults.
    """

    Config: ClassVar[type[Strict]]
    reads_history: ClassVar[bool] = False
    order_matters: ClassVar[bool] = False
    variants: ClassVar[tuple[dict[str, Any], ...]] = ()

    def __init__(self, config: Any, fields: Fields) -> None:
        super().__init__()
        self.config: Any = config
        self.fields = fields

    @abstractmethod
    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """The training loss, a mean over the rows of the batch."""

    def tables(self) -> list[nn.Parameter]:
        """Embedding tables: sparse gradients, sharded when large; all other parameters are dense."""
        return [table for part in self.modules() if isinstance(part, Embeddings) for table in part.tables()]


class Ranker(Model):
    """A model that scores each row."""

    @abstractmethod
    def forward(self, batch: Batch) -> Float[Tensor, " B"]:
        """The logit of every row."""

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Mean binary cross entropy of the logits, in float32."""
        if batch.label is None:
            raise ValueError("the batch carries no label")
        return F.binary_cross_entropy_with_logits(self(batch).float(), batch.label)

    def explain(self, batch: Batch) -> dict[str, Tensor]:
        """Where a score comes from: for each history the weight of its positions, if the model has such weights.

        Ragged ``[N]``; shared ``[B, T]``.
        """
        return {}


def find(name: str) -> type[Model]:
    """The class of a model: ``din`` is ours, ``my_team.models.din2`` is yours.

    Raises:
        UnknownName: no such model.
        ConfigError: the module does not define exactly one concrete model.
    """
    if "." not in name and name not in names():
        raise UnknownName("model", name, names())
    path = name if "." in name else f"longrec.models.{name}"
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name and (path == error.name or path.startswith(error.name + ".")):
            raise UnknownName("model", name, names()) from None
        raise
    here = [
        found
        for found in vars(module).values()
        if isclass(found) and issubclass(found, Model) and found.__module__ == path and not isabstract(found)
    ]
    if len(here) != 1:
        found_names = ", ".join(found.__name__ for found in here) or "none"
        raise ConfigError(path, [f"must define exactly one concrete model, found {found_names}"])
    return here[0]


def name_of(model: Model) -> str:
    """The name that finds the class of ``model`` again."""
    return type(model).__module__.removeprefix("longrec.models.")


def build(section: Mapping[str, Any], fields: Fields, where: str = "config") -> Model:
    """A model from its section of a config: ``{name: din, attention: [80, 40]}``.

    Args:
        where: the file named in a message.

    Raises:
        ConfigError: unknown name, unknown or wrong keys (all of them), or settings that do not fit the fields.
    """
    settings = dict(section)
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(where, ["model.name: is required, the name of a model"])
    cls = find(name)
    return cls(parse(cls.Config, settings, where, prefix="model"), fields)


def one_width(fields: Fields, dim: int, model: str) -> int:
    """The one embedding width of all features, for models that multiply fields with each other.

    Raises:
        ConfigError: the schema asks for different widths.
    """
    widths = {field.name: field.dim or dim for field in fields.features}
    if len(set(widths.values())) > 1:
        told = ", ".join(f"{name} {width}" for name, width in widths.items())
        fault = f"model: {model} multiplies fields with each other and needs one dim for all features, got {told}"
        raise ConfigError("schema", [fault])
    return next(iter(widths.values()))

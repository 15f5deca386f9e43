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
from longrec.features.fields import Fields
from longrec.models.catalogue import Card, describe, help_text, names
from longrec.nn.embedding import Embeddings

__all__ = [
    "Card",
    "Encoder",
    "Model",
    "Ranker",
    "base_of",
    "build",
    "cross_entropy",
    "describe",
    "find",
    "help_text",
    "name_of",
    "names",
    "one_width",
]


class Model(nn.Module, ABC):
    """A model: it sees a ``Batch`` and returns tensors; it opens no file and knows no loop.

    Attributes:
        Config: its settings, each with a default and a description.
        reads_history: whether it reads what the user did before.
        order_matters: whether the order of the events in a history may change a score.
        user_order: whether its batches hold consecutive rows of users, each row able to look back at earlier ones.
        variants: settings that the conformance suite runs besides the defaults.
    """

    Config: ClassVar[type[Strict]]
    reads_history: ClassVar[bool] = False
    order_matters: ClassVar[bool] = False
    user_order: bool = False
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
    """A model that scores each row.

    Attributes:
        interaction: width of what ``interact`` returns; 0 for a model that does not offer it.
    """

    interaction: int = 0

    def forward(self, batch: Batch) -> Float[Tensor, " B"]:
        """The logit of every row."""
        return self.head(self.interact(batch))

    def interact(self, batch: Batch) -> Float[Tensor, "B H"]:
        """What the model holds of every row after its features have met: all that ``head`` needs, and what another
        model may build on. A model that overrides ``forward`` alone is no base for others.
        """
        raise NotImplementedError(f"{type(self).__name__} defines neither forward nor interact")

    def head(self, h_BH: Float[Tensor, "B H"]) -> Float[Tensor, " B"]:
        """The logit of what ``interact`` returned."""
        raise NotImplementedError(f"{type(self).__name__} defines neither forward nor head")

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Mean binary cross entropy of the logits, in float32."""
        return cross_entropy(self(batch), batch)

    def explain(self, batch: Batch) -> dict[str, Tensor]:
        """Where a score comes from: for each history the weight of its positions, if the model has such weights.

        Ragged ``[N]``; shared ``[B, T]``.
        """
        return {}


class Encoder(Model):
    """A model that makes one vector of each row, for other models to read.

    It is trained on the label like a ranker, so that it has logits too; those may look at earlier rows of the same
    user in the batch. What ``encode`` returns of a row depends on that row alone.

    Attributes:
        width: numbers of a vector.
        slots: equal parts a vector falls into.
    """

    width: int
    slots: int = 1

    @abstractmethod
    def forward(self, batch: Batch) -> Float[Tensor, " B"]:
        """The logit of every row."""

    @abstractmethod
    def encode(self, batch: Batch) -> Float[Tensor, "B W"]:
        """The vector of every row."""

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Mean binary cross entropy of the logits of the rows that count, in float32."""
        return cross_entropy(self(batch), batch)


def cross_entropy(logit_B: Float[Tensor, " B"], batch: Batch) -> Float[Tensor, ""]:
    """Mean binary cross entropy of the rows that count, in float32.

    Raises:
        ValueError: a batch without labels.
    """
    if batch.label is None:
        raise ValueError("the batch carries no label")
    label_B = batch.label
    if batch.counts is not None:
        logit_B, label_B = logit_B[batch.counts], label_B[batch.counts]
    return F.binary_cross_entropy_with_logits(logit_B.float(), label_B)


def base_of(section: Mapping[str, Any], fields: Fields, where: str) -> Ranker:
    """A ranker that another model builds on, from the nested section that names it.

    Args:
        where: place of the section, such as ``model.base``.

    Raises:
        ConfigError: as ``build``; or a model that is no ranker with ``interact`` and ``head``.
    """
    model = build(section, fields, prefix=where)
    if not isinstance(model, Ranker) or not model.interaction:
        name = section.get("name")
        raise ConfigError("config", [f"{where}.name: {name} cannot be built on; it takes a ranker that has interact"])
    return model


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


def build(section: Mapping[str, Any], fields: Fields, where: str = "config", prefix: str = "model") -> Model:
    """A model from its section of a config: ``{name: din, attention: [80, 40]}``.

    Args:
        where: the file named in a message.
        prefix: place of the section inside it.

    Raises:
        ConfigError: unknown name, unknown or wrong keys (all of them), or settings that do not fit the fields.
    """
    settings = dict(section)
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(where, [f"{prefix}.name: is required, the name of a model"])
    cls = find(name)
    return cls(parse(cls.Config, settings, where, prefix=prefix), fields)


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

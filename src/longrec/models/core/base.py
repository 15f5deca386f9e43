"""Base classes of models, and functions that find a model by name and build it from a config.

The folder is the registry: ``din`` is ``models/din.py``. A dotted path is a module outside the package. A module
defines exactly one concrete model with its own ``Config``.
"""

from __future__ import annotations

import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from inspect import isabstract, isclass
from typing import Annotated, Any, ClassVar

import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from pydantic import AfterValidator
from torch import Tensor, nn

from longrec.config import Strict, parse
from longrec.errors import ConfigError, UnknownName, nearest
from longrec.features.batch import Batch, HistoryBatch
from longrec.features.fields import Fields
from longrec.models.core.catalog import Card, describe, help_text, names
from longrec.nn.embedding import Embeddings

__all__ = [
    "BaseSection",
    "Card",
    "ContextInstances",
    "Encoder",
    "Model",
    "Ranker",
    "UserOrder",
    "bce_loss",
    "build",
    "build_base",
    "compute_mean_loss",
    "describe",
    "find",
    "find_common_width",
    "find_unknown_names",
    "help_text",
    "name_of",
    "names",
]


@dataclass(frozen=True)
class UserOrder:
    """Batch layout of a model whose rows read earlier rows of the same user.

    Attributes:
        rows: longest run of consecutive rows of one user in a batch. Users with more rows are split into several runs.
        context: number of earlier rows of the user put before each run in training, without a loss.
        mirrored: every second pass visits the users in the reverse order of the pass before.
    """

    rows: int = 256
    context: int = 0
    mirrored: bool = False


@dataclass(frozen=True)
class ContextInstances:
    """Stored instances of each row's user, strictly before the row: N instances, concatenated, oldest first per row.

    Attributes:
        vectors: float32 ``[N, W]``, the encoder's output. They get no gradient.
        offsets: int64 ``[B + 1]``.
        times: int64 ``[N]`` timestamps of the instances.
        labels: int64 ``[N]``: 0 none, 1 negative, 2 positive, 3 not available yet.
        label_times: int64 ``[N]`` timestamps at which the labels became available. None where ``labels`` already holds
            what was available at the row's timestamp.
    """

    vectors: Tensor
    offsets: Tensor
    times: Tensor
    labels: Tensor | None = None
    label_times: Tensor | None = None


class Model(nn.Module, ABC):
    """Base class of all models: maps a ``Batch`` to tensors. It opens no file and runs no training loop.

    Attributes:
        Config: class of its settings, each with a default and a description.
        reads_history: True if the model reads the histories of the user.
        history_optional: True if the model also accepts a schema without histories.
        order_matters: True if the order of the events in a history may change a score.
        user_order: layout of its batches where each row reads earlier rows of its user. None for rows in any order.
        targets: further labels that its loss reads from the batch: feedback features with the values 0 and 1. A model
            with such labels defines ``logits``.
        needs_training_window: True if it computes statistics of the training window first, see ``fit_statistics``.
        variants: settings that the conformance suite runs besides the defaults.
        renamed_parameters: old name -> new name of parameters in weights of earlier versions, see ``core/renames.py``.
    """

    Config: ClassVar[type[Strict]]
    reads_history: bool = False
    history_optional: bool = False
    order_matters: bool = False
    user_order: UserOrder | None = None
    targets: tuple[str, ...] = ()
    needs_training_window: bool = False
    variants: ClassVar[tuple[dict[str, Any], ...]] = ()
    renamed_parameters: ClassVar[dict[str, str]] = {}

    def __init__(self, config: Any, fields: Fields) -> None:
        super().__init__()
        self.config: Any = config
        self.fields = fields

    @abstractmethod
    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Return the training loss, a mean over the rows of the batch."""

    def logits(self, batch: Batch) -> Float[Tensor, "B K"]:
        """Return the logit of every label: the schema's, then those of ``targets``."""
        raise NotImplementedError(f"{type(self).__name__} has no logits of several labels")

    def ranking_logit(self, logits_BK: Float[Tensor, "B K"]) -> Float[Tensor, " B"]:
        """Return the logit for ranking, computed from ``logits``. By default that of the schema's label."""
        return logits_BK[:, 0]

    def output_biases(self) -> Sequence[Tensor]:
        """Return the output bias of every label (the schema's, then ``targets``): a parameter of size 1, or a slice.

        Of nested models only the bias of the outermost output counts. A model that returns none starts training
        from one half instead of the base rate, and its results contain a warning.
        """
        return ()

    def start_at_rates(self, rates: Sequence[float]) -> None:
        """Set the output biases so that the first predictions are about the rates of the training rows.

        Called once on a new model, before its first step. Without it the first steps of a rare label only move all
        weights towards its rate.

        Args:
            rates: share of positives per label, between 0 and 1: the schema's label first, then ``targets``.
        """
        for bias, rate in zip(self.output_biases(), rates):
            bias.detach().fill_(math.log(rate / (1 - rate)))

    def warm_start_prefix(self, other: Model) -> str:
        """Return the prefix of another model's parameters here for a warm start. Empty for the same model."""
        return ""

    def fit_statistics(self, chunks: Iterable[Mapping[str, HistoryBatch]]) -> None:
        """Compute statistics of the training window before the first step. They are saved in the ``state_dict``.

        Args:
            chunks: chunks of users, each with their histories, one row per user, without events of valid and test.
        """
        raise NotImplementedError(f"{type(self).__name__} computes no statistics of the training window")

    def embedding_parameters(self) -> list[nn.Parameter]:
        """Return the weights of the embedding tables, the only parameters with sparse gradients."""
        return [p for module in self.modules() if isinstance(module, Embeddings) for p in module.embedding_parameters()]


class Ranker(Model):
    """A model that returns one score per row, that is, per pair of an impression and its item.

    Attributes:
        interaction_width: width of the output of ``interact``. 0 for a model without ``interact``.
    """

    interaction_width: int = 0

    def forward(self, batch: Batch) -> Float[Tensor, " B"]:
        """Return the logit of every row."""
        return self.head(self.interact(batch))

    def interact(self, batch: Batch) -> Float[Tensor, "B H"]:
        """Return the representation of every row after feature interaction: the input of ``head``.

        Another model may build on it. A model that overrides ``forward`` alone cannot be the base of another.
        """
        raise NotImplementedError(f"{type(self).__name__} defines neither forward nor interact")

    def head(self, h_BH: Float[Tensor, "B H"]) -> Float[Tensor, " B"]:
        """Return the logit of every row from its representation."""
        raise NotImplementedError(f"{type(self).__name__} defines neither forward nor head")

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Return the mean binary cross entropy of the logits, in float32, plus the auxiliary loss."""
        return bce_loss(self(batch), batch) + self.aux_loss(batch)

    def aux_loss(self, batch: Batch) -> Float[Tensor, ""] | float:
        """Return the auxiliary loss. Models that build on this one add it to theirs. Default 0."""
        return 0.0

    def explain(self, batch: Batch) -> dict[str, Tensor]:
        """Return the attention weight of every position of each history, if the model has such weights.

        Ragged ``[N]``, shared ``[B, T]``.
        """
        return {}


class Encoder(Model):
    """A model that encodes each row as one vector for other models to read.

    It is trained on the label like a ranker, so it has logits too. They may read earlier rows of the same user in the
    batch. The vector that ``encode`` returns for a row depends on that row alone.

    Attributes:
        width: size of a vector.
        slots: number of equal slots in a vector.
        encodes_in_context: an ablation whose vectors do depend on the earlier rows of the user in the batch.
    """

    width: int
    slots: int = 1
    encodes_in_context: bool = False

    @abstractmethod
    def forward(self, batch: Batch) -> Float[Tensor, " B"]:
        """Return the logit of every row."""

    @abstractmethod
    def encode(self, batch: Batch) -> Float[Tensor, "B W"]:
        """Return the vector of every row."""

    def codebooks(self) -> Float[Tensor, "S M V D"] | None:
        """Return the codebooks of each slot and level, whose codes sum up to the vectors. None without quantization."""
        return None

    def codes(self, batch: Batch) -> UInt8[Tensor, "B C"]:
        """Return the codes of every row, slot by slot, level by level: ``codebooks`` maps them to ``encode``."""
        raise NotImplementedError(f"{type(self).__name__} has no codes")

    def logits_with_context(self, batch: Batch, context: ContextInstances) -> Float[Tensor, " B"]:
        """Return the logit of every row, with earlier rows read from a store and not from the batch.

        An encoder whose logits depend on the row alone ignores the context.
        """
        return self(batch)

    def loss_with_context(self, batch: Batch, context: ContextInstances) -> Float[Tensor, ""]:
        """Return the loss of ``logits_with_context``. Gradients reach the encoding of the batch's own rows only."""
        return bce_loss(self.logits_with_context(batch, context), batch)

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Return the mean binary cross entropy of the rows in the loss mask, in float32."""
        return bce_loss(self(batch), batch)


def bce_loss(logit_B: Float[Tensor, " B"], batch: Batch) -> Float[Tensor, ""]:
    """Return the mean binary cross entropy of the rows in the loss mask, by ``batch.weight`` if set, in float32.

    Raises:
        ValueError: if the batch has no labels.
    """
    if batch.label is None:
        raise ValueError("the batch carries no label")
    label_B, weight_B = batch.label, batch.weight
    if batch.loss_mask is not None:
        logit_B, label_B = logit_B[batch.loss_mask], label_B[batch.loss_mask]
        weight_B = None if weight_B is None else weight_B[batch.loss_mask]
    if weight_B is None and len(label_B):
        return F.binary_cross_entropy_with_logits(logit_B.float(), label_B)
    return _mean(F.binary_cross_entropy_with_logits(logit_B.float(), label_B, reduction="none"), weight_B)


def compute_mean_loss(loss_B: Float[Tensor, " B"], batch: Batch, labeled_B: Bool[Tensor, " B"]) -> Float[Tensor, ""]:
    """Return the mean loss of the labeled rows in the loss mask, by ``batch.weight`` if set. 0 if there are none.

    Args:
        loss_B: the loss of each row, finite for unlabeled rows too.
    """
    if batch.loss_mask is not None:
        labeled_B = labeled_B & batch.loss_mask
    return _mean(loss_B, labeled_B if batch.weight is None else batch.weight.masked_fill(~labeled_B, 0.0))


def _mean(loss_B: Tensor, weight_B: Tensor | None) -> Tensor:
    """Return the weighted mean. It is 0, with its gradients, if all weights are."""
    if weight_B is None:
        return loss_B.sum() / max(len(loss_B), 1)
    total = weight_B.sum()
    return (loss_B * weight_B).sum() / total.masked_fill(total == 0, 1)


def _base_section(section: dict[str, Any]) -> dict[str, Any]:
    settings = dict(section)
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise ValueError("name: is required, the name of a ranker")
    try:
        config = parse(find(name).Config, settings, name)
    except ConfigError as error:
        raise ValueError("; ".join(error.faults)) from None
    return {"name": name, **config.model_dump(mode="json")}


BaseSection = Annotated[dict[str, Any], AfterValidator(_base_section)]
"""Type of a setting that names another model, ``{name: deepfm, mlp: [64]}``: validated, with all defaults."""


def build_base(section: Mapping[str, Any], fields: Fields, where: str) -> Ranker:
    """Build the ranker that another model builds on, from the nested section that names it.

    Args:
        where: path of the section in the config, such as ``model.base``.

    Raises:
        ConfigError: as ``build``, and if the model is not a ranker with ``interact`` and ``head``, or is a multi-task
            model.
    """
    model, name = build(section, fields, prefix=where), section.get("name")
    if not isinstance(model, Ranker) or not model.interaction_width:
        raise ConfigError("config", [f"{where}.name: {name} cannot be a base; it takes a ranker that has interact"])
    if model.targets:
        targets = ", ".join(model.targets)
        do = "build the model of several tasks on the other one"
        raise ConfigError(
            "config", [f"{where}: {name} learns {targets} beside the label, which no loss would read; {do}"]
        )
    return model


def find(name: str) -> type[Model]:
    """Return the class of a model: ``din`` from this package, or ``my_team.models.din2`` from another one.

    Raises:
        UnknownName: if there is no such model.
        ConfigError: if the module does not define exactly one concrete model.
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
        value
        for value in vars(module).values()
        if isclass(value) and issubclass(value, Model) and value.__module__ == path and not isabstract(value)
    ]
    if len(here) != 1:
        class_names = ", ".join(value.__name__ for value in here) or "none"
        raise ConfigError(path, [f"must define exactly one concrete model, found {class_names}"])
    return here[0]


def name_of(model: Model) -> str:
    """Return the name under which ``find`` returns the class of ``model``."""
    return type(model).__module__.removeprefix("longrec.models.")


def build(section: Mapping[str, Any], fields: Fields, where: str = "config", prefix: str = "model") -> Model:
    """Build a model from its section of a config: ``{name: din, attention: [80, 40]}``.

    Args:
        where: file named in messages.
        prefix: path of the section inside the file.

    Raises:
        ConfigError: if the name or keys are unknown, settings are wrong (all are listed), or do not fit the fields.
    """
    settings = dict(section)
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(where, [f"{prefix}.name: is required, the name of a model"])
    cls = find(name)
    return cls(parse(cls.Config, settings, where, prefix=prefix), fields)


def find_unknown_names(setting: str, names: Sequence[str], choices: Collection[str]) -> list[str]:
    """Return the faults of a setting that names features of the impression: unknown names and repeated names."""
    faults = []
    for name in names:
        if name not in choices:
            near = nearest(name, choices)
            hint = f"did you mean {near!r}?" if near else f"features: {', '.join(choices)}"
            faults.append(f"{setting}: {name!r} is no feature of the impression; {hint}")
    return faults + ([f"{setting}: names a feature twice"] if len(set(names)) < len(names) else [])


def find_common_width(fields: Fields, dim: int, model: str) -> int:
    """Return the one embedding width of all features, for models that multiply fields with each other.

    Raises:
        ConfigError: if the schema sets different widths.
    """
    widths = {field.name: field.dim or dim for field in fields.features}
    if len(set(widths.values())) > 1:
        listing = ", ".join(f"{name} {width}" for name, width in widths.items())
        fault = f"model: {model} multiplies fields with each other and needs one dim for all features, got {listing}"
        raise ConfigError("schema", [fault])
    return next(iter(widths.values()))

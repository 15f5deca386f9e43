"""What a model is, and how one is found and built.

The folder is the registry: ``din`` is ``models/din.py``; a dotted path is a module of yours. A module defines exactly
one concrete model, with a ``Config`` of its own.
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
    """How a model wants its batches where rows look back at earlier rows of the same user.

    Attributes:
        rows: longest run of consecutive rows of one user in a batch; longer users are cut into several.
        context: earlier rows of the user put before each run while training, without a loss of their own.
        mirrored: every second pass visits the users in the reverse order of the pass before.
    """

    rows: int = 256
    context: int = 0
    mirrored: bool = False


@dataclass(frozen=True)
class ContextInstances:
    """What a store gives of each row's user before the row: N instances, end to end, oldest first within a row.

    Attributes:
        vectors: float32 ``[N, W]`` as the encoder made them; no gradient enters them.
        offsets: int64 ``[B + 1]``.
        times: int64 ``[N]`` moments of the instances.
        labels: int64 ``[N]``: 0 none, 1 negative, 2 positive, 3 not known yet.
        known: int64 ``[N]`` moments at which the labels became known; None where ``labels`` already tells what was
            known at the row's moment.
    """

    vectors: Tensor
    offsets: Tensor
    times: Tensor
    labels: Tensor | None = None
    label_times: Tensor | None = None


class Model(nn.Module, ABC):
    """A model: it sees a ``Batch`` and returns tensors; it opens no file and knows no loop.

    Attributes:
        Config: its settings, each with a default and a description.
        reads_history: whether it reads what the user did before.
        history_optional: whether it does without histories too, where the schema has none.
        order_matters: whether the order of the events in a history may change a score.
        user_order: how its batches hold consecutive rows of users, each row able to look back at earlier ones; None
            for rows in any order.
        targets: further labels that its loss reads in ``batch.task_labels``: feedback features with the values 0 and 1.
            A model with such labels defines ``logits``.
        looks_back: whether it learns something of the training window before the first step: see ``fit_statistics``.
        variants: settings that the conformance suite runs besides the defaults.
        renamed_parameters: old name -> new name of parameters in weights of earlier versions: see ``core/renames.py``.
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
        """The training loss, a mean over the rows of the batch."""

    def logits(self, batch: Batch) -> Float[Tensor, "B K"]:
        """The logit of every label: the schema's, then those of ``targets``."""
        raise NotImplementedError(f"{type(self).__name__} has no logits of several labels")

    def ranking_logit(self, logits_BK: Float[Tensor, "B K"]) -> Float[Tensor, " B"]:
        """The logit that rows are ranked by, of what ``logits`` returned: as a rule that of the schema's label."""
        return logits_BK[:, 0]

    def output_biases(self) -> Sequence[Tensor]:
        """Per label (the schema's, then ``targets``) what is added to its logit for every row alike: a parameter of one
        number, or a slice of one. Of models inside models only the outermost output has a bias that counts. A model
        that returns none trains from one half instead of the base rate, and its results carry a warning.
        """
        return ()

    def start_at_rates(self, rates: Sequence[float]) -> None:
        """Set the output biases so that the first predictions are about the rates of the training rows.

        Called once on a new model, before its first step. Without it the first steps of a rare label are spent on
        moving all weights towards its rate, and what they move then is not a preference for any item.

        Args:
            rates: of each label between 0 and 1, the schema's first, then ``targets``.
        """
        for bias, rate in zip(self.output_biases(), rates):
            bias.detach().fill_(math.log(rate / (1 - rate)))

    def warm_start_prefix(self, other: Model) -> str:
        """Where the weights of another model belong in this one when training goes on from it: what stands before
        their names here. As a rule nothing: the other model is the same one.
        """
        return ""

    def fit_statistics(self, chunks: Iterable[Mapping[str, HistoryBatch]]) -> None:
        """Learn what users did inside the training window, before the first step. What is learnt belongs to the state.

        Args:
            past: piece by piece the histories of some users, one row a user, nothing of valid and test in them.
        """
        raise NotImplementedError(f"{type(self).__name__} does not look back")

    def tables(self) -> list[nn.Parameter]:
        """Embedding tables: sparse gradients, sharded when large; all other parameters are dense."""
        return [table for module in self.modules() if isinstance(module, Embeddings) for table in module.tables()]


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
        """Mean binary cross entropy of the logits, in float32, and what the model learns beside the label."""
        return bce_loss(self(batch), batch) + self.aux_loss(batch)

    def aux_loss(self, batch: Batch) -> Float[Tensor, ""] | float:
        """What the model learns beside the label, which goes with it where another model builds on it; as a rule 0."""
        return 0.0

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
        encodes_in_context: an ablation whose vectors do depend on the earlier rows of the user in the batch.
    """

    width: int
    slots: int = 1
    encodes_in_context: bool = False

    @abstractmethod
    def forward(self, batch: Batch) -> Float[Tensor, " B"]:
        """The logit of every row."""

    @abstractmethod
    def encode(self, batch: Batch) -> Float[Tensor, "B W"]:
        """The vector of every row."""

    def codebooks(self) -> Float[Tensor, "S M V D"] | None:
        """The codebooks that the vectors are sums of, of each slot and level; None for vectors of free numbers."""
        return None

    def codes(self, batch: Batch) -> UInt8[Tensor, "B C"]:
        """The codes of every row, slot by slot, level by level: ``codebooks`` turns them into ``encode``."""
        raise NotImplementedError(f"{type(self).__name__} makes no codes")

    def logits_with_context(self, batch: Batch, context: ContextInstances) -> Float[Tensor, " B"]:
        """The logit of every row where earlier rows are read from a store; rows of the batch do not see each other.

        An encoder whose logits depend on the row alone has no use for the past.
        """
        return self(batch)

    def loss_with_context(self, batch: Batch, context: ContextInstances) -> Float[Tensor, ""]:
        """``loss`` of ``logits_with_context``; gradients reach the encoding of the batch's own rows only."""
        return bce_loss(self.logits_with_context(batch, context), batch)

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Mean binary cross entropy of the logits of the rows that count, in float32."""
        return bce_loss(self(batch), batch)


def bce_loss(logit_B: Float[Tensor, " B"], batch: Batch) -> Float[Tensor, ""]:
    """Mean binary cross entropy of the rows that count, by ``batch.weight`` where it has one, in float32.

    Raises:
        ValueError: a batch without labels.
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
    """The mean loss of the rows that count and whose label is known, by ``batch.weight``; 0 where there are none.

    Args:
        loss_B: the loss of each row, finite where nothing is known too.
    """
    if batch.loss_mask is not None:
        labeled_B = labeled_B & batch.loss_mask
    return _mean(loss_B, labeled_B if batch.weight is None else batch.weight.masked_fill(~labeled_B, 0.0))


def _mean(loss_B: Tensor, weight_B: Tensor | None) -> Tensor:
    """The weighted mean; 0, with its gradients, where all weights are."""
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
"""The type of a setting that names another model, ``{name: deepfm, mlp: [64]}``: checked, every default filled in."""


def build_base(section: Mapping[str, Any], fields: Fields, where: str) -> Ranker:
    """A ranker that another model builds on, from the nested section that names it.

    Args:
        where: place of the section, such as ``model.base``.

    Raises:
        ConfigError: as ``build``; or a model that is no ranker with ``interact`` and ``head``, or one of several tasks.
    """
    model, name = build(section, fields, prefix=where), section.get("name")
    if not isinstance(model, Ranker) or not model.interaction:
        raise ConfigError("config", [f"{where}.name: {name} cannot be built on; it takes a ranker that has interact"])
    if model.targets:
        targets = ", ".join(model.targets)
        do = "build the model of several tasks on the other one"
        raise ConfigError(
            "config", [f"{where}: {name} learns {targets} beside the label, which nobody would read; {do}"]
        )
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
        value
        for value in vars(module).values()
        if isclass(value) and issubclass(value, Model) and value.__module__ == path and not isabstract(value)
    ]
    if len(here) != 1:
        class_names = ", ".join(value.__name__ for value in here) or "none"
        raise ConfigError(path, [f"must define exactly one concrete model, found {class_names}"])
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


def find_unknown_names(setting: str, names: Sequence[str], choices: Collection[str]) -> list[str]:
    """The faults of a setting that names features of the impression: those that are none, and one that stands twice."""
    faults = []
    for name in names:
        if name not in choices:
            near = nearest(name, choices)
            hint = f"did you mean {near!r}?" if near else f"features: {', '.join(choices)}"
            faults.append(f"{setting}: {name!r} is no feature of the impression; {hint}")
    return faults + ([f"{setting}: names a feature twice"] if len(set(names)) < len(names) else [])


def find_common_width(fields: Fields, dim: int, model: str) -> int:
    """The one embedding width of all features, for models that multiply fields with each other.

    Raises:
        ConfigError: the schema asks for different widths.
    """
    widths = {field.name: field.dim or dim for field in fields.features}
    if len(set(widths.values())) > 1:
        listing = ", ".join(f"{name} {width}" for name, width in widths.items())
        fault = f"model: {model} multiplies fields with each other and needs one dim for all features, got {listing}"
        raise ConfigError("schema", [fault])
    return next(iter(widths.values()))

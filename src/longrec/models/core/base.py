"""Base class of all models, and what their batches hold besides features.

Shapes: B rows, C candidates (rows), K labels, N instances, W width of an encoder's vector.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from longrec.config import Strict
from longrec.errors import ConfigError
from longrec.features.batch import Batch, HistoryBatch
from longrec.features.fields import Fields
from longrec.models.core.construction import Construction, ModelType
from longrec.nn.embedding import Embeddings


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
        host_offsets: the offsets on the host, of instances on another device.
    """

    vectors: Tensor
    offsets: Tensor
    times: Tensor
    labels: Tensor | None = None
    label_times: Tensor | None = None
    host_offsets: NDArray[np.int64] | None = None

    def to(self, device: torch.device) -> ContextInstances:
        """Return a copy on a device. It keeps the offsets on the host."""
        moved = {name: x.to(device, non_blocking=True) for name, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **moved, host_offsets=self.offsets.cpu().numpy())


class Model(nn.Module, metaclass=ModelType):
    """Base class of all models: maps a ``Batch`` to tensors. It opens no file and runs no training loop.

    A model is built from fields and keyword settings, ``DIN(log.fields(), attention=(80, 40), seed=0)``, or from its
    config object and fields.

    Attributes:
        Config: class of its settings, each with a default and a description.
        reads_history: True if the model reads the histories of the user.
        history_optional: True if the model also accepts a schema without histories.
        order_matters: True if the order of the events in a history may change a score.
        reads_groups: True if it reads grouped batches, in which the candidates of a request share its histories. Other
            models get a copy of the history per candidate.
        user_order: layout of its batches where each row reads earlier rows of its user. None for rows in any order.
        targets: further labels that its loss reads from the batch: feedback features with the values 0 and 1. A model
            with such labels defines ``logits``.
        needs_init_from: True if training has to start from the run of another model (``fit.init_from``).
        starts_from_best: True if training that starts from the run of another model (``fit.init_from``) reads its best
            weights, which are those that are served, and not the last ones, which belong to the state of its optimizer.
        monitors: metrics of its validations, besides those of its objective, that can select the best model. Higher is
            better.
        needs_training_window: True if it computes statistics of the training window first, see ``fit_statistics``.
        statistics: names of the tensors that ``fit_statistics`` computes, which may have a row per id.
        variants: settings that the conformance suite runs besides the defaults.
        construction: how its weights were drawn, of a model built from fields and keyword settings.
        trained_by: the run that trained it in this process. None for any other.
        renamed_parameters: old name -> new name of parameters in weights of earlier versions, see ``core/renames.py``.
    """

    Config: ClassVar[type[Strict]]
    reads_history: bool = False
    history_optional: bool = False
    order_matters: bool = False
    reads_groups: bool = False
    user_order: UserOrder | None = None
    targets: tuple[str, ...] = ()
    needs_init_from: bool = False
    starts_from_best: bool = False
    monitors: tuple[str, ...] = ()
    needs_training_window: bool = False
    statistics: tuple[str, ...] = ()
    variants: ClassVar[tuple[dict[str, Any], ...]] = ()
    renamed_parameters: ClassVar[dict[str, str]] = {}
    construction: Construction | None = None
    trained_by: str | None = None

    def __init__(self, config: Any, fields: Fields) -> None:
        super().__init__()
        self.config: Any = config
        self.fields = fields

    @abstractmethod
    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Return the training loss, a mean over the rows of the batch."""

    def logits(self, batch: Batch) -> Float[Tensor, "C K"]:
        """Return the logit of every label: the schema's, then those of ``targets``."""
        raise NotImplementedError(f"{type(self).__name__} has no logits of several labels")

    def ranking_logit(self, logits_CK: Float[Tensor, "C K"]) -> Float[Tensor, " C"]:
        """Return the logit for ranking, computed from ``logits``. By default that of the schema's label."""
        return logits_CK[:, 0]

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

    def served(self) -> Model:
        """Return the model that is exported: a part of this one, or this one itself, the default."""
        return self

    def warm_start_prefix(self, other: Model) -> str:
        """Return the prefix of another model's parameters here for a warm start. Empty for the same model."""
        return ""

    def receive_base(self) -> None:
        """Do what follows when the best weights of another model were loaded into this one. By default nothing."""

    def fit_statistics(self, chunks: Iterable[Mapping[str, HistoryBatch]]) -> None:
        """Compute statistics of the training window before the first step. They are saved in the ``state_dict``.

        Args:
            chunks: chunks of users, each with their histories, one row per user, without events of valid and test.
        """
        raise NotImplementedError(f"{type(self).__name__} computes no statistics of the training window")

    def check_declarations(self) -> None:
        """Check that a model which embeds histories declares that it reads them. Export and reports rely on it.

        Raises:
            ConfigError: it does not.
        """
        if not self.reads_history and any(isinstance(m, Embeddings) and m.fields.histories for m in self.modules()):
            name = type(self).__name__
            fault = f"model: {name} embeds histories, and does not say so; write reads_history = True in class {name}"
            raise ConfigError("fit", [fault])

    def embedding_parameters(self) -> list[nn.Parameter]:
        """Return the weights of the embedding tables in training, the only parameters with sparse gradients."""
        every = (p for m in self.modules() if isinstance(m, Embeddings) for p in m.embedding_parameters())
        return [table for table in every if table.requires_grad]

"""Base classes of models.

A ranker consists of three parts, so that other models can build on each of them:

    embed(batch) -> Embedded            looks up vectors: of requests, of candidates and of histories separately
    interact(batch, embedded) -> [C, H] one representation per candidate
    head(h) -> [C, K]                   the logit of every label

Shapes: C candidates (rows), K labels, H width of a representation, W width of an encoder's vector.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor, nn

from longrec.config import Strict
from longrec.features.batch import Batch, HistoryBatch
from longrec.features.fields import Fields
from longrec.models.core.losses import bce_loss
from longrec.nn.embedding import Embedded, Embeddings


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


class Model(nn.Module, ABC):
    """Base class of all models: maps a ``Batch`` to tensors. It opens no file and runs no training loop.

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
        needs_training_window: True if it computes statistics of the training window first, see ``fit_statistics``.
        variants: settings that the conformance suite runs besides the defaults.
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

    def fit_statistics(self, chunks: Iterable[Mapping[str, HistoryBatch]]) -> None:
        """Compute statistics of the training window before the first step. They are saved in the ``state_dict``.

        Args:
            chunks: chunks of users, each with their histories, one row per user, without events of valid and test.
        """
        raise NotImplementedError(f"{type(self).__name__} computes no statistics of the training window")

    def embedding_parameters(self) -> list[nn.Parameter]:
        """Return the weights of the embedding tables in training, the only parameters with sparse gradients."""
        every = (p for m in self.modules() if isinstance(m, Embeddings) for p in m.embedding_parameters())
        return [table for table in every if table.requires_grad]


class Ranker(Model):
    """A model that returns one score per candidate.

    Attributes:
        interaction_width: H. 0 for a model without ``interact``.
        embeddings: the tables of the features, of the model's own.
    """

    interaction_width: int = 0
    embeddings: Embeddings

    def forward(self, batch: Batch) -> Float[Tensor, " C"]:
        """Return the logit for ranking of every candidate."""
        return self.ranking_logit(self.logits(batch))

    def logits(self, batch: Batch) -> Float[Tensor, "C K"]:
        """Return the logit of every label: the schema's, then those of ``targets``."""
        return self.head(self.represent(batch))

    def represent(self, batch: Batch) -> Float[Tensor, "C H"]:
        """Return ``interact`` of the embedded batch."""
        return self.interact(batch, self.embed(batch))

    def embed(self, batch: Batch) -> Embedded:
        """Look up all vectors: those of the attribute ``embeddings``, and those of further tables."""
        embedded, further = self.embeddings(batch), self.embed_further(batch)
        return replace(embedded, further=further) if further else embedded

    def embed_further(self, batch: Batch) -> dict[nn.Module, Embedded]:
        """Look up the vectors of further tables of this model, by the module that holds them. By default none."""
        return {}

    def interact(self, batch: Batch, embedded: Embedded) -> Float[Tensor, "C H"]:
        """Return the representation of every candidate after feature interaction: the input of ``head``.

        Another model may build on it. A model that overrides ``forward`` alone cannot be the base of another.
        """
        raise NotImplementedError(f"{type(self).__name__} defines neither forward nor interact")

    def head(self, h_CH: Float[Tensor, "C H"]) -> Float[Tensor, "C K"]:
        """Return the logit of every label from the representations."""
        raise NotImplementedError(f"{type(self).__name__} defines neither forward nor head")

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Return the loss of the labels plus the auxiliary loss."""
        if not self.interaction_width:
            return bce_loss(self(batch), batch)
        embedded = self.embed(batch)
        logits_CK = self.head(self.interact(batch, embedded))
        return self.label_loss(logits_CK, batch) + self.aux_loss(batch, embedded)

    def label_loss(self, logits_CK: Float[Tensor, "C K"], batch: Batch) -> Float[Tensor, ""]:
        """Return the loss of the labels. By default the mean binary cross entropy of the schema's, in float32."""
        return bce_loss(logits_CK[:, 0], batch)

    def aux_loss(self, batch: Batch, embedded: Embedded) -> Float[Tensor, ""] | float:
        """Return the auxiliary loss. Models that build on this one add it to theirs. Default 0.

        It may read what ``interact`` left in ``embedded.states``.
        """
        return 0.0

    def explain(self, batch: Batch) -> dict[str, Tensor]:
        """Return the attention weight of every position of each history, if the model has such weights.

        ``[N]`` over the positions of all rows, or ``[B, T]`` of a shared batch.
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
    def forward(self, batch: Batch) -> Float[Tensor, " C"]:
        """Return the logit of every row."""

    @abstractmethod
    def encode(self, batch: Batch) -> Float[Tensor, "C W"]:
        """Return the vector of every row."""

    def codebooks(self) -> Float[Tensor, "S M V D"] | None:
        """Return the codebooks of each slot and level, whose codes sum up to the vectors. None without quantization."""
        return None

    def codes(self, batch: Batch) -> UInt8[Tensor, "C J"]:
        """Return the codes of every row, slot by slot, level by level: ``codebooks`` maps them to ``encode``."""
        raise NotImplementedError(f"{type(self).__name__} has no codes")

    def logits_with_context(self, batch: Batch, context: ContextInstances) -> Float[Tensor, " C"]:
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

"""Kinds of models: what a model computes, and what training, export and serving may therefore do with it.

    Ranker      scores each candidate of a request with the probability of the label
    Encoder     encodes each row as one vector, for other models to read
    Extractor   an encoder of users and of items, each without the other
    Retriever   scores all items of a catalog for a request
    Reranker    scores the candidates of a request together, after a ranker has ordered them one by one

A ranker consists of three parts, so that other models can build on each of them:

    embed(batch) -> Embedded            looks up vectors: of requests, of candidates and of histories separately
    interact(batch, embedded) -> [C, H] one representation per candidate
    head(h) -> [C, K]                   the logit of every label

A vector retriever consists of two towers, so that the vectors of all items are computed once:

    users(batch) -> [R, K, D]           the vectors of a request, one per interest
    items(columns) -> [I, D]            the vector of every item

Shapes: R requests, C candidates (rows), I items of the catalog, N stored positions of a history, T targets, K labels or
interests, H width of a representation, D width of a retriever's vector, W width of an encoder's vector.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from longrec.errors import ConfigError
from longrec.features.batch import Batch, Column
from longrec.features.sampling import Sampling
from longrec.models.core.base import ContextInstances, Model
from longrec.models.core.losses import bce_loss, compute_list_loss
from longrec.nn import kernels
from longrec.nn.embedding import Embedded, Embeddings
from longrec.nn.lists import Lists


class Ranker(Model):
    """A model that returns one score per candidate.

    Attributes:
        interaction_width: H. 0 for a model without ``interact``.
        embeddings: the tables of the features, of the model's own.
        events_per_candidate: True if a candidate costs about as much as its history has events. A server then scores
            few candidates at once where histories are long. False if slices would repeat much of their common work.
    """

    interaction_width: int = 0
    events_per_candidate: bool = True
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


class Extractor(Encoder):
    """An encoder of users and of items, each without the other: ``longrec encode`` writes their vectors.

    Attributes:
        widths: widths of the vector of users, of that of items, and of others that ``encode`` adds.
    """

    widths: tuple[int, ...]

    @abstractmethod
    def user_knowledge(self, batch: Batch) -> Float[Tensor, "C D_u"]:
        """Return the vector of every user, from the features and histories of users only."""

    @abstractmethod
    def item_knowledge(self, batch: Batch) -> Float[Tensor, "C D_v"]:
        """Return the vector of every item, from the features of items only."""


@dataclass(frozen=True)
class ListScores:
    """Scores of a re-ranker.

    Attributes:
        lists: the candidates of each request.
        score: float32 ``[C]``. Its softmax over a list is the probability of each item.
        initial: float32 ``[C]``, the logit of the base.
        rank: int64 ``[C]``, the rank in the initial list, which ``initial`` orders. 0 is the first one.
    """

    lists: Lists
    score: Tensor
    initial: Tensor
    rank: Tensor

    @property
    def probability(self) -> Float[Tensor, " C"]:
        """The probability of each item, which sums up to 1 over a list."""
        return self.lists.softmax(self.score)


class Reranker(Model):
    """A model that orders the candidates of a request again. They see each other, and no other request.

    It is built on a trained ranker, which it never changes. The rank of a candidate by this ``base`` is its position in
    the initial list. A subclass calls ``set_base`` in its constructor.
    """

    reads_groups = True
    needs_init_from = True
    starts_from_best = True
    base: Ranker

    def set_base(self, base: Ranker) -> None:
        """Freeze the base and take over its flags.

        Raises:
            ConfigError: if its rows read other rows of their user, or if it computes statistics, which would not be
                those of its run.
        """
        name, do = type(base).__name__, "build on another ranker"
        if base.user_order is not None:
            raise ConfigError("config", [f"model.base: {name} reads earlier rows of the user in a batch; {do}"])
        if any(isinstance(module, Model) and module.needs_training_window for module in base.modules()):
            raise ConfigError("config", [f"model.base: {name} computes statistics of a training window; {do}"])
        self.base = base.requires_grad_(False).eval()
        self.reads_history, self.order_matters = base.reads_history, base.order_matters

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation. The base stays in evaluation."""
        super().train(mode)
        self.base.eval()
        return self

    def warm_start_prefix(self, other: Model) -> str:
        """Return the prefix of the base for a run of a ranker."""
        return "base." if isinstance(other, Ranker) else ""

    def read_base(self, batch: Batch) -> tuple[Float[Tensor, " C"], Float[Tensor, "C H"]]:
        """Return the logit for ranking and the representation of every candidate by the base, without a gradient.

        They are those of float32 under autocast too: else logits would be equal by rounding, and order another list.
        """
        own = batch if self.base.reads_groups else batch.ungroup()
        with torch.no_grad(), kernels.disable_autocast():
            h_CH = self.base.represent(own)
            return self.base.ranking_logit(self.base.head(h_CH)), h_CH

    def forward(self, batch: Batch) -> Float[Tensor, " C"]:
        """Return the score of every candidate within its list."""
        return self.score_lists(batch).score

    @abstractmethod
    def score_lists(self, batch: Batch, rank_C: Tensor | None = None) -> ListScores:
        """Return the scores of all candidates, and the initial lists.

        Args:
            rank_C: ranks in the initial lists. None: those of the base.
        """

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Return the mean of - log P over the clicked candidates, in float32."""
        scores = self.score_lists(batch)
        return compute_list_loss(scores.lists.log_softmax(scores.score), batch)


class Retriever(Model):
    """A model that scores all items of a catalog for a request. Scores have an order and no unit.

    It learns which item a user takes next. Evaluation ranks the whole catalog.

    Attributes:
        personalized: False if all requests have the same scores.
    """

    personalized: bool = True

    @abstractmethod
    def score_catalog(self, batch: Batch, catalog: Mapping[str, Column]) -> Float[Tensor, "R I"]:
        """Return the score of every item for every request.

        Args:
            batch: requests with their histories. Its candidates are not read.
            catalog: features of the items, I entries each.
        """

    def score_best(self, batch: Batch, catalog: Mapping[str, Column], count: int) -> Float[Tensor, "R I"]:
        """Return the scores of ``score_catalog``. A model that searches looks for ``count`` items at least."""
        return self.score_catalog(batch, catalog)


class FittedRetriever(Retriever):
    """A retriever that counts and does not train: ``fit_statistics`` is all of its training."""

    needs_training_window: bool = True

    @property
    def selected(self) -> Mapping[str, Any]:
        """The settings in use, by name. Empty before ``fit_statistics``, and by default."""
        return {}

    def alternatives(self) -> Iterator[Mapping[str, Any]]:
        """Yield the settings to choose from by the metric of validation. By default none."""
        return iter(())

    def select(self, settings: Mapping[str, Any]) -> None:
        """Use one of the ``alternatives`` from now on. It is saved with the model."""
        raise NotImplementedError(f"{type(self).__name__} has no alternatives")

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Not defined: a fitted model has no loss."""
        raise NotImplementedError(f"{type(self).__name__} counts and has no loss")


class VectorRetriever(Retriever):
    """A retriever whose score of an item is an inner product of vectors, the largest one over its interests.

    Attributes:
        width: D.
        interests: K.
        sampling: which items the loss compares a target with.
        reads_sequences: True if one pass over a history gives the vectors at all its positions (``states``).
    """

    width: int
    interests: int = 1
    sampling: Sampling = Sampling()
    reads_sequences: bool = False

    @abstractmethod
    def users(self, batch: Batch) -> Float[Tensor, "R K D"]:
        """Return the vectors of every request, one per interest."""

    @abstractmethod
    def items(self, columns: Mapping[str, Column]) -> Float[Tensor, "I D"]:
        """Return the vector of every item, from its features alone."""

    def states(self, batch: Batch) -> Float[Tensor, "N *K D"]:
        """Return the vectors after each event of a history, from this event and earlier ones: one, or one per interest.

        The last one is that of ``users``. Others may differ from it for a history that ends there, if positions count
        from the newest event.
        """
        raise NotImplementedError(f"{type(self).__name__} reads no sequences in one pass")

    def score_catalog(self, batch: Batch, catalog: Mapping[str, Column]) -> Float[Tensor, "R I"]:
        """Return the score of every item for every request."""
        return score_vectors(self.users(batch), self.items(catalog))


def score_vectors(u_RKD: Float[Tensor, "R K D"], v_ID: Float[Tensor, "I D"]) -> Float[Tensor, "R I"]:
    """Return the largest inner product of an item's vector and those of a request's interests."""
    if u_RKD.shape[1] == 1:
        return u_RKD[:, 0] @ v_ID.t()
    return (u_RKD @ v_ID.t()).amax(1)

r"""PRM: Personalized Re-ranking for Recommendation.

Pei, Zhang, Zhang, Sun, Lin, Sun, Wu, Jiang, Ge, Ou, Pei, RecSys 2019. https://arxiv.org/abs/1904.06813

A trained ranker orders the candidates of a request one by one. A transformer then lets all candidates of this initial
list see each other, and orders them again:

    e_i = [x_i ; pv_i] W + b + pe_{r(i)}                                             (input layer)
    f   = block(... block(e))                                                        (attention and FFN over the list)
    P_i = softmax_i(w . f_i)              L = - sum_{i clicked} log P_i              (output layer, loss)

x_i are the embeddings of the features of the item. The personalized vector pv_i is the hidden layer of the ranker
before its logit. r(i) is the rank of the item in the initial list, that of the ranker's own logits. So the position
that a served list has and the one that the model was trained with are computed in the same way, from the same weights.

The ranker is one of a finished run (``fit.init_from``), with its best weights, and stays as it is. It must be trained
on earlier rows only (``fit.train_from``): else pv_i would hold the click.

Departures from the paper
    - a layer of attention and FFN is post-norm with residuals and without biases of queries, keys and values;
    - the loss is the mean over the clicked items of a batch, not their sum; a list without a click has none;
    - items of equal logits share a position, and so do all items from ``positions`` on;
    - w has no bias, which a softmax would cancel.

Shapes: C candidates, X width of the features of an item, H width of pv, D width of the transformer.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from longrec.errors import ConfigError
from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.core.kinds import ListScores, Reranker
from longrec.models.core.registry import BaseSection, build_base
from longrec.models.core.top import EmbeddingConfig, Width
from longrec.nn.bucketed_attention import BucketedAttention
from longrec.nn.dropout import Dropout
from longrec.nn.embedding import Embeddings
from longrec.nn.linear import Linear
from longrec.nn.lists import Lists
from longrec.nn.transformer import EncoderLayer


class PRMConfig(EmbeddingConfig):
    """Settings of PRM."""

    base: BaseSection = Field(
        {"name": "din"}, description="Model section of the ranker, as in the run that `fit.init_from` names."
    )
    width: Width = Field(64, description="Width D of the transformer.")
    heads: Width = Field(2, description="Heads of the attention.")
    blocks: Width = Field(2, description="Layers of attention and feed-forward network.")
    hidden: Width = Field(128, description="Hidden units of the feed-forward network.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout rate of the input and of the branches.")
    positions: Width = Field(50, description="Distinct positions of the initial list. Later items share the last one.")
    position_embedding: bool = Field(
        True, description="Add pe. Without it the scores do not depend on the base's order."
    )
    personalized: bool = Field(True, description="Read pv. Without it an item is described by its features alone.")


class PRM(Reranker):
    """PRM over a trained ranker."""

    Config = PRMConfig
    history_optional = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"base": {"name": "deepfm"}, "blocks": 1, "heads": 3, "width": 10, "positions": 3, "dropout": 0.1},
        {"base": {"name": "lr"}, "position_embedding": False},
        {"base": {"name": "dien"}, "personalized": False, "blocks": 1},
    )

    def __init__(self, config: PRMConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        items = tuple(field for field in fields.features if field.side == "item")
        if not items:
            raise ConfigError("schema", ["features: prm compares items, and no feature has side: item; add one"])
        self.set_base(build_base(config.base, fields, "model.base"))
        self.embeddings = Embeddings(Fields(items, {}), config.embedding_dim, std=config.init_std)
        inputs = sum(self.embeddings.widths.values()) + (self.base.interaction_width if config.personalized else 0)
        self.input = Linear(inputs, config.width)
        self.positions = None
        if config.position_embedding:
            self.positions = nn.Parameter(torch.randn(config.positions, config.width) * config.width**-0.5)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            EncoderLayer(config.width, config.heads, config.hidden, dropout=config.dropout)
            for _ in range(config.blocks)
        )
        self.output = Linear(config.width, 1, bias=False)

    def score_lists(self, batch: Batch, rank_C: Tensor | None = None) -> ListScores:
        """Return the scores of all candidates, the logits of the base, and their ranks in the initial lists."""
        initial_C, pv_CH = self.read_base(batch)
        lists = Lists(batch.layout, initial_C.device)
        rank_C = lists.rank(initial_C) if rank_C is None else rank_C
        e_CD = self.dropout(self._embed(batch, pv_CH, rank_C))
        attention = BucketedAttention(lists.segments)
        f_CD = attention.gather_positions(lists.gather(e_CD))
        for block in self.blocks:
            f_CD = block(f_CD, attention)
        score_C = self.output(f_CD).squeeze(1)
        return ListScores(lists, lists.restore(attention.restore_positions(score_C)), initial_C, rank_C)

    def _embed(self, batch: Batch, pv_CH: Tensor, rank_C: Tensor) -> Float[Tensor, "C D"]:
        """Return e of every candidate."""
        vectors = list(self.embeddings(batch).candidate.values())
        if self.config.personalized:
            vectors.append(pv_CH)
        e_CD: Tensor = self.input(torch.cat(vectors, 1))
        if self.positions is None:
            return e_CD
        return e_CD + self.positions.index_select(0, rank_C.clamp(max=len(self.positions) - 1))

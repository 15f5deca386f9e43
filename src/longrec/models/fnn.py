r"""FNN: Deep Learning over Multi-field Categorical Data: A Case Study on User Response Prediction.

Zhang, Du, Wang, ECIR 2016. https://arxiv.org/abs/1601.02376

What a factorisation machine learnt of every feature, its weight and its vector, is where the embeddings of a network
begin; the network then moves them with all its other weights.

    z_0 = [w_0; (w_1, v_1); ...; (w_F, v_F)]                                        (1)
    l_1 = act(W_1 z_0 + b_1),  l_2 = act(W_2 l_1 + b_2)                             (2)
    logit = W_3 l_2 + b_3                                                           (3)

(the numbers are ours). The first stage is a run of its own, of the model ``fm`` on the same log; the second starts from
it: ``fit: {init_from: runs/my-fm}``. Without that, the tables start as those of an ``fm`` do.

Departures from the paper
    - the moments of the optimizer come over with the tables, as in every start from a run;
    - fields have one row of a table for each value, and all of it is trained on; the paper samples the zeros of its
      one-hot inputs and pre-trains W_1 by layers (SNN), which the tables make needless;
    - no normalisation: over a batch w_0 is a constant, and would be taken away;
    - two layers of 128 and 64, tanh, without dropout by default (the paper: sizes by data set, dropout 0.5).

Letters: B rows, F fields, D embedding width, Z = 1 + F (1 + D) numbers of z_0, H units of the last hidden layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, cast

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from longrec.config import Strict
from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.core.base import Model, Ranker, build, name_of
from longrec.models.fm import FM
from longrec.nn.activation import Name
from longrec.nn.mlp import MLP

Width = Annotated[int, Field(ge=1)]


class FNNConfig(Strict):
    """Settings of FNN."""

    embedding_dim: Width = Field(16, description="Width of fields that ask for none in the schema, as in the fm.")
    mlp: tuple[Width, ...] = Field((128, 64), min_length=1, description="Hidden units.")
    activation: Name = Field("tanh", description="Activation of the hidden layers.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of units dropped in every layer while training.")
    init_std: float = Field(0.01, gt=0, description="Standard deviation of the tables, where they start from no fm.")


class FNN(Ranker):
    """MLP over the parameters of a factorisation machine."""

    Config = FNNConfig
    variants: ClassVar[tuple[dict[str, Any], ...]] = ({"activation": "relu", "mlp": [20], "dropout": 0.1},)

    def __init__(self, config: FNNConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        section = {"name": "fm", "embedding_dim": config.embedding_dim, "init_std": config.init_std}
        self.fm = cast(FM, build(section, fields))
        widths = self.fm.embeddings.widths.values()
        inputs = 1 + sum(1 + width for width in list(widths)[: len(fields.features)])
        self.deep = MLP(inputs, config.mlp, config.activation, config.dropout, outputs=1)
        self.interaction = self.deep.width

    def warm_start_prefix(self, other: Model) -> str:
        """A factorisation machine goes to where the parameters of one are."""
        return "fm." if name_of(other) == "fm" else ""

    def inputs(self, batch: Batch) -> Float[Tensor, "B Z"]:
        """Equation 1."""
        w, v = self.fm.first_order(batch).features, self.fm.embeddings(batch).features
        vectors = [vector for name in v for vector in (w[name], v[name])]
        return torch.cat([self.fm.bias.expand(batch.size, 1), *vectors], 1)

    def interact(self, batch: Batch) -> Float[Tensor, "B H"]:
        """The last hidden layer."""
        return self.deep.hidden(self.inputs(batch))

    def head(self, h_BH: Float[Tensor, "B H"]) -> Float[Tensor, " B"]:
        """Equation 3."""
        assert self.deep.last is not None
        logit: Tensor = self.deep.last(h_BH).squeeze(1)
        return logit

    def output_biases(self) -> Sequence[Tensor]:
        """The bias of the final layer."""
        return [self.deep.output_bias]

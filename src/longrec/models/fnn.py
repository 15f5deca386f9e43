r"""FNN: Deep Learning over Multi-field Categorical Data: A Case Study on User Response Prediction.

Zhang, Du, Wang, ECIR 2016. https://arxiv.org/abs/1601.02376

The weights and vectors of a trained factorization machine initialize the embeddings of a network, which then trains
them with all its other weights.

    z_0 = [w_0; (w_1, v_1); ...; (w_F, v_F)]                                        (1)
    l_1 = act(W_1 z_0 + b_1),  l_2 = act(W_2 l_1 + b_2)                             (2)
    logit = W_3 l_2 + b_3                                                           (3)

(the numbers are ours). The first stage is a run of the model ``fm`` on the same log. The second starts from
it: ``fit: {init_from: runs/my-fm}``. Without that, the tables are initialized like those of ``fm``.

Departures from the paper
    - the optimizer state is carried over with the tables, as in every warm start;
    - fields have one row of a table for each value, and all of it is trained on; the paper samples the zeros of its
      one-hot inputs and pre-trains W_1 by layers (SNN), which embedding tables do not need;
    - no normalization: w_0 is constant within a batch and would be removed;
    - two layers of 128 and 64, tanh, without dropout by default (the paper: sizes by data set, dropout 0.5).

Shapes: B rows, F fields, D embedding width, Z = 1 + F (1 + D) numbers of z_0, H units of the last hidden layer.
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

from pydantic import Field
from torch import Tensor

from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.core.base import Model
from longrec.models.core.registry import build, name_of
from longrec.models.core.top import EmbeddingConfig, TopRanker, Width
from longrec.models.fm import FM
from longrec.nn.activation import ActivationName
from longrec.nn.embedding import Embedded
from longrec.nn.mlp import MLP


class FNNConfig(EmbeddingConfig):
    """Settings of FNN."""

    embedding_dim: Width = Field(16, description="Embedding width of fields without `dim`, as in the fm.")
    mlp: tuple[Width, ...] = Field((128, 64), min_length=1, description="Hidden units.")
    activation: ActivationName = Field("tanh", description="Activation of the hidden layers.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout rate of every layer.")


class FNN(TopRanker):
    """MLP over the parameters of a factorization machine."""

    Config = FNNConfig
    reads_groups = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = ({"activation": "relu", "mlp": [20], "dropout": 0.1},)
    renamed_parameters: ClassVar[dict[str, str]] = {"deep": "top"}

    def __init__(self, config: FNNConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        section = {"name": "fm", "embedding_dim": config.embedding_dim, "init_std": config.init_std}
        self.fm = cast(FM, build(section, fields))
        widths = self.fm.embeddings.widths.values()
        inputs = 1 + sum(1 + width for width in list(widths)[: len(fields.features)])
        self.top = MLP(inputs, config.mlp, config.activation, config.dropout, outputs=1)
        self.interaction_width = self.top.width

    def warm_start_prefix(self, other: Model) -> str:
        """Return the prefix of the factorization machine for a run of ``fm``."""
        return "fm." if name_of(other) == "fm" else ""

    def embed(self, batch: Batch) -> Embedded:
        """Look up the vectors and weights of the factorization machine."""
        return self.fm.embed(batch)

    def read(self, batch: Batch, embedded: Embedded) -> list[Tensor]:
        """Return z_0 (equation 1) in parts: the bias, then the weight and the vector of every field."""
        w, v = embedded.further[self.fm.first_order].features, embedded.features
        return [self.fm.bias.expand(batch.size, 1), *(vector for name in v for vector in (w[name], v[name]))]

r"""DCN-V2: DCN V2: Improved Deep & Cross Network and Practical Lessons for Web-scale Learning to Rank Systems.

Wang, Shivanna, Cheng, Jain, Lin, Hong, Chi, WWW 2021. https://arxiv.org/abs/2008.13535

The cross network of DCN with a matrix in place of a vector, so that every pair of inputs has a weight of its own, and
two cheaper low-rank forms of that matrix.

    x_{l+1} = x_0 * (W_l x_l + b_l) + x_l                                           (eq. 1)
    x_{l+1} = x_0 * (U_l V_l^T x_l + b_l) + x_l                                     (eq. 2, ``low_rank``)
    x_{l+1} = sum_i G_i(x_l) E_i(x_l) + x_l                                         (eq. 3, ``mixture``)
    E_i(x)  = x_0 * (U_i g(C_i g(V_i^T x)) + b_l)                                   (eq. 4)

Stacked, the deep network reads the output of the cross network. Parallel, both read x_0 and their outputs are
concatenated (figure 1).

Departures from the paper
    - a numeric field enters as its value times a vector;
    - G is a linear layer of x_l in each layer, with a softmax or a sigmoid; a single expert has no gate, so that with
      ``expert_activation: linear`` and C = 1 it is the low-rank form;
    - the experts of a layer share the bias b_l, as in eq. 4;
    - two deep layers of 128 and 64 and two cross layers by default.

Shapes: B rows, D width of all embeddings together, R rank, K experts, H width of both outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.core.kinds import Ranker
from longrec.models.core.top import EmbeddingConfig, Width
from longrec.nn.activation import ActivationName, make_activation
from longrec.nn.embedding import Embedded, Embeddings
from longrec.nn.linear import Linear, linear
from longrec.nn.mlp import MLP


class DCNV2Config(EmbeddingConfig):
    """Settings of DCN-V2."""

    cross: Literal["full", "low_rank", "mixture"] = Field("full", description="Form of the matrix of a cross layer.")
    cross_layers: int = Field(2, ge=1, description="Layers of the cross network.")
    rank: Width = Field(32, description="Rank of the matrix in the low-rank forms.")
    experts: Width = Field(4, description="Experts of a layer of the mixture.")
    gate: Literal["softmax", "sigmoid"] = Field("softmax", description="Gate of the experts of the mixture.")
    expert_activation: Literal["tanh", "relu", "linear"] = Field("tanh", description="Activation g in an expert.")
    structure: Literal["stacked", "parallel"] = Field(
        "stacked", description="Deep network after the crosses, or beside."
    )
    mlp: tuple[Width, ...] = Field((128, 64), min_length=1, description="Hidden units of the deep network.")
    activation: ActivationName = Field("relu", description="Activation of the deep network.")
    batch_norm: bool = Field(True, description="Batch normalization in the deep network.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout rate of the deep network.")


class DCNV2(Ranker):
    """Cross network of matrices and deep network."""

    Config = DCNV2Config
    reads_groups = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"cross": "low_rank", "rank": 5, "structure": "parallel", "batch_norm": False},
        {"cross": "mixture", "rank": 5, "experts": 3, "dropout": 0.1, "batch_norm": False},
        {"cross": "mixture", "rank": 4, "experts": 2, "gate": "sigmoid", "structure": "parallel"},
    )

    def __init__(self, config: DCNV2Config, fields: Fields) -> None:
        super().__init__(config, fields)
        self.embeddings = Embeddings(fields, config.embedding_dim, std=config.init_std)
        width = sum(self.embeddings.widths.values())
        self.cross = nn.ModuleList(_layer(width, config) for _ in range(config.cross_layers))
        self.deep = MLP(width, config.mlp, config.activation, config.dropout, config.batch_norm)
        self.interaction_width = self.deep.outputs + (width if config.structure == "parallel" else 0)
        self.last = Linear(self.interaction_width, 1)

    def interact(self, batch: Batch, embedded: Embedded) -> Float[Tensor, "B H"]:
        """Return the output of the deep network, and in the parallel structure that of the cross network."""
        x0_BD = torch.cat(list(embedded.features.values()), 1)
        x_BD = x0_BD
        for layer in self.cross:
            x_BD = layer(x0_BD, x_BD)
        if self.config.structure == "stacked":
            h_BH: Tensor = self.deep(x_BD)
            return h_BH
        return torch.cat([x_BD, self.deep(x0_BD)], 1)

    def head(self, h_BH: Float[Tensor, "B H"]) -> Float[Tensor, "B 1"]:
        """Return the logit of each row: the final layer."""
        logit: Tensor = self.last(h_BH)
        return logit

    def output_biases(self) -> Sequence[Tensor]:
        """Return the bias of the final layer."""
        return [self.last.bias]


def _layer(width: int, config: DCNV2Config) -> nn.Module:
    if config.cross == "full":
        return Cross(Linear(width, width))
    if config.cross == "low_rank":
        return Cross(nn.Sequential(Linear(width, config.rank, bias=False), Linear(config.rank, width)))
    return CrossMixture(width, config.rank, config.experts, config.gate, config.expert_activation)


class Cross(nn.Module):
    """``x_0 * (W x + b) + x``, where ``matrix`` is W and b."""

    def __init__(self, matrix: nn.Module) -> None:
        super().__init__()
        self.matrix = matrix

    def forward(self, x0_BD: Float[Tensor, "B D"], x_BD: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Apply equation 1 or 2."""
        return torch.addcmul(x_BD, x0_BD, self.matrix(x_BD))


class CrossMixture(nn.Module):
    """Equation 3: the experts together are one matrix down to K R numbers and one back up."""

    def __init__(self, width: int, rank: int, experts: int, gate: str, activation: ActivationName) -> None:
        super().__init__()
        self.experts, self.rank, self.softmax = experts, rank, gate == "softmax"
        self.down = Linear(width, experts * rank, bias=False)
        self.inside = nn.Parameter(torch.empty(experts, rank, rank).uniform_(-(rank**-0.5), rank**-0.5))
        # Every expert is initialized as a matrix of its own rank, not as a slice of one K times as wide.
        self.up = nn.Parameter(torch.empty(width, experts * rank).uniform_(-(rank**-0.5), rank**-0.5))
        self.bias = nn.Parameter(torch.zeros(width))
        self.gate = Linear(width, experts) if experts > 1 else None
        self.activation = make_activation(activation, experts * rank)

    def forward(self, x0_BD: Float[Tensor, "B D"], x_BD: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Apply equations 3 and 4 without building ``[B, K, D]``."""
        h_BKR = self.activation(self.down(x_BD)).unflatten(1, (self.experts, self.rank))
        h_BKR = self.activation(torch.einsum("bkr,ksr->bks", h_BKR, self.inside))
        if self.gate is None:
            return torch.addcmul(x_BD, x0_BD, linear(h_BKR.flatten(1), self.up, self.bias))
        g_BK = self.gate(x_BD).softmax(1) if self.softmax else self.gate(x_BD).sigmoid()
        m_BD = linear((h_BKR * g_BK.unsqueeze(2)).flatten(1), self.up)
        return torch.addcmul(x_BD, x0_BD, m_BD + g_BK.sum(1, keepdim=True) * self.bias)

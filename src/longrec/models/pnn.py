r"""PNN: Product-based Neural Networks for User Response Prediction.

Qu, Cai, Ren, Zhang, Yu, Wen, Wang, ICDM 2016. https://arxiv.org/abs/1611.00144

A product layer between the embeddings and the MLP, so that interactions of two fields are inputs and need not be
approximated by the layers.

    l_1   = relu(l_z + l_p + b_1)                                                   (1)
    l_z^n = <W_z^n, V>                                                              (2, the linear signal)
    l_p^n = <W_p^n, P>,  P_ij = <v_i, v_j>                                          (3, ``inner``)
    l_p^n = |sum_i theta_i^n v_i|^2                                                 (4, the same, W_p = theta theta^T)
    l_p^n = <W_p^n, f f^T>,  f = sum_i v_i                                          (5, ``outer``)

(the numbers are ours). ``both`` adds the two products (PNN*). f f^T is the sum of the outer products of all pairs of
fields, so that OPNN costs O(F D + D1 D^2) per row, whatever the number of pairs.

Departures from the paper
    - P and f f^T are symmetric, so only their upper triangles, diagonals included, are computed and weighted: the full
      W_p is equivalent;
    - inner products keep a free W_p by default; ``kernel: rank_one`` is the paper's factorization (4), in O(D1 F D);
    - ``activation`` and normalization are settings, not a plain relu; the MLP is 128-64 by default (the paper: three
      layers);
    - a numeric field enters as its value times a vector.

Shapes: B rows, F fields, D embedding width, D1 units of l_1, P products, H units of the last hidden layer.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.core.registry import find_common_width
from longrec.models.core.rules import find_product_faults
from longrec.models.core.top import EmbeddingConfig, TopRanker, Width
from longrec.nn.activation import ActivationName, BatchNorm, make_activation
from longrec.nn.embedding import Embedded, Embeddings
from longrec.nn.linear import Linear, linear
from longrec.nn.mlp import MLP


class PNNConfig(EmbeddingConfig):
    """Settings of PNN."""

    rules = (find_product_faults,)

    product: Literal["inner", "outer", "both"] = Field("inner", description="Products of fields: IPNN, OPNN or PNN*.")
    kernel: Literal["full", "rank_one"] = Field("full", description="Weights of the inner products.")
    mlp: tuple[Width, ...] = Field(
        (128, 64), min_length=1, description="Hidden units; the first number is that of the product layer."
    )
    activation: ActivationName = Field("relu", description="Activation of the product layer and the MLP.")
    batch_norm: bool = Field(True, description="Batch normalization in the product layer and the MLP.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout rate of every layer.")


class PNN(TopRanker):
    """Product layer and MLP."""

    Config = PNNConfig
    reads_groups = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"product": "outer", "batch_norm": False},
        {"product": "both", "kernel": "rank_one", "dropout": 0.1, "batch_norm": False, "mlp": [12]},
    )
    renamed_parameters: ClassVar[dict[str, str]] = {"deep": "top"}

    def __init__(self, config: PNNConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        width, count, units = (
            find_common_width(fields, config.embedding_dim, "pnn"),
            len(fields.features),
            config.mlp[0],
        )
        self.embeddings = Embeddings(fields, width, std=config.init_std)
        self.signal = Linear(count * width, units, bias=not config.batch_norm)
        self.products = nn.ModuleList()
        if config.product != "outer":
            self.products.append(Inner(count, units) if config.kernel == "full" else RankOne(count, units))
        if config.product != "inner":
            self.products.append(Outer(width, units))
        self.norm = BatchNorm(units) if config.batch_norm else None
        self.activation = make_activation(config.activation, units)
        self.dropout = nn.Dropout(config.dropout)
        self.top = MLP(units, config.mlp[1:], config.activation, config.dropout, config.batch_norm, outputs=1)
        self.interaction_width = self.top.width

    def interact(self, batch: Batch, embedded: Embedded) -> Float[Tensor, "B H"]:
        """Return the output of the product layer and the hidden layers after it."""
        v_BFD = torch.stack(list(embedded.features.values()), 1)
        l_BU = self.signal(v_BFD.flatten(1))
        for product in self.products:
            l_BU = l_BU + product(v_BFD)
        if self.norm is not None:
            l_BU = self.norm(l_BU)
        return self.top.hidden(self.dropout(self.activation(l_BU)))


class _Triangle(nn.Module):
    """A linear layer, without a bias, over the upper triangles of symmetric matrices ``[B, n, n]``."""

    pairs: Tensor

    def __init__(self, n: int, units: int) -> None:
        super().__init__()
        i, j = torch.triu_indices(n, n)
        self.register_buffer("pairs", i * n + j, persistent=False)
        self.weight = Linear(len(i), units, bias=False)

    def forward(self, m_Bnn: Tensor) -> Tensor:
        out: Tensor = self.weight(m_Bnn.flatten(1).index_select(1, self.pairs))
        return out


class Inner(nn.Module):
    """Equation 3 with a weight for every pair of fields, and for every field with itself."""

    def __init__(self, count: int, units: int) -> None:
        super().__init__()
        self.of = _Triangle(count, units)

    def forward(self, v_BFD: Float[Tensor, "B F D"]) -> Float[Tensor, "B D1"]:
        """Return ``sum_{i <= j} W_ij <v_i, v_j>`` of every unit."""
        out: Tensor = self.of(v_BFD @ v_BFD.transpose(1, 2))
        return out


class RankOne(nn.Module):
    """Equation 4: ``|sum_i theta_i v_i|^2`` of every unit."""

    def __init__(self, count: int, units: int) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.empty(units, count).uniform_(-(count**-0.5), count**-0.5))

    def forward(self, v_BFD: Float[Tensor, "B F D"]) -> Float[Tensor, "B D1"]:
        """Return ``|sum_i theta_i v_i|^2`` of every unit, without products of pairs."""
        rows, count, width = v_BFD.shape
        sums = linear(v_BFD.transpose(1, 2).reshape(-1, count), self.theta)
        return sums.square().reshape(rows, width, -1).sum(1)


class Outer(nn.Module):
    """Equation 5 by the superposition of all fields."""

    def __init__(self, width: int, units: int) -> None:
        super().__init__()
        self.of = _Triangle(width, units)

    def forward(self, v_BFD: Float[Tensor, "B F D"]) -> Float[Tensor, "B D1"]:
        """Return ``sum_{k <= l} W_kl f_k f_l`` of every unit."""
        f_BD = v_BFD.sum(1)
        out: Tensor = self.of(f_BD.unsqueeze(2) * f_BD.unsqueeze(1))
        return out

r"""CAN: CAN: Feature Co-Action for Click-Through Rate Prediction.

Bian, Wu, Ren, Pi, Zhang, Xiao, Sheng, Zhu, Chan, Mou, Luo, Xiang, Zhou, Zhu, Deng, WSDM 2022.
https://arxiv.org/abs/2011.05625

A crossed feature memorizes every pair and costs a table row for each. Here each item holds the weights of a micro MLP,
and its partners, such as each event of a history, are the inputs of that MLP.

    P_item = [W_1, b_1, ..., W_K, b_K]                                              (1, cut from one row of a table)
    h_0 = P_user,  h_k = act(h_{k-1} W_k + b_k)                                     (2, the co-action unit)
    H(P_user, P_item) = [h_k of the chosen k, of P_user^c, c = 1..C]                (3, orders: powers by number)
    m = [sum_t H(P_user(t), P_item) of every pair of features]                      (4)
    logit = base(x) + MLP([h_base; m])                                              (5)

(the numbers are ours). There are three levels of independence. Both sides have tables of their own, beside those of the
base. Each pair of features has its own slice in the rows of both sides. With ``independent_orders`` each power has its
own weights.

Departures from the paper
    - as in the authors' released code the outputs of all layers are kept (``outputs: last`` keeps h_K alone, as the
      paper does), orders are concatenated (the paper sums them), there is no activation after the last layer (in (2)
      there is one at every k), and pairs are of the same type: an item with the past items, its category with theirs;
    - ``bias`` adds the biases of (2), which the code leaves out; with ``orders: 1`` the paper takes selu. By default
      units of 16-8-4 and three orders, tables drawn with deviation 0.1 (the paper: eight layers of 4, two orders and
      deviation 0.01);
    - the base is any ranker; m and the base's representation enter an MLP whose output is added to its logit. An
      auxiliary loss of the base is added;
    - a history that shares no column with the candidate is paired with the item ids by all its id columns;
    - ids of several values have the pooled weights of their values.

Shapes: B rows, N positions of the batch's histories, U stored positions (N, or T of a shared history), G
groups that share weights, M vectors in a group, C orders, I width of P_user, O width of H, W weights of a unit, H width
of base and units together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from longrec.config import Strict
from longrec.errors import ConfigError
from longrec.features.batch import Batch
from longrec.features.fields import Field as Column
from longrec.features.fields import Fields
from longrec.models.core.over import Over
from longrec.models.core.registry import BaseSection
from longrec.nn.activation import ActivationName, make_activation
from longrec.nn.embedding import Embedded, Embeddings
from longrec.nn.mlp import MLP
from longrec.nn.partners import Partners
from longrec.nn.segments import Segments

Width = Annotated[int, Field(ge=1)]
_TILE = 4
"""Positions of a row that are multiplied at once. The last tile of a row is padded."""


class CANConfig(Strict):
    """Settings of CAN."""

    base: BaseSection = Field({"name": "din"}, description="The ranker that the co-actions are added to.")
    pairs: tuple[tuple[str, str], ...] | None = Field(
        None,
        min_length=1,
        description="Pairs [item feature, partner]: another feature, or <history>.<column>. "
        "By default every column of a history with the candidate's own.",
    )
    micro: tuple[Width, ...] = Field(
        (16, 8, 4),
        min_length=2,
        json_schema_extra={"x-row-numbers": True},
        description="Widths of the unit, its input first.",
    )
    bias: bool = Field(False, description="Biases in the unit.")
    orders: int = Field(3, ge=1, le=5, description="Powers of the input that go through the unit.")
    independent_orders: bool = Field(False, description="Weights of its own for each power.")
    unit_activation: Literal["tanh", "selu", "relu", "linear"] = Field(
        "tanh", description="Activation between the layers of the unit."
    )
    outputs: Literal["all", "last"] = Field("all", description="Layers of the unit that are returned.")
    mlp: tuple[Width, ...] = Field((64,), description="Hidden units of the MLP over base and co-actions.")
    activation: ActivationName = Field("relu", description="Activation of that MLP.")
    init_std: float = Field(0.1, gt=0, description="Standard deviation of the initial embeddings of both sides.")


class CAN(Over):
    """A ranker plus co-action units of the item and its partners."""

    Config = CANConfig
    reads_history = True
    history_optional = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"base": {"name": "deepfm"}, "pairs": [["item", "user"]], "orders": 2},
        {
            "base": {"name": "pooling", "batch_norm": False},
            "micro": [4, 4, 3],
            "bias": True,
            "orders": 2,
            "independent_orders": True,
            "outputs": "last",
        },
    )

    def __init__(self, config: CANConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        self.pairs = pairs_of(config.pairs, fields)
        self.set_base(config.base, fields)
        self.reads_history |= any(history for _, history, _ in self.pairs)
        self.unit = Unit(config.micro, config.bias, config.unit_activation, config.outputs == "all")
        self.sets = config.orders if config.independent_orders else 1
        weights, inputs = _sides(self.pairs, fields, self.unit.weights * self.sets, config.micro[0])
        self.weights = Embeddings(weights, std=config.init_std)
        self.inputs = Embeddings(inputs, histories=True, std=config.init_std)
        self.units = len(self.pairs) * config.orders * self.unit.outputs
        self.join = MLP(
            self.base.interaction_width + self.units, config.mlp, config.activation, outputs=1, last_bias=False
        )
        self.interaction_width = self.base.interaction_width + self.units

    def embed_further(self, batch: Batch) -> dict[nn.Module, Embedded]:
        """Look up both sides of the co-actions."""
        return {self.weights: self.weights(batch), self.inputs: self.inputs(batch)}

    def interact(self, batch: Batch, embedded: Embedded) -> Float[Tensor, "B H"]:
        """Return the representation of every row by the base, and the co-actions of all pairs."""
        return torch.cat([self.base.interact(batch, embedded), self.co_actions(batch, embedded)], 1)

    def head(self, h_BH: Float[Tensor, "B H"]) -> Float[Tensor, "B 1"]:
        """Return the logit of each row (equation 5)."""
        return self.base.head(h_BH[:, : self.base.interaction_width]) + self.join(h_BH)

    def co_actions(self, batch: Batch, embedded: Embedded) -> Float[Tensor, "B units"]:
        """Return the co-actions of every row (equation 4), pair by pair, order by order, layer by layer."""
        owned, met = embedded.further[self.weights].features, embedded.further[self.inputs]
        at_item, at_met = dict.fromkeys(owned, 0), {name: 0 for name in self.inputs.widths}
        wide, width, outputs = self.unit.weights * self.sets, self.config.micro[0], []
        partners: dict[str, Partners] = {}
        for item, history, column in self.pairs:
            w_BW = owned[item][:, at_item[item] : at_item[item] + wide]
            vectors = met.histories[history][column] if history else met.features[column]
            p_UI = vectors[:, at_met[column] : at_met[column] + width]
            at_item[item] += wide
            at_met[column] += width
            if history and history not in partners:
                partners[history] = Partners(Segments.of(batch, history), _TILE)
            p_UCI = torch.stack([p_UI**order for order in range(1, self.config.orders + 1)], 1)
            groups = zip(p_UCI.chunk(self.sets, 1), w_BW.chunk(self.sets, 1))
            if history:
                outputs += [partners[history].sum_outputs(self.unit, p, w).flatten(1) for p, w in groups]
            else:
                outputs += [self.unit(p, w).flatten(1) for p, w in groups]
        return torch.cat(outputs, 1)


class Unit(nn.Module):
    """Equation 2 with weights as an argument."""

    def __init__(self, widths: Sequence[int], bias: bool, activation: ActivationName, every: bool) -> None:
        super().__init__()
        self.shapes, self.bias, self.every = list(pairwise(widths)), bias, every
        self.sizes = [size for i, o in self.shapes for size in ((i * o, o) if bias else (i * o,))]
        self.weights = sum(self.sizes)
        self.outputs = sum(widths[1:]) if every else widths[-1]
        self.activation = make_activation(activation, 1)

    def forward(self, h_GMI: Tensor, w_GW: Float[Tensor, "G W"]) -> Float[Tensor, "G M O"]:
        """Apply the weights of each group to ``[G, M, I]``, or those of every group to ``[M, I]``."""
        chunks, kept = iter(torch.split(w_GW, self.sizes, 1)), []
        for number, (i, o) in enumerate(self.shapes, 1):
            w_GIO = next(chunks).reshape(-1, i, o)
            if h_GMI.ndim == 2:
                m = h_GMI.shape[0]
                h_GMI = (h_GMI @ w_GIO.transpose(0, 1).flatten(1)).reshape(m, w_GW.shape[0], o).transpose(0, 1)
            else:
                h_GMI = torch.bmm(h_GMI, w_GIO)
            if self.bias:
                h_GMI = h_GMI + next(chunks).unsqueeze(1)
            if number < len(self.shapes):
                h_GMI = self.activation(h_GMI)
            if self.every or number == len(self.shapes):
                kept.append(h_GMI)
        return torch.cat(kept, 2)


Pair = tuple[str, str, str]
"""The feature that holds the weights, then the history (or empty) and the column of the partner."""


def pairs_of(pairs: Sequence[tuple[str, str]] | None, fields: Fields) -> list[Pair]:
    """Return the pairs of a config, or those of the same type.

    Raises:
        ConfigError: if names are not ids of the schema, or there is no pair (all faults are listed).
    """
    own = {field.name: field for field in fields.features if field.kind in ("id", "multi_id")}
    met: dict[str, tuple[str, str]] = {name: ("", name) for name in own}
    for history, columns in fields.histories.items():
        met |= {f"{history}.{c.name}": (history, c.name) for c in columns if c.kind in ("id", "multi_id")}
    if pairs is None:
        matches = [pair for history in fields.histories for pair in _same_type(history, fields)]
        if not matches:
            raise ConfigError("schema", ["model.pairs: no history to pair the item with; name pairs of features"])
        return matches
    faults = []
    for one, other in pairs:
        if one not in own:
            faults.append(f"model.pairs: {one!r} is not an id of the impression; ids: {', '.join(own)}")
        if other not in met:
            faults.append(f"model.pairs: {other!r} is not an id of the schema; ids: {', '.join(met)}")
    if len(set(pairs)) != len(pairs):
        faults.append("model.pairs: names a pair twice")
    if faults:
        raise ConfigError("schema", faults)
    return [(one, *met[other]) for one, other in pairs]


def _same_type(history: str, fields: Fields) -> list[Pair]:
    shared = [field.name for field in fields.target_columns(history) if field.kind in ("id", "multi_id")]
    if shared:
        return [(name, history, name) for name in shared]
    items = [field.name for field in fields.features if field.side == "item" and field.kind == "id"]
    ids = [field.name for field in fields.histories[history] if field.kind in ("id", "multi_id")]
    return [(item, history, name) for item in items for name in ids]


def _sides(pairs: Sequence[Pair], fields: Fields, weights: int, inputs: int) -> tuple[Fields, Fields]:
    """Return the fields of both sides, as wide as a slice for every pair of the field."""
    owned = {name: weights * sum(one == name for one, _, _ in pairs) for name, _, _ in pairs}
    met = {name: inputs * sum(other == name for _, _, other in pairs) for _, _, name in pairs}

    def wide(field: Column, widths: dict[str, int]) -> Column:
        return replace(field, dim=widths[field.name], share="")

    read = {(history, name) for _, history, name in pairs}
    items = tuple(wide(field, owned) for field in fields.features if field.name in owned)
    plain = tuple(wide(field, met) for field in fields.features if ("", field.name) in read)
    histories = {
        history: tuple(wide(field, met) for field in columns if (history, field.name) in read)
        for history, columns in fields.histories.items()
    }
    return Fields(items, {}), Fields(plain, {name: columns for name, columns in histories.items() if columns})

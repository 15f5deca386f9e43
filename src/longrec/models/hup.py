r"""HUP: Hierarchical User Profiling for E-commerce Recommender Systems.

Gu, Ding, Wang, Yin, WSDM 2020. https://doi.org/10.1145/3336191.3371827

Actions on an item (view, read comments, add to cart) express interest in the item, items express interest in their
category, and each level changes at its own pace. Three recurrences are stacked: the first steps with every event, the
second with every item, at its last event, the third with every category, at its last item. In their cell the kind of an
event and the time before it scale the new content:

    i, f, o = sigmoid(W x_t + U h_{t-1} + b)                     c_t = f c_{t-1} + i T W tanh(W x_t + U h_{t-1} + b)
    T = hs(W_x x_t + W_T gap_t + b)     W = hs(W_x' x_t + W_w weight_t + b)     hs(y) = min(max(0.2 y + 0.5, 0), 1)
    h_t = o tanh(c_t)                                                                  (Behavior-LSTM)
    x of the levels: [all of the event], [item; h of the first], [category; h of the second]
    a_t = softmax_t(tanh(W [h_t; h_last; weight_t]))      o = tanh(W sum_t a_t h_t)     of each level
    L = L_label + aux_weight mean_l (1 - cos(o_l, v_l))                                 v_l of the next item

o_l lies in the space of item vectors, or of category vectors at the last level. The equations go by
name here.

Departures from the paper
    - the paper retrieves: it ranks items by cos(o, v) and learns by the three cosines alone. Here a top MLP over the
      fields of the impression, o_l and o_l * v_l gives a logit, trained on the label, and the cosines are an auxiliary
      loss; the next item is the candidate of a row with label 1 and a history;
    - vectors are learned with the model, not pre-trained and frozen; no gradient of a cosine enters v, so that
      vectors do not collapse;
    - gap is the column ``time_since_previous`` and weight all other columns that the candidate lacks (a kind of event,
      a dwell time), at every level those of the event it steps at; without such columns, T or W is 1. The paper weighs
      by the kind of event at the first level and by dwell time at the second. The first event has no gap: it
      reads the vector of a missing value, which is no bucket of time;
    - items are identified by the id column with the most values that the candidate has too, categories by the first
      other one, or by ``item`` and ``category``; a history without such a column has one level less. Missing and
      unseen ids change with every event;
    - the state of the first level continues from one item to the next, as in its equations;
    - each history has its own levels;
    - the final layer starts with a tenth of the usual weights, so that training starts at the base rate of the labels.

Shapes: B rows, R rows that differ for a history (1 of a request), N positions of the batch's histories, T positions of
a request's, U stored positions (see nn/segments.py), K width of an event, I inputs of a level, W width of the
weights, G width of the gap, D units of the recurrences, O width of an output, H units of the last hidden layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from longrec.config import Strict
from longrec.errors import ConfigError
from longrec.features.batch import Batch
from longrec.features.fields import TIME_SINCE_PREVIOUS, Fields
from longrec.models.core.base import Ranker
from longrec.models.core.losses import bce_loss
from longrec.nn.activation import ActivationName
from longrec.nn.embedding import RESERVED, Embedded, Embeddings
from longrec.nn.linear import Linear
from longrec.nn.lstm import LSTM
from longrec.nn.mlp import MLP
from longrec.nn.queries import Queries
from longrec.nn.segments import Segments

Width = Annotated[int, Field(ge=1)]
_CATEGORY = 2
"""Index of the level that steps with categories."""


_LAST_GAIN = 0.1
"""Factor of the initial weights of the final layer. With 1 % of clicks, 1.0 left NE above 1.02 on unseen rows."""


class HUPConfig(Strict):
    """Settings of HUP."""

    embedding_dim: Width = Field(16, description="Embedding width of fields without `dim` in the schema.")
    hidden: Width = Field(64, description="Units of the recurrences.")
    item: str | None = Field(None, description="Id column of items; by default that with the most values.")
    category: str | None = Field(None, description="Id column of categories; by default another one.")
    aux_weight: float = Field(0.1, ge=0, description="Weight of the cosines; 0 disables them.")
    mlp: tuple[Width, ...] = Field((200, 80), min_length=1, description="Hidden units of the top MLP.")
    mlp_activation: ActivationName = Field("relu", description="Activation of the top MLP.")
    batch_norm: bool = Field(True, description="Batch normalization in the top MLP.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout rate of the top MLP.")
    init_std: float = Field(0.01, gt=0, description="Standard deviation of the initial embeddings.")


@dataclass(frozen=True)
class _LevelOutput:
    """Output of one level: o ``[B, O]``, the target of its cosine ``[B, O]``, its attention ``[U]``."""

    output: Tensor
    target: Tensor
    weights: Tensor


class HUP(Ranker):
    """HUP over every history of the schema."""

    Config = HUPConfig
    reads_history = True
    order_matters = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"hidden": 10, "mlp": [24], "aux_weight": 0.0, "batch_norm": False, "dropout": 0.1},
    )

    def __init__(self, config: HUPConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        self.embeddings = Embeddings(fields, config.embedding_dim, histories=True, std=config.init_std)
        width = self.embeddings.widths
        self.queries = Queries(fields, width, "hup")
        self.units = _units(config, fields)
        self.weights, self.levels = {}, nn.ModuleDict()
        top = sum(width[field.name] for field in fields.features)
        for history in fields.histories:
            keys = self.queries.key_columns[history]
            own = keys if not self.queries.common_widths[history] else self.queries.query_columns[history]
            gap = TIME_SINCE_PREVIOUS in keys
            self.weights[history] = [name for name in keys if name not in own and name != TIME_SINCE_PREVIOUS]
            w, g = sum(width[name] for name in self.weights[history]), width[TIME_SINCE_PREVIOUS] if gap else 0
            q, inputs = self.queries.query_widths[history], self.queries.key_widths[history]
            for number, unit in enumerate([None, *self.units[history]]):
                space = width[unit] if number == _CATEGORY and unit is not None else q
                inputs = inputs if unit is None else space + config.hidden
                self.levels[f"level_{history}_{number}"] = _Level(inputs, w, g, space, config.hidden)
                top += 2 * space
        self.top = MLP(
            top, config.mlp, config.mlp_activation, config.dropout, config.batch_norm, outputs=1, last_gain=_LAST_GAIN
        )
        self.interaction_width = self.top.width

    def interact(self, batch: Batch) -> Float[Tensor, "B H"]:
        """Return the last hidden layer of the top MLP."""
        embedded = self.embeddings(batch)
        return self._interact(embedded, self._run_levels(batch, embedded))

    def head(self, h_BH: Float[Tensor, "B H"]) -> Float[Tensor, " B"]:
        """Return the logit of each row: the final layer."""
        assert self.top.last is not None
        logit: Tensor = self.top.last(h_BH).squeeze(1)
        return logit

    def output_biases(self) -> Sequence[Tensor]:
        """Return the bias of the final layer."""
        return [self.top.output_bias]

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Return the cross entropy of the label plus the cosine distance between outputs and next items."""
        embedded = self.embeddings(batch)
        outputs = self._run_levels(batch, embedded)
        return bce_loss(self.head(self._interact(embedded, outputs)), batch) + self._auxiliary(batch, outputs)

    def aux_loss(self, batch: Batch) -> Float[Tensor, ""] | float:
        """Return the cosine distance between outputs and next items."""
        return (
            self._auxiliary(batch, self._run_levels(batch, self.embeddings(batch))) if self.config.aux_weight else 0.0
        )

    def _auxiliary(self, batch: Batch, outputs: dict[str, list[_LevelOutput]]) -> Tensor | float:
        if not self.config.aux_weight:
            return 0.0
        extra = sum(self.auxiliary(batch, history, levels) for history, levels in outputs.items())
        return self.config.aux_weight * extra / len(outputs)

    def auxiliary(self, batch: Batch, history: str, levels: list[_LevelOutput]) -> Tensor:
        """Return 1 - cos of the outputs of a history, a mean over levels and rows with label 1. 0 without such rows."""
        assert batch.label is not None
        next_B = (batch.label > 0) & (batch.histories[history].offsets.diff() > 0)
        if batch.loss_mask is not None:
            next_B &= batch.loss_mask
        far_B = torch.stack([
            1 - F.cosine_similarity(level.output.float(), level.target.detach().float(), 1) for level in levels
        ]).mean(0)  # fmt: skip
        return torch.where(next_B, far_B, torch.zeros_like(far_B)).sum() / next_B.sum().clamp(min=1)

    def explain(self, batch: Batch) -> dict[str, Tensor]:
        """Return the attention on every position, a mean over levels: ragged ``[N]``, shared ``[B, T]``.

        The upper levels attend to the last event of an item or category alone.
        """
        outputs, weights = self._run_levels(batch, self.embeddings(batch)), {}
        for history, levels in outputs.items():
            w_U = torch.stack([level.weights for level in levels]).mean(0)
            weights[history] = w_U.expand(batch.size, -1) if batch.histories[history].shared else w_U
        return weights

    def _interact(self, embedded: Embedded, outputs: dict[str, list[_LevelOutput]]) -> Tensor:
        inputs = list(embedded.features.values())
        for levels in outputs.values():
            for level in levels:
                inputs += [level.output, level.output * level.target]
        return self.top.hidden(torch.cat(inputs, 1))

    def _run_levels(self, batch: Batch, embedded: Embedded) -> dict[str, list[_LevelOutput]]:
        """Return the outputs of the levels of each history."""
        return {history: self._run_history(batch, embedded, history) for history in self.fields.histories}

    def _run_history(self, batch: Batch, embedded: Embedded, history: str) -> list[_LevelOutput]:
        columns, ids = embedded.histories[history], batch.histories[history].columns
        q_BQ, e_UK, segments = self.queries(batch, embedded, history)
        if segments.shared:
            segments = Segments(segments.offsets, 1, segments.positions, shared=True)
        names = self.weights[history]
        w_UW = torch.cat([columns[name] for name in names], 1) if names else e_UK[:, :0]
        g_UG = columns.get(TIME_SINCE_PREVIOUS, e_UK[:, :0])
        item_UQ = e_UK[:, : q_BQ.shape[1]]
        steps, x_UI, h_UD, outputs = _Steps(segments), e_UK, e_UK, []
        for number, unit in enumerate([None, *self.units[history]]):
            own_UO, target_BO = item_UQ, q_BQ
            if number == _CATEGORY and unit is not None:
                own_UO, target_BO = columns[unit], embedded.features[unit]
            if unit is not None:
                column = ids[unit]
                assert isinstance(column, Tensor)
                below, steps = steps, steps.ends(column)
                x_UI = torch.cat([steps.of_all(own_UO), steps.of_those(h_UD, below)], 1)
            level = cast(_Level, self.levels[f"level_{history}_{number}"])
            o_RO, h_UD, a_U = level(x_UI, steps.of_all(w_UW), steps.of_all(g_UG), steps)
            outputs.append(_LevelOutput(o_RO.expand(batch.size, -1), target_BO, steps.to_all(a_U)))
        return outputs


class _Steps:
    """Positions at which a level steps: all, or those of a mask.

    They are gathered from ragged rows. In a shared history they are masked in place, so that lengths are static.

    Attributes:
        segments: of the rows over the steps.
        moves: bool ``[T]`` of a shared history. None for all positions.
    """

    def __init__(self, whole: Segments, mask_U: Tensor | None = None) -> None:
        self.whole, self.mask, self.segments = whole, mask_U, whole
        self.moves = mask_U if whole.shared else None
        self._at = None
        if mask_U is not None and not whole.shared:
            self._at = mask_U.nonzero().squeeze(1)
            self._count = torch.cat([mask_U.new_zeros(1, dtype=torch.int64), mask_U.cumsum(0)])
            self.segments = Segments(self._count[whole.offsets], whole.rows, len(self._at))

    def ends(self, ids_U: Tensor) -> _Steps:
        """Return the steps that are followed by another id, or by none."""
        end_U = (F.pad(ids_U, (0, 1), value=-1)[1:] != ids_U) | (ids_U < RESERVED)
        if not self.whole.shared:
            stops = self.whole.offsets[1:] - 1
            end_U = end_U.index_fill(0, stops[stops >= self.whole.offsets[:-1]], True)
        return _Steps(self.whole, end_U if self.mask is None else end_U & self.mask)

    def of_all(self, x_UD: Tensor) -> Tensor:
        """Select the steps from values of all positions."""
        return x_UD if self._at is None else x_UD.index_select(0, self._at)

    def of_those(self, x_UD: Tensor, below: _Steps) -> Tensor:
        """Select the steps from values of the steps of the level below."""
        if self._at is None or below._at is None:
            return self.of_all(x_UD)
        return x_UD.index_select(0, below._count[self._at])

    def to_all(self, x_U: Tensor) -> Tensor:
        """Scatter values of the steps to all positions. 0 elsewhere."""
        if self._at is None:
            return x_U
        return x_U.new_zeros(self.whole.positions).index_copy(0, self._at, x_U)


class _Level(nn.Module):
    """A recurrence with attention over its states."""

    def __init__(self, inputs: int, weight: int, gap: int, space: int, hidden: int) -> None:
        super().__init__()
        self.recurrence = LSTM(inputs, hidden)
        # T and W: a common input layer, and a layer of their own input each.
        self.scales = nn.ModuleDict()
        for name, width in (("gap", gap), ("weight", weight)):
            if width:
                self.scales[name] = Linear(width, hidden, bias=False)
        self.of_input = Linear(inputs, len(self.scales) * hidden) if self.scales else None
        self.of_event, self.of_last = Linear(hidden + weight, 1), Linear(hidden, 1, bias=False)
        self.out = Linear(hidden, space)

    def scale(self, x_UI: Tensor, w_UW: Tensor, g_UG: Tensor) -> Tensor | None:
        """Return T W ``[U, D]``. None if both are 1."""
        if self.of_input is None:
            return None
        inputs = {"gap": g_UG, "weight": w_UW}
        own = self.of_input(x_UI).chunk(len(self.scales), 1)
        factors = [hard_sigmoid(share + layer(inputs[name])) for share, (name, layer) in zip(own, self.scales.items())]
        return factors[0] if len(factors) == 1 else factors[0] * factors[1]

    def forward(self, x_UI: Tensor, w_UW: Tensor, g_UG: Tensor, steps: _Steps) -> tuple[Tensor, Tensor, Tensor]:
        """Return o ``[R, O]``, the states ``[U, D]`` and the attention on them ``[U]``."""
        segments = steps.segments
        h_UD, last_RD = self.recurrence.states_and_last(
            x_UI, segments, scale_UH=self.scale(x_UI, w_UW, g_UG), moves_T=steps.moves
        )
        event_U1 = self.of_event(torch.cat([h_UD, w_UW.to(h_UD.dtype)], 1))
        s_U = torch.tanh(segments.add(self.of_last(last_RD), event_U1)).squeeze(1)
        if steps.moves is not None:
            s_U = s_U.masked_fill(~steps.moves, torch.finfo(s_U.dtype).min)
        a_U = segments.softmax(s_U)
        if steps.moves is not None:
            a_U = a_U * steps.moves
        return torch.tanh(self.out(segments.weighted_sum(a_U, h_UD))), h_UD, a_U


def hard_sigmoid(y: Tensor) -> Tensor:
    """Return ``0.2 y + 0.5``, clamped to 0 and 1."""
    return (0.2 * y + 0.5).clamp(0, 1)


def _units(config: HUPConfig, fields: Fields) -> dict[str, list[str]]:
    """Return for each history the id columns of its upper levels.

    Raises:
        ConfigError: if names are not id columns of both a history and the candidate (all are listed).
    """
    units: dict[str, list[str]] = {}
    fitting: list[str] = []
    for history in fields.histories:
        ids = sorted(
            (field for field in fields.target_columns(history) if field.kind == "id"), key=lambda field: -field.rows
        )
        names = [field.name for field in ids]
        fitting += names
        item = config.item if config.item in names else next((n for n in names if n != config.category), None)
        own = [field.name for field in fields.target_columns(history) if field.name in names and field.name != item]
        category = config.category if config.category in own else next(iter(own), None)
        units[history] = [name for name in (item, category) if name is not None]
    choices = ", ".join(dict.fromkeys(fitting)) or "none"
    faults = [
        f"model.{key}: must be an id column of a history and of the candidate ({choices}), got {name!r}"
        for key, name in (("item", config.item), ("category", config.category))
        if name is not None and name not in fitting
    ]
    if config.item is not None and config.item == config.category:
        faults.append(f"model.category: must be another column than model.item, got {config.category!r}")
    if faults:
        raise ConfigError("config", faults)
    return units

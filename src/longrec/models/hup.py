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

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from longrec.errors import ConfigError
from longrec.features.batch import Batch
from longrec.features.fields import TIME_SINCE_PREVIOUS, Fields
from longrec.models.core.top import TopConfig, TopRanker, Width
from longrec.nn.embedding import Embedded, Embeddings
from longrec.nn.level_steps import LevelSteps
from longrec.nn.linear import Linear
from longrec.nn.lstm import LSTM
from longrec.nn.queries import Queries
from longrec.nn.segments import Segments

_CATEGORY = 2
"""Index of the level that steps with categories."""
_LAST_GAIN = 0.1
"""Factor of the initial weights of the final layer. With 1 % of clicks, 1.0 left NE above 1.02 on unseen rows."""


class HUPConfig(TopConfig):
    """Settings of HUP."""

    hidden: Width = Field(64, description="Units of the recurrences.")
    item: str | None = Field(None, description="Id column of items; by default that with the most values.")
    category: str | None = Field(None, description="Id column of categories; by default another one.")
    aux_weight: float = Field(0.1, ge=0, description="Weight of the cosines; 0 disables them.")


@dataclass(frozen=True)
class _LevelOutput:
    """Output of one level: o ``[B, O]``, the target of its cosine ``[B, O]``, its attention ``[U]``."""

    output: Tensor
    target: Tensor
    weights: Tensor


class HUP(TopRanker):
    """HUP over every history of the schema."""

    Config = HUPConfig
    reads_history = True
    order_matters = True
    reads_groups = True
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
        self.set_top(top, config, _LAST_GAIN)

    def read(self, batch: Batch, embedded: Embedded) -> list[Tensor]:
        """Return all fields of the impression, and of each level o and o * v."""
        inputs, outputs = list(embedded.features.values()), self._run_levels(batch, embedded)
        for levels in outputs.values():
            for level in levels:
                inputs += [level.output, level.output * level.target]
        embedded.states["levels"] = outputs
        return inputs

    def aux_loss(self, batch: Batch, embedded: Embedded) -> Float[Tensor, ""] | float:
        """Return the cosine distance between outputs and next items."""
        if not self.config.aux_weight:
            return 0.0
        outputs: dict[str, list[_LevelOutput]] = embedded.states["levels"]
        extra = sum(self.auxiliary(batch, history, levels) for history, levels in outputs.items())
        return self.config.aux_weight * extra / len(outputs)

    def auxiliary(self, batch: Batch, history: str, levels: list[_LevelOutput]) -> Tensor:
        """Return 1 - cos of the outputs of a history, a mean over levels and rows with label 1. 0 without such rows."""
        assert batch.label is not None
        next_B = (batch.label > 0) & batch.layout.repeat(batch.histories[history].offsets.diff() > 0)
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
        weights = {}
        for history, levels in self._run_levels(batch, self.embed(batch)).items():
            w_U = torch.stack([level.weights for level in levels]).mean(0)
            weights[history] = Segments.of(batch, history).repeat_weights(w_U)
        return weights

    def _run_levels(self, batch: Batch, embedded: Embedded) -> dict[str, list[_LevelOutput]]:
        """Return the outputs of the levels of each history."""
        return {history: self._run_history(batch, embedded, history) for history in self.fields.histories}

    def _run_history(self, batch: Batch, embedded: Embedded, history: str) -> list[_LevelOutput]:
        columns, ids = embedded.histories[history], batch.histories[history].on_host.columns
        q_BQ, e_UK, segments = self.queries(batch, embedded, history)
        names = self.weights[history]
        w_UW = torch.cat([columns[name] for name in names], 1) if names else e_UK[:, :0]
        g_UG = columns.get(TIME_SINCE_PREVIOUS, e_UK[:, :0])
        item_UQ = e_UK[:, : q_BQ.shape[1]]
        steps, x_UI, h_UD, outputs = LevelSteps(segments.requests), e_UK, e_UK, []
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
            outputs.append(_LevelOutput(segments.repeat(o_RO), target_BO, steps.to_all(a_U)))
        return outputs


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

    def forward(self, x_UI: Tensor, w_UW: Tensor, g_UG: Tensor, steps: LevelSteps) -> tuple[Tensor, Tensor, Tensor]:
        """Return o ``[R, O]``, the states ``[U, D]`` and the attention on them ``[U]``."""
        segments = steps.segments
        h_UD, last_RD = self.recurrence.states_and_last(
            x_UI, segments, scale_UH=self.scale(x_UI, w_UW, g_UG), moves_T=steps.moves
        )
        event_U1 = self.of_event(torch.cat([h_UD, w_UW.to(h_UD.dtype)], 1))
        s_U = torch.tanh(segments.add(self.of_last(last_RD), event_U1)).squeeze(1)
        a_U = steps.softmax(s_U)
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

r"""Multi-Tower: EasyRec: An easy-to-use, extendable and efficient framework for building industrial
recommendation systems (its models MultiTower and MultiTowerDIN).

Cheng, Gao, Liu, Jin, Zhang, arXiv 2022. https://arxiv.org/abs/2209.12766

Features form groups (the user's, the item's, their combinations), and each group has its own MLP before the groups are
combined. In addition, a tower of target attention as in DIN may read a history:

    x_g   = normalize([fields of group g])
    t_g   = MLP_g(x_g)                                                              (1)
    w     = softmax_j MLP_h([v, e_j, v - e_j, v * e_j])                             (2)
    d_h   = [sum_j w_j e_j, v]                                                      (3)
    logit = MLP([t_1, ..., t_G, d_1, ..., d_H])                                     (4)

v holds the features of the candidate that the events of history h have too, e_j is the j-th event.

Departures from the paper
    - the paper describes the library: this follows its documentation and its behavior. Without settings there is one
      tower of all features and one attention tower per history, so that any schema can be trained;
    - a number enters its tower as it is, as in the library; with ``embed_numbers: true`` it scales a vector, as in the
      other models here. Multi-value features are pooled as the schema says;
    - an empty history gives 0 in place of the pooled events (the original takes the mean of its padding);
    - batch normalization in an activation unit is off by default: measured to hurt (AUC 0.797 against 0.828 on the
      synthetic dataset one_interest). If on, it excludes padding. The normalization of a tower's input
      has no scale and shift: the layer after it learns them. Statistics move by a tenth per step (there: a hundredth);
    - columns of events that the candidate lacks (a past rating, elapsed time) enter the keys and the pooled vector, as
      in din, and for a history of instance tokens the query is a projection of the candidate;
    - a key and its column of the history share one table, by their name.

Shapes: B rows, N positions of the batch's histories, T positions of one user's, Q width of the query, K width of an
event, I width of a tower's input, H units of the last hidden layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, cast

import torch
from jaxtyping import Float
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from longrec.config import Strict
from longrec.errors import ConfigError, nearest
from longrec.features.batch import Batch
from longrec.features.fields import Field as Column
from longrec.features.fields import Fields
from longrec.models.core.rules import expand_number, find_dropout_faults
from longrec.models.core.top import EmbeddingConfig, TopRanker, Width
from longrec.nn.activation import ActivationName, BatchNorm
from longrec.nn.attention import TargetAttention
from longrec.nn.embedding import Embedded, Embeddings
from longrec.nn.linear import Linear
from longrec.nn.mlp import MLP
from longrec.nn.queries import choose_attention_columns
from longrec.nn.segments import Pool, Segments

Share = Annotated[float, Field(ge=0, lt=1)]
Shares = Annotated[tuple[Share, ...], BeforeValidator(expand_number)]
"""One rate for all layers, or one per layer."""


class Layers(Strict):
    """Hidden layers of one MLP of the model."""

    rules = (find_dropout_faults,)

    mlp: tuple[Width, ...] = Field((128, 64), description="Hidden units; empty for the identity.")
    activation: ActivationName = Field("relu", description="Activation of the hidden layers.")
    batch_norm: bool = Field(True, description="Batch normalization in the hidden layers.")
    dropout: Shares = Field((0.0,), description="Dropout rate: one, or one per layer.")

    def build(self, inputs: int, outputs: int | None = None) -> MLP:
        """Build the MLP of these settings."""
        return MLP(inputs, self.mlp, self.activation, self.shares(), self.batch_norm, outputs)

    def shares(self) -> tuple[float, ...]:
        """Return the dropout rate of every layer."""
        return self.dropout * len(self.mlp) if len(self.dropout) == 1 else self.dropout


class Attention(Layers):
    """A tower of target attention over one history. ``mlp`` is its activation unit without the output layer."""

    mlp: tuple[Width, ...] = Field((64, 32), min_length=1, description="Hidden units of the activation unit.")
    batch_norm: bool = Field(False, description="Batch normalization in the activation unit.")
    softmax: bool = Field(True, description="Weights that sum to one over a history; if off, raw scores as in DIN.")
    key: bool = Field(True, description="Concatenate the query to the pooled events.")


class Tower(Layers):
    """A tower over a group of features."""

    renamed_keys: ClassVar[Mapping[str, str]] = {"of": "features"}

    features: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="Features of the tower; by default all that no other tower names.",
    )
    pooled: tuple[str, ...] = Field((), description="Histories of the tower, each pooled to one vector.")
    pool: Pool = Field("mean", description="Pooling of the events of those histories.")
    din: dict[str, Attention] = Field({}, description="Histories with target attention inside the tower.")


class MultiTowerConfig(EmbeddingConfig):
    """Settings of Multi-Tower."""

    towers: dict[str, Tower] | None = Field(
        None,
        min_length=1,
        description="Towers by name, as {features: [...], mlp: [...]}; by default one of all features.",
    )
    din: dict[str, Attention] | None = Field(
        None, description="Histories with an attention tower, as {mlp: [...]}; by default all that no tower names."
    )
    final: Layers = Field(Layers(), description="The MLP over the towers, as {mlp: [...]}.")
    input_norm: bool = Field(True, description="Normalize the input of every tower over the batch.")
    embed_numbers: bool = Field(False, description="Scale a vector by each number; if off, numbers enter as they are.")


class MultiTower(TopRanker):
    """Towers over groups of features and over histories."""

    Config = MultiTowerConfig
    reads_history = True
    history_optional = True
    reads_groups = True
    renamed_parameters: ClassVar[dict[str, str]] = {"final": "top"}
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {
            "towers": {
                "thing": {"features": ["item", "price"], "mlp": [24, 8], "batch_norm": False},
                "rest": {"mlp": [16]},
            },
            "final": {"mlp": [16], "batch_norm": False, "activation": "prelu"},
            "embed_numbers": True,
        },
        {
            "towers": {"all": {"mlp": [], "activation": "dice"}},
            "final": {"mlp": [24, 12], "activation": "dice", "dropout": [0.1, 0.2]},
            "input_norm": False,
        },
    )

    def __init__(self, config: MultiTowerConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        plan = _Plan(config, fields)
        self.numbers = [] if config.embed_numbers else [name for name in plan.read if _is_number(plan.columns[name])]
        used = tuple(
            field
            for field in fields.features
            if field.name in plan.queried or (field.name in plan.read and field.name not in self.numbers)
        )
        histories = {name: fields.histories[name] for name in fields.histories if name in plan.histories}
        self.reads_history = bool(histories)
        self.embeddings = Embeddings(Fields(used, histories), config.embedding_dim, histories=True, std=config.init_std)
        widths = dict(self.embeddings.widths)
        widths |= {name: plan.columns[name].width or 1 for name in self.numbers}
        self.towers, self.din = nn.ModuleDict(), nn.ModuleDict()
        self.candidate = [name for name in plan.read if plan.columns[name].side == "item"]
        candidate_width = sum(widths[name] for name in self.candidate)
        width = 0
        for name, (settings, of) in plan.towers.items():
            tower = _Tower(settings, of, fields, widths, self.embeddings.widths, candidate_width, config.input_norm)
            self.towers[_key(name)] = tower
            width += tower.mlp.outputs
        for history, unit in plan.din.items():
            attention = _Attention(unit, history, fields, self.embeddings.widths, candidate_width)
            self.din[_key(history)] = attention
            width += attention.width
        self.top = config.final.build(width, outputs=1)
        self.interaction_width = self.top.width

    def embed_further(self, batch: Batch) -> dict[nn.Module, Embedded]:
        """Return the numbers that enter the towers as they are."""
        numbers = {name: cast(Tensor, batch.per_candidate(name)).float() for name in self.numbers}
        numbers = {name: x if x.ndim > 1 else x.unsqueeze(1) for name, x in numbers.items()}
        return {self.towers: Embedded(batch.layout, tuple(numbers), {}, numbers, {})}

    def read(self, batch: Batch, embedded: Embedded) -> list[Tensor]:
        """Return the output of every tower."""
        inputs, candidate_BC = self._inputs(embedded)
        outputs = [tower(batch, embedded, inputs, candidate_BC) for tower in self.towers.values()]
        return outputs + [attention(batch, embedded, candidate_BC) for attention in self.din.values()]

    def explain(self, batch: Batch) -> dict[str, Tensor]:
        """Return the attention weight of every position of a history: ragged ``[N]``, shared ``[B, T]``.

        If several towers attend to a history, it is that of the attention tower, else that of the first tower.
        """
        embedded, weights = self.embed(batch), dict[str, Tensor]()
        _, candidate_BC = self._inputs(embedded)
        within = [attention for tower in self.towers.values() for attention in cast(_Tower, tower).din.values()]
        for module in (*self.din.values(), *within):
            attention = cast(_Attention, module)
            if attention.history not in weights:
                weights[attention.history] = attention.weights(batch, embedded, candidate_BC)
        return weights

    def _inputs(self, embedded: Embedded) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return the input of every feature, and the concatenated inputs of the candidate."""
        inputs = {**embedded.features, **embedded.further[self.towers].features}
        candidate = [inputs[name] for name in self.candidate]
        return inputs, torch.cat(candidate, 1) if candidate else None


class _Attention(nn.Module):
    """Equations 2 and 3 on one history.

    Args:
        candidate_width: width of the candidate's features, for a history that shares no column with it.
    """

    def __init__(
        self, settings: Attention, history: str, fields: Fields, widths: Mapping[str, int], candidate_width: int
    ) -> None:
        super().__init__()
        queries, keys = choose_attention_columns(fields, [history], "multi_tower")
        self.history, self.query, self.keys, self.key = history, queries[history], keys[history], settings.key
        k = sum(widths[name] for name in self.keys)
        q = sum(widths[name] for name in self.query) or k
        self.projection = None if self.query else Linear(candidate_width, k)
        shares = settings.shares()
        self.unit = TargetAttention(
            q, k, settings.mlp, settings.activation, settings.softmax, settings.batch_norm, shares
        )
        self.width = k + (q if settings.key else 0)

    def forward(
        self, batch: Batch, embedded: Embedded, candidate_BC: Float[Tensor, "B C"] | None
    ) -> Float[Tensor, "B D"]:
        """Return the pooled events and the query."""
        q_BQ, k_UK, segments = self._read(batch, embedded, candidate_BC)
        u_BK: Tensor = self.unit(q_BQ, k_UK, segments)
        return torch.cat([u_BK, q_BQ], 1) if self.key else u_BK

    def weights(self, batch: Batch, embedded: Embedded, candidate_BC: Float[Tensor, "B C"] | None) -> Tensor:
        """Return the weight of every position: ragged ``[N]``, shared ``[B, T]``."""
        q_BQ, k_UK, segments = self._read(batch, embedded, candidate_BC)
        return segments.by_candidate(self.unit.weights(q_BQ, k_UK, segments))

    def _read(self, batch: Batch, embedded: Embedded, candidate_BC: Tensor | None) -> tuple[Tensor, Tensor, Segments]:
        if self.projection is None:
            q_BQ = torch.cat([embedded.features[name] for name in self.query], 1)
        else:
            assert candidate_BC is not None
            q_BQ = self.projection(candidate_BC)
        k_UK = torch.cat([embedded.histories[self.history][name] for name in self.keys], 1)
        return q_BQ, k_UK, Segments.of(batch, self.history)


class _Tower(nn.Module):
    """Equation 1 on one group."""

    def __init__(
        self,
        settings: Tower,
        of: tuple[str, ...],
        fields: Fields,
        widths: Mapping[str, int],
        embedded: Mapping[str, int],
        candidate_width: int,
        norm: bool,
    ) -> None:
        super().__init__()
        self.features, self.pool = of, settings.pool
        self.pooled = {history: [column.name for column in fields.histories[history]] for history in settings.pooled}
        self.din = nn.ModuleDict()
        inputs = sum(widths[name] for name in self.features)
        inputs += sum(embedded[column] for columns in self.pooled.values() for column in columns)
        for history, unit in sorted(settings.din.items()):
            attention = _Attention(unit, history, fields, embedded, candidate_width)
            self.din[_key(history)] = attention
            inputs += attention.width
        self.norm = BatchNorm(inputs, affine=False) if norm else None
        self.mlp = settings.build(inputs)

    def forward(
        self,
        batch: Batch,
        embedded: Embedded,
        inputs: Mapping[str, Tensor],
        candidate_BC: Float[Tensor, "B C"] | None,
    ) -> Float[Tensor, "B H"]:
        """Return the last hidden layer of the tower."""
        blocks = [inputs[name] for name in self.features]
        for history, columns in self.pooled.items():
            segments = Segments.of(batch, history)
            blocks += [segments.pool(embedded.histories[history][column], self.pool) for column in columns]
        blocks += [attention(batch, embedded, candidate_BC) for attention in self.din.values()]
        x_BI = torch.cat(blocks, 1)
        h_BH: Tensor = self.mlp(x_BI if self.norm is None else self.norm(x_BI))
        return h_BH


class _Plan:
    """Assignment of features and histories to towers.

    Attributes:
        towers: settings and features of every tower, by name in alphabetical order, so that a score does not depend on
            their order in a file.
        din: settings of every attention tower, by history in alphabetical order.
        columns: every feature by name.
        read: features of the towers, in the order of the schema.
        queried: features that are queries of a history.
        histories: histories of the towers.

    Raises:
        ConfigError: if settings have unknown names, or do not fit the fields (all faults are listed).
    """

    def __init__(self, config: MultiTowerConfig, fields: Fields) -> None:
        self.columns: dict[str, Column] = {field.name: field for field in fields.features}
        towers = config.towers if config.towers is not None else {"all": Tower()}
        named = {name for tower in towers.values() for name in tower.features or ()}
        rest = tuple(name for name in self.columns if name not in named)
        self.towers = {name: (towers[name], towers[name].features or rest) for name in sorted(towers)}
        taken = {history for tower in towers.values() for history in (*tower.pooled, *tower.din)}
        own = config.din
        if own is None:
            own = {history: Attention() for history in fields.histories if history not in taken}
        self.din = dict(sorted(own.items()))
        faults = list(self._faults(fields))
        if faults:
            raise ConfigError("config", faults)
        read = {name for _, of in self.towers.values() for name in of}
        self.read = [name for name in self.columns if name in read]
        within = {history for tower in towers.values() for history in tower.din}
        self.histories = taken | set(self.din)
        queries, _ = choose_attention_columns(fields, sorted(within | set(self.din)), "multi_tower")
        self.queried = {name for names in queries.values() for name in names}
        candidate = any(self.columns[name].side == "item" for name in self.read)
        alone = [history for history, names in queries.items() if not names and not candidate]
        if alone:
            do = "name a candidate feature in `features` of a tower"
            messages = [
                f"model.towers: no tower reads the candidate, the query of history {name}; {do}" for name in alone
            ]
            raise ConfigError("config", messages)

    def _faults(self, fields: Fields) -> Iterator[str]:
        without = [name for name, (tower, _) in self.towers.items() if tower.features is None]
        if len(without) > 1:
            yield f"model.towers: {', '.join(without)} have no `features`; only one tower may take the rest"
        for name, (tower, of) in self.towers.items():
            path = f"model.towers.{name}"
            if not (of or tower.pooled or tower.din):
                yield f"{path}: no feature is left for it; give it `features`"
            yield from _unknown(f"{path}.features", "feature", tower.features or (), self.columns)
            yield from _unknown(f"{path}.pooled", "history", tower.pooled, fields.histories)
            yield from _unknown(f"{path}.din", "history", tower.din, fields.histories)
        yield from _unknown("model.din", "history", self.din, fields.histories)


def _unknown(path: str, kind: str, names: Iterable[str], choices: Iterable[str]) -> Iterator[str]:
    choices, seen = list(choices), set[str]()
    for name in names:
        if name in seen:
            yield f"{path}: names {name} twice"
        seen.add(name)
        if name not in choices:
            near = nearest(name, choices)
            hint = f"did you mean {near!r}?" if near else f"known: {', '.join(choices) or 'none'}"
            yield f"{path}: no {kind} named {name!r}; {hint}"


def _is_number(column: Column) -> bool:
    return column.kind in ("numeric", "embedding", "numbers", "computed")


def _key(name: str) -> str:
    """Return a module name for any name (torch allows no dots, and some names are methods)."""
    return "on_" + name.replace("%", "%25").replace(".", "%2E")

r"""KEEP: KEEP: An Industrial Pre-Training Framework for Online Recommendation via Knowledge Extraction
and Plugging (extractor).

Zhang, Chan, Xu, Bian, Han, Deng, Zheng, CIKM 2022. https://arxiv.org/abs/2208.10174

A model trained on the impressions of all scenarios over a long period, whose hidden layers other models read as
knowledge of the user, of the item, and of both. It is trained on several labels at once and then frozen.

    K_u  = MLP_u([fields of the user; mean of each history])                        (user-level knowledge)
    K_v  = MLP_v([fields of the item])                                              (item-level knowledge)
    s    = DIN(history, fields of the item)                                         (target attention)
    K_uv = MLP_b([K_u; K_v; s; fields of the event])                                (the last shared hidden layer)
    p_k  = sigmoid(w_k^T K_uv + b_k)                                                for each label k
    L    = sum_k c_k BCE(p_k, y_k)                                                  over the labeled rows of label k

``longrec encode`` stores K_u of every user and K_v of every item, in versions; a ``keep_plug`` model reads them.

Departures from the paper
    - the paper describes the levels, the labels and the DIN-like backbone, not the layers: those above are ours;
    - fields of the event (hour, position) enter K_uv only, so that K_u and K_v can be stored without a request;
    - the plug-in reads K_u and K_v and learns their interaction; K_uv is not stored;
    - a history without a column that the candidate has too is averaged for K_u and has no target attention;
    - batch normalization in all three MLPs, on by default, as in din;
    - ``sharing: mmoe`` and ``ple`` put experts between K_uv and the labels, for labels that conflict.

Shapes: B rows, U stored positions, W width of all knowledge, D_u, D_v, D_k width of K_u, K_v, K_uv.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from longrec.errors import ConfigError
from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.core.kinds import Extractor
from longrec.models.core.multi_task import Tasks, Weights
from longrec.models.core.top import EmbeddingConfig, Width
from longrec.nn.activation import ActivationName
from longrec.nn.attention import TargetAttention
from longrec.nn.embedding import Embedded, Embeddings
from longrec.nn.experts import Form, MMoELayer, PLELevels, Towers
from longrec.nn.linear import Linear
from longrec.nn.mlp import MLP
from longrec.nn.segments import Segments


class KEEPConfig(EmbeddingConfig):
    """Settings of the extractor of KEEP."""

    user: tuple[Width, ...] = Field((64, 32), min_length=1, description="Hidden units of MLP_u; the last are K_u.")
    item: tuple[Width, ...] = Field((64, 32), min_length=1, description="Hidden units of MLP_v; the last are K_v.")
    both: tuple[Width, ...] = Field((128, 64), min_length=1, description="Hidden units of MLP_b; the last are K_uv.")
    attention: tuple[Width, ...] = Field((80, 40), min_length=1, description="Hidden units of the activation unit.")
    softmax: bool = Field(False, description="Normalize the attention over each history.")
    activation: ActivationName = Field("relu", description="Activation of the MLPs.")
    batch_norm: bool = Field(True, description="Batch normalization in the MLPs.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout rate of the MLPs.")
    tasks: Weights = Field(
        {}, description="Labels besides the schema's: feedback features with the values 0 and 1, each with its weight."
    )
    label_weight: float = Field(1.0, gt=0, description="Weight of the schema's label.")
    sharing: Literal["bottom", "mmoe", "ple"] = Field(
        "bottom", description="Layers between K_uv and the layer of each label: none, or experts with a gate per label."
    )
    experts: Width = Field(4, description="Experts of mmoe; with ple, those of each label and the shared ones.")
    expert: tuple[Width, ...] = Field((32,), min_length=1, description="Hidden units of an expert.")


@dataclass(frozen=True)
class _Hidden:
    """K_u ``[B, D_u]``, K_v ``[B, D_v]`` and K_uv ``[B, D_k]`` of a batch."""

    user: Tensor
    item: Tensor
    both: Tensor


class KEEP(Extractor):
    """Extractor of user, item and interaction knowledge.

    Attributes:
        widths: width of K_u, K_v and K_uv, in the order in which ``encode`` returns them.
    """

    Config = KEEPConfig
    reads_history = True
    reads_groups = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {
            **{"softmax": True, "activation": "dice", "user": [12], "batch_norm": False, "dropout": 0.1},
            **{"sharing": "ple", "experts": 2, "tasks": {"bought": 0.5}},
        },
    )

    def __init__(self, config: KEEPConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        self.of: dict[str, list[str]] = {"user": [], "item": [], "context": []}
        for field in fields.features:
            self.of[field.side].append(field.name)
        if not self.of["item"] or not (self.of["user"] or fields.histories):
            wanted = "a feature of the item, and a feature of the user or a history"
            raise ConfigError("schema", [f"features: keep extracts knowledge of users and of items: it needs {wanted}"])
        self.embeddings = Embeddings(fields, config.embedding_dim, histories=True, std=config.init_std)
        self.tasks = Tasks(config.tasks, config.label_weight)
        self.targets = self.tasks.targets
        width = self.embeddings.widths
        pairs = {history: [field.name for field in fields.target_columns(history)] for history in fields.histories}
        self.queries = {history: names for history, names in pairs.items() if names}
        self.keys = {history: [field.name for field in columns] for history, columns in fields.histories.items()}
        self.units = nn.ModuleList()
        attended = 0
        for history, names in self.queries.items():
            q, k = (sum(width[name] for name in group) for group in (names, self.keys[history]))
            self.units.append(TargetAttention(q, k, config.attention, softmax=config.softmax))
            attended += k
        pooled = sum(width[name] for names in self.keys.values() for name in names)
        of = {table: sum(width[name] for name in names) for table, names in self.of.items()}
        self.user = self._mlp(of["user"] + pooled, config.user)
        self.item = self._mlp(of["item"], config.item)
        self.both = self._mlp(self.user.width + self.item.width + attended + of["context"], config.both)
        self.experts: MMoELayer | PLELevels | None = None
        inputs, labels, (n, widths) = self.both.width, len(self.tasks.names), (config.experts, config.expert)
        form = Form(config.activation, config.dropout)
        if config.sharing == "mmoe":
            self.experts = MMoELayer(inputs, labels, n, widths, form)
        elif config.sharing == "ple":
            self.experts = PLELevels(inputs, labels, n, n, widths, 1, form)
        self.heads = Linear(inputs, labels) if self.experts is None else Towers(self.experts.width, (), labels)
        self.widths = (self.user.width, self.item.width, self.both.width)
        self.width = sum(self.widths)

    def _mlp(self, inputs: int, widths: tuple[int, ...]) -> MLP:
        return MLP(inputs, widths, self.config.activation, self.config.dropout, self.config.batch_norm)

    def forward(self, batch: Batch) -> Float[Tensor, " B"]:
        """Return the logit of the schema's label."""
        return self.logits(batch)[:, 0]

    def output_biases(self) -> Sequence[Tensor]:
        """Return the biases of the heads."""
        return (
            self.heads.bias.tensor_split(self.heads.out_features)
            if isinstance(self.heads, Linear)
            else self.heads.output_biases
        )

    def logits(self, batch: Batch) -> Float[Tensor, "B K"]:
        """Return the logit of every label: the schema's, then those of ``tasks``."""
        both_BK = self._hidden(batch).both
        logits: Tensor = self.heads(both_BK if self.experts is None else self.experts(both_BK))
        return logits

    def encode(self, batch: Batch) -> Float[Tensor, "B W"]:
        """Return ``[K_u; K_v; K_uv]`` of every row."""
        hidden = self._hidden(batch)
        return torch.cat([hidden.user, hidden.item, hidden.both], 1)

    def user_knowledge(self, batch: Batch) -> Float[Tensor, "B D_u"]:
        """Return K_u, which reads the user's fields and histories only."""
        return self._user(batch, self.embeddings(batch))

    def item_knowledge(self, batch: Batch) -> Float[Tensor, "B D_v"]:
        """Return K_v, which reads the item's fields only."""
        return self._item(self.embeddings(batch))

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Return the weighted sum of the cross entropies of all labels, in float32, each over its labeled rows.

        Raises:
            ValueError: if the batch has no labels.
        """
        return self.tasks.loss(self.logits(batch), batch)

    def _hidden(self, batch: Batch) -> _Hidden:
        embedded = self.embeddings(batch)
        user, item = self._user(batch, embedded), self._item(embedded)
        inputs = [user, item]
        for (history, names), unit in zip(self.queries.items(), self.units):
            columns = embedded.histories[history]
            rest = [name for name in self.keys[history] if name not in names]
            q_BQ = torch.cat([embedded.features[name] for name in names], 1)
            k_UK = torch.cat([columns[name] for name in [*names, *rest]], 1)
            segments = Segments.of(batch, history)
            inputs.append(cast(TargetAttention, unit)(q_BQ, k_UK, segments))
        inputs += [embedded.features[name] for name in self.of["context"]]
        return _Hidden(user, item, self.both(torch.cat(inputs, 1)))

    def _user(self, batch: Batch, embedded: Embedded) -> Tensor:
        inputs = [embedded.features[name] for name in self.of["user"]]
        for history, names in self.keys.items():
            segments = Segments.of(batch, history)
            inputs += [segments.pool(embedded.histories[history][name], "mean") for name in names]
        user: Tensor = self.user(torch.cat(inputs, 1))
        return user

    def _item(self, embedded: Embedded) -> Tensor:
        item: Tensor = self.item(torch.cat([embedded.features[name] for name in self.of["item"]], 1))
        return item

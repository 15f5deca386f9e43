r"""DFN: Deep Feedback Network for Recommendation.

Xie, Ling, Wang, Wang, Xia, Lin, IJCAI 2020. https://doi.org/10.24963/ijcai.2020/349

Clicks, unclicked items and dislikes carry different information: clicks and dislikes are precise and rare, unclicked
items are many and noisy. Each kind of feedback is encoded separately, and the precise ones attend to the unclicked:

    f_s = mean(Transformer([e_a; s_1; ...; s_T]))            for s in c, u, d: clicked, unclicked, disliked (internal)
    f_uc = sum_i softmax_i(a(f_c, u_i)) u_i,  f_ud = sum_i softmax_i(a'(f_d, u_i)) u_i                     (external)
    a(q, x) = MLP([q; x; q - x; q * x])
    f = [f_c; f_d; f_u; f_uc; f_ud]
    logit = linear(fields) + FM(fields and the vectors of f) + MLP([fields; f])
    L = l_c L_c + l_u L_u + l_d L_d                          1 : 1 : 10, of clicked, of other and of disliked rows

The settings ``clicks``, ``unclicks`` and ``dislikes`` assign a history to each role. Without any of them, the first
history of the schema holds the clicks, the second the unclicked items, and the third the dislikes. A role without a
history is omitted, which has the same effect as zeros.

Every row is in one of the three losses. It is disliked if the feedback feature ``dislike`` is 1, whatever its label,
else clicked or not by the label. Without ``dislike`` there are two losses. A loss is the sum over its rows divided by
the number of all rows. In ``logits`` the logit of a dislike is the negative logit of the row.

Departures from the paper
    - an empty history gives f_s = 0 and no external attention: f_uc = 0 without clicks, f_ud = 0 without dislikes.
      The authors' code sums padding too, so that its output depends on the amount of padding;
    - the transformer is one layer with residuals and without normalization, whose outputs would dominate the
      embeddings in FM; the code has neither. Its positions are counted back from the candidate, which is at 0;
    - a column of the events that the candidate lacks is a learned vector for the candidate; for instance tokens, which
      share no column, a projection of the candidate's fields is the query;
    - if two histories differ in their columns, f_c or f_d is projected to the width of the unclicked events;
    - a row without a value of dislike counts as not disliked.

Shapes: B rows, N positions, U stored positions (see nn/segments.py), T events of a shared history, F fields, D
embedding width, K width of an event, H width of the linear, FM and MLP terms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from longrec.errors import ConfigError
from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.core.kinds import Ranker
from longrec.models.core.losses import compute_mean_loss
from longrec.models.core.registry import find_common_width
from longrec.models.core.top import EmbeddingConfig, Width
from longrec.nn.activation import ActivationName
from longrec.nn.attention import TargetAttention
from longrec.nn.bucketed_attention import BucketedAttention
from longrec.nn.embedding import Embedded, Embeddings
from longrec.nn.interactions import bi_interaction
from longrec.nn.length_buckets import find_empty_rows
from longrec.nn.linear import Linear
from longrec.nn.mlp import MLP
from longrec.nn.queries import Queries
from longrec.nn.segments import Segments
from longrec.nn.transformer import EncoderLayer

Weight = Annotated[float, Field(gt=0)]
ROLES = ("clicks", "unclicks", "dislikes")


class DFNConfig(EmbeddingConfig):
    """Settings of DFN."""

    renamed_keys: ClassVar[Mapping[str, str]] = {"places": "max_positions"}

    clicks: str | None = Field(None, description="History of clicked items; see the docstring for the default.")
    unclicks: str | None = Field(None, description="History of unclicked items.")
    dislikes: str | None = Field(None, description="History of disliked items.")
    dislike: str | None = Field(None, description="Feedback feature with the values 0 and 1: this row was disliked.")
    click_weight: Weight = Field(1.0, description="Weight of clicked rows in the loss.")
    unclick_weight: Weight = Field(1.0, description="Weight of unclicked rows.")
    dislike_weight: Weight = Field(10.0, description="Weight of disliked rows.")
    heads: Width = Field(2, description="Heads of the transformers.")
    max_positions: Width = Field(64, description="Number of distinct positions, counted back from the candidate.")
    attention: tuple[Width, ...] = Field((32,), min_length=1, description="Hidden units of the external attention.")
    mlp: tuple[Width, ...] = Field((128, 64), min_length=1, description="Hidden units of the MLP.")
    activation: ActivationName = Field("relu", description="Activation of the MLP.")
    batch_norm: bool = Field(True, description="Batch normalization in the MLP.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout rate of the MLP.")


class DFN(Ranker):
    """DFN over up to three histories of the schema.

    Attributes:
        role: the history of each role that has one.
    """

    Config = DFNConfig
    reads_history = True
    reads_groups = True
    order_matters = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"heads": 1, "max_positions": 4, "attention": [8, 4], "mlp": [32], "batch_norm": False, "dropout": 0.1},
    )

    def __init__(self, config: DFNConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        self.role = _assign_roles(config, fields)
        self.targets = (config.dislike,) if config.dislike else ()
        read = Fields(fields.features, {name: fields.histories[name] for name in self.role.values()})
        width = find_common_width(Fields(read.distinct_fields(), {}), config.embedding_dim, "dfn")
        self.embeddings = Embeddings(read, width=width, histories=True, std=config.init_std)
        self.first_order = Embeddings(Fields(fields.features, {}), width=1, std=0.0)
        self.bias = nn.Parameter(torch.zeros(1))
        self.queries = Queries(read, self.embeddings.widths, "dfn")
        key = self.queries.key_widths
        self.inner = nn.ModuleDict(
            {
                role: _Internal(
                    self.queries.query_widths[name], key[name], config.heads, config.max_positions, config.init_std
                )
                for role, name in self.role.items()
            }
        )
        self.outer, inputs = nn.ModuleDict(), sum(key[name] for name in self.role.values())
        for role in ("clicks", "dislikes"):
            if role in self.role and "unclicks" in self.role:
                unclicked = key[self.role["unclicks"]]
                self.outer[role] = _UnclickedAttention(key[self.role[role]], unclicked, config.attention)
                inputs += unclicked
        inputs += width * len(fields.features)
        self.deep = MLP(
            inputs, config.mlp, config.activation, config.dropout, config.batch_norm, outputs=1, last_bias=False
        )
        self.interaction_width = len(fields.features) + width + self.deep.width

    def embed_further(self, batch: Batch) -> dict[nn.Module, Embedded]:
        """Look up the first-order weights."""
        return {self.first_order: self.first_order(batch)}

    def interact(self, batch: Batch, embedded: Embedded) -> Float[Tensor, "B H"]:
        """Return the first-order weights, the elementwise products of all pairs, and the last hidden layer."""
        w_BF = torch.cat(list(embedded.further[self.first_order].features.values()), 1)
        v_BFD = torch.stack(list(embedded.features.values()), 1)
        x_BX = torch.cat([v_BFD.flatten(1), *self.feedback(batch, embedded).values()], 1)
        v_BFD = x_BX.reshape(batch.size, -1, v_BFD.shape[2])
        return torch.cat([w_BF, bi_interaction(v_BFD), self.deep.hidden(x_BX)], 1)

    def head(self, h_BH: Float[Tensor, "B H"]) -> Float[Tensor, "B K"]:
        """Return the sum of all terms, and its negative as the logit of a dislike."""
        assert self.deep.last is not None
        fm = self.interaction_width - self.deep.width
        logit_B1 = self.bias + h_BH[:, :fm].sum(1, keepdim=True) + self.deep.last(h_BH[:, fm:])
        return torch.cat([logit_B1, -logit_B1], 1) if self.targets else logit_B1

    def output_biases(self) -> Sequence[Tensor]:
        """Return the bias of the sum. The logit of a dislike has no separate bias."""
        return [self.bias]

    def label_loss(self, logits_BK: Float[Tensor, "B K"], batch: Batch) -> Float[Tensor, ""]:
        """Return the sum of the three weighted cross entropies, in float32.

        Raises:
            ValueError: if the batch has no labels, or no labels of the task ``dislike``.
        """
        if batch.label is None:
            raise ValueError("the batch carries no label")
        config, logit_B, label_B = self.config, logits_BK[:, 0].contiguous().float(), batch.label
        weight_B = torch.where(label_B > 0, config.click_weight, config.unclick_weight)
        for name in self.targets:
            if name not in batch.task_labels:
                raise ValueError(f"the batch carries no target {name!r}")
            disliked_B = batch.task_labels[name] == 1
            label_B = label_B.masked_fill(disliked_B, 0)
            weight_B = weight_B.masked_fill(disliked_B, config.dislike_weight)
        loss_B = F.binary_cross_entropy_with_logits(logit_B, label_B.nan_to_num(), weight_B, reduction="none")
        return compute_mean_loss(loss_B, batch, ~label_B.isnan())

    def feedback(self, batch: Batch, embedded: Embedded) -> dict[str, Float[Tensor, "B K"]]:
        """Return the vectors of f: ``clicks``, ``unclicks``, ``dislikes``, then ``unclicks by clicks`` and so on."""
        vectors: dict[str, Tensor] = {}
        read = {role: self.queries(batch, embedded, history) for role, history in self.role.items()}
        empty = {role: find_empty_rows(segments) for role, (_, _, segments) in read.items()}
        for role, inputs in read.items():
            vectors[role] = self.inner[role](*inputs)[0].masked_fill(empty[role], 0)
        for role, outer in self.outer.items():
            vectors[f"unclicks by {role}"] = outer(vectors[role], *read["unclicks"][1:]).masked_fill(empty[role], 0)
        return vectors

    def explain(self, batch: Batch) -> dict[str, Tensor]:
        """Return the candidate's attention in the transformers, mean over heads: ragged ``[N]``, shared ``[B, T]``.

        The weights of a row and that of the candidate itself sum to one.
        """
        embedded = self.embed(batch)
        return {
            history: cast(_Internal, self.inner[role])(*self.queries(batch, embedded, history))[1]
            for role, history in self.role.items()
        }


class _Internal(nn.Module):
    """Self attention over the candidate and the events of one history, and the mean of the outputs."""

    renamed_parameters: ClassVar[dict[str, str]] = {"places": "position_embedding"}

    def __init__(self, query: int, key: int, heads: int, max_positions: int, std: float) -> None:
        super().__init__()
        self.absent = nn.Parameter(torch.randn(key - query) * std) if query < key else None
        self.position_embedding = nn.Parameter(torch.randn(max_positions, key) * std)
        self.layer = EncoderLayer(key, heads, 4 * key, norm=False)

    def forward(self, q_BQ: Tensor, e_UK: Tensor, segments: Segments) -> tuple[Tensor, Tensor]:
        """Return the mean ``[B, K]``, and the candidate's weights, ragged ``[N]``, shared ``[B, T]``."""
        e_UK, segments = segments.flatten(e_UK)  # the layer changes the events by the candidate
        attention, layer = BucketedAttention(segments), self.layer
        y_BK = q_BQ if self.absent is None else torch.cat([q_BQ, self.absent.expand(q_BQ.shape[0], -1)], 1)
        back_U = (segments.count_newer() + 1).clamp(max=len(self.position_embedding) - 1)
        y_BK = attention.gather_rows(y_BK + self.position_embedding[0])
        x = attention.gather_positions(e_UK + self.position_embedding.index_select(0, back_U))
        (q, k, v), (own_q, *own) = layer.project(x), layer.project(y_BK)
        beside = own[0], own[1]
        o_BX, w = attention.attend_query(own_q, k, v, layer.heads, beside)
        o = attention.attend_within(q, k, v, layer.heads, beside)
        x = x.expand(*o.shape[:-1], -1)
        z_BK, z = layer.rest(y_BK, o_BX), layer.rest(x.flatten(0, -2), o.flatten(0, -2))
        total_BK = segments.sum(attention.restore_positions(z)) + attention.restore_rows(z_BK)
        return total_BK / (1 + segments.lengths()), attention.restore_positions(w)


class _UnclickedAttention(nn.Module):
    """Attention from the summary of one history (clicks or dislikes) to the unclicked events.

    Shapes: Q width of that summary, K width of an unclicked event.
    """

    def __init__(self, query: int, key: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.project = None if query == key else Linear(query, key, bias=False)
        self.unit = TargetAttention(key, key, widths, softmax=True)

    def forward(self, f_BQ: Tensor, e_UK: Tensor, segments: Segments) -> Tensor:
        """Return the pooled unclicked events ``[B, K]``. They are 0 for a row without such events."""
        pooled: Tensor = self.unit(f_BQ if self.project is None else self.project(f_BQ), e_UK, segments)
        return pooled


def _assign_roles(config: DFNConfig, fields: Fields) -> dict[str, str]:
    """Return the history of each role."""
    assigned = {role: name for role in ROLES if (name := getattr(config, role)) is not None}
    histories, faults = list(fields.histories), []
    if not assigned and len(histories) > len(ROLES):
        faults = [f"model: the schema has {len(histories)} histories; name those that dfn reads: {', '.join(ROLES)}"]
    for role, name in assigned.items():
        if name not in histories:
            faults.append(f"model.{role}: no history named {name!r}; there are {', '.join(histories) or 'none'}")
        elif list(assigned.values()).index(name) < list(assigned).index(role):
            faults.append(f"model.{role}: the history {name!r} has another role already")
    if faults:
        raise ConfigError("config", faults)
    return assigned or dict(zip(ROLES, histories))

r"""IAT: IAT: Instance-As-Token Compression for Historical User Sequence Modeling in Industrial
Recommender Systems (source model).

Li, Zhang, Yang, Teng, Zhao, Yang, Shi, Chen, Wu, Wang, Hou, Qin, Yu, Tan, arXiv 2026.
https://arxiv.org/abs/2604.08933

The source model compresses each impression (all its fields, after their interaction in a ranker) into one short vector,
its token. ``longrec compress`` stores the tokens, and other models use the tokens of a user as one more history. The
source model is trained on the label:

    h = F_int(x_nonseq, F_seq(x_seq))                     representation by the base ranker, input of its head
    e = act(W_1 h + b_1)                                  the token, which is stored
    dec(z) = W_3 act(W_2 z + b_2) + b_3                   back to the width of h
    temporal order:  logit = head(dec(e))
    user order:      Z = SIT(e_1 ... e_T; causal),  logit_i = head(dec(Z_i))

``head`` is that of the base. The source instance transformer (SIT, nn/causal.py) runs over the rows of a user, so that
the gradient of a row's loss also trains the tokens of earlier rows, for later use by attention. The token is stored
as it was before SIT. In a stream, earlier rows come from the store and get no gradient (``loss_with_context``).

With ``codes`` a token is quantized, each slot by residual codebooks of its own, learned with the label through a
straight-through gradient (SIF, Meituan 2026, https://arxiv.org/abs/2604.15650, section S1).

Departures from the paper
    - rows of one timestamp (candidates of a request) do not attend to each other: i reads j iff t_j < t_i or j = i;
    - choices where the paper leaves SIT open: pre-norm, 2 heads, GELU networks of four times the width, no dropout,
      learned biases per head and bucket of the time and of the rows between two rows; SIT starts as the identity;
    - the activation (the paper: sigma) is GELU by default, and the decoder ends with a linear layer back to the width
      of h, so that the base's own head is used;
    - ``labels`` adds the labels of earlier rows to the keys and values of SIT if they were available at the later row's
      timestamp; ``slots`` sets several tokens per instance (each is a row of its own in SIT, with a learned slot
      vector; slots of one row attend to each other); ``direct`` is the weight of an auxiliary label loss of
      head(dec(e)), without SIT;
    - with ``passes: two`` every second epoch visits the users in the reverse order of the one before (appendix). It has
      no effect with ``fit.epochs: 1``;
    - ``stored: after`` is the paper's ablation: the token as it is after SIT;
    - codes quantize slots of h, not groups of fields; the entropy regularizer is off by default.

Shapes: B rows, H width of the base, E width of a vector, N earlier instances, S slots, M levels, V codes, D width of a
slot, C codes of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from longrec.config import Strict
from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.core.base import ContextInstances, UserOrder
from longrec.models.core.kinds import Encoder
from longrec.models.core.losses import bce_loss
from longrec.models.core.registry import BaseSection, build_base
from longrec.models.core.rules import expand_switch, find_iat_faults
from longrec.nn.activation import ActivationName
from longrec.nn.causal import CausalTransformer
from longrec.nn.embedding import Embedded
from longrec.nn.host_plans import expand_rows, fetch
from longrec.nn.mlp import MLP, Layer
from longrec.nn.quantize import ResidualQuantizer
from longrec.nn.timeline import NOT_YET, Timeline

Width = Annotated[int, Field(ge=1)]


class Codes(Strict):
    """Settings of quantized tokens."""

    levels: int = Field(3, ge=1, le=16, description="Codebooks per slot, each for the residual of the one before.")
    size: int = Field(256, ge=2, le=256, description="Codes per codebook.")
    decay: float = Field(0.99, ge=0, lt=1, description="Decay per batch of the moving averages of the codebooks.")
    commitment: float = Field(0.25, ge=0, description="Weight of the commitment loss.")
    entropy: float = Field(0.0, ge=0, description="Weight of the entropy loss, which spreads vectors over all codes.")


class IATConfig(Strict):
    """Settings of the IAT source."""

    rules = (find_iat_faults,)

    base: BaseSection = Field(
        {"name": "deepfm"}, description="Model section of the ranker whose impressions are compressed."
    )
    order: Literal["user", "temporal"] = Field("user", description="Attention to earlier rows of the user, or none.")
    width: Width = Field(64, description="Width of a token.")
    slots: Width = Field(1, description="Tokens per instance.")
    decoder: Width = Field(128, description="Hidden units between the token and the head.")
    activation: ActivationName = Field("gelu", description="Activation of the token and of the decoder.")
    layers: Width = Field(2, description="Layers of SIT.")
    heads: Width = Field(2, description="Attention heads of SIT.")
    sit_width: int = Field(0, ge=0, description="Width inside SIT; 0 for the width of a token.")
    labels: bool = Field(False, description="Add labels of earlier rows to SIT, if available.")
    stored: Literal["before", "after"] = Field("before", description="Token before or after SIT.")
    direct: float = Field(0.0, ge=0, description="Weight of an auxiliary label loss of the token before SIT.")
    codes: Annotated[Codes | None, BeforeValidator(expand_switch)] = Field(
        None, description="Quantize tokens: true, or a mapping with the keys below."
    )
    rows_per_user: Width = Field(256, description="Longest run of rows of one user in a batch.")
    context: int = Field(0, ge=0, description="Earlier rows prepended to each run in training, without a loss.")
    passes: Literal["one", "two"] = Field(
        "one", description="two: every second epoch is reversed; needs fit.epochs of 2 or more."
    )


class IAT(Encoder):
    """Source model of instance tokens, with any ranker as its base."""

    Config = IATConfig
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"order": "temporal", "activation": "sigmoid", "base": {"name": "din", "mlp": [16], "attention": [8]}},
        {"labels": True, "slots": 2, "width": 8, "sit_width": 12, "direct": 0.5, "codes": {"size": 32}},
    )

    def __init__(self, config: IATConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        self.base = build_base(config.base, fields, "model.base")
        self.reads_history, self.order_matters = self.base.reads_history, self.base.order_matters
        self.width, self.slots = config.slots * config.width, config.slots
        self.compressor = Layer(self.base.interaction_width, self.width, config.activation, 0.0, False)
        self.decoder = MLP(self.width, [config.decoder], config.activation, outputs=self.base.interaction_width)
        self.quantizer = None
        if config.codes is not None:
            book, weights = config.codes, config.codes.model_dump(include={"decay", "commitment", "entropy"})
            self.quantizer = ResidualQuantizer(config.slots, book.levels, book.size, config.width, **weights)
        self.sit, self.slot = None, None
        if config.order == "user":
            self.user_order = UserOrder(config.rows_per_user, config.context, config.passes == "two")
            inside = config.sit_width or config.width
            self.sit = CausalTransformer(config.width, inside, config.layers, config.heads, config.labels)
            if config.slots > 1:
                self.slot = nn.Parameter(torch.randn(config.slots, config.width) * 0.02)
        self.encodes_in_context = config.stored == "after"

    def forward(self, batch: Batch) -> Float[Tensor, " B"]:
        """Return the logit of every row. In user order it attends to the earlier rows of its user in the batch."""
        e_BE, _ = self._tokens(batch, self.base.embed(batch))
        return self._decode(self._attend_batch(e_BE, batch))

    def output_biases(self) -> Sequence[Tensor]:
        """Return the output biases of the base."""
        return self.base.output_biases()

    def encode(self, batch: Batch) -> Float[Tensor, "B E"]:
        """Return the token of every row, slot by slot. With codes it is the quantized token."""
        e_BE, _ = self._tokens(batch, self.base.embed(batch))
        return self._attend_batch(e_BE, batch) if self.encodes_in_context else e_BE

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Return the mean cross entropy of the rows in the loss mask, plus the direct and the quantizer's loss."""
        embedded = self.base.embed(batch)
        e_BE, own = self._tokens(batch, embedded)
        loss = self._loss(self._attend_batch(e_BE, batch), e_BE, own, batch)
        return loss + self.base.aux_loss(batch, embedded)

    def logits_with_context(self, batch: Batch, context: ContextInstances) -> Float[Tensor, " B"]:
        """Return the logit of every row, with the earlier rows of its user from ``context`` alone."""
        e_BE, _ = self._tokens(batch, self.base.embed(batch))
        return self._decode(self._attend_context(e_BE, batch, context))

    def loss_with_context(self, batch: Batch, context: ContextInstances) -> Float[Tensor, ""]:
        """Return the loss with the earlier rows from ``context``. They get no gradient."""
        embedded = self.base.embed(batch)
        e_BE, own = self._tokens(batch, embedded)
        loss = self._loss(self._attend_context(e_BE, batch, context), e_BE, own, batch)
        return loss + self.base.aux_loss(batch, embedded)

    def codebooks(self) -> Float[Tensor, "S M V D"] | None:
        """Return the codebooks, or None without quantization."""
        return None if self.quantizer is None else self.quantizer.codebooks

    def codes(self, batch: Batch) -> UInt8[Tensor, "B C"]:
        """Return the codes of every row, slot by slot, level by level."""
        if self.quantizer is None:
            return super().codes(batch)
        return self.quantizer.codes(self._slots(self._compress(batch, self.base.embed(batch)))).flatten(1)

    def _compress(self, batch: Batch, embedded: Embedded) -> Tensor:
        e_BE: Tensor = self.compressor(self.base.interact(batch, embedded))
        return e_BE

    def _slots(self, e_BE: Tensor) -> Tensor:
        return e_BE.reshape(-1, self.slots, self.config.width)

    def _tokens(self, batch: Batch, embedded: Embedded) -> tuple[Tensor, Tensor | None]:
        """Return tokens ``[B, E]``, and the quantizer's loss if there is one."""
        e_BE = self._compress(batch, embedded)
        if self.quantizer is None:
            return e_BE, None
        e_BSD, own = self.quantizer(self._slots(e_BE))
        return e_BSD.flatten(1), own

    def _decode(self, z_BE: Tensor) -> Tensor:
        return self.base.ranking_logit(self.base.head(self.decoder(z_BE)))

    def _loss(self, z_BE: Tensor, e_BE: Tensor, own: Tensor | None, batch: Batch) -> Tensor:
        loss = bce_loss(self._decode(z_BE), batch)
        if self.config.direct:
            loss = loss + self.config.direct * bce_loss(self._decode(e_BE), batch)
        return loss if own is None else loss + own

    def _attend_batch(self, e_BE: Tensor, batch: Batch) -> Tensor:
        """Apply SIT with earlier rows of the batch. Rows without a user attend to themselves alone."""
        if self.sit is None:
            return e_BE
        if batch.users is None or batch.timestamps is None:
            if self.slot is None:
                return self._attend(e_BE, None)
            rows = torch.arange(batch.size, device=e_BE.device)
            return self._attend(e_BE, Timeline(np.arange(batch.size), rows, entries_per_row=self.slots))
        labels = None
        if self.config.labels and batch.label is not None and batch.label_time is not None:
            labels = torch.where(batch.label.isnan(), 0, (batch.label > 0.5).long() + 1)
        users = batch.users if batch.host_users is None else batch.host_users
        timeline = Timeline(users, batch.timestamps, labels, batch.label_time, self.slots, batch.available)
        return self._attend(e_BE, timeline)

    def _attend_context(self, e_BE: Tensor, batch: Batch, context: ContextInstances) -> Tensor:
        """Apply SIT with stored instances. Each row and its own context form a group."""
        if self.sit is None:
            return e_BE
        rows, own = torch.arange(batch.size, device=e_BE.device), np.arange(batch.size)
        assert batch.timestamps is not None
        offsets = fetch(context.offsets) if context.host_offsets is None else context.host_offsets
        groups = np.concatenate([expand_rows(offsets, own), own])
        timestamps = torch.cat([context.times, batch.timestamps])
        labels = label_times = None
        if self.config.labels:
            if context.labels is None:
                raise ValueError(
                    "this source model was trained with the labels of earlier rows, and the context has none"
                )
            labels = torch.cat([context.labels, torch.full_like(rows, NOT_YET)])
            since = (
                torch.full_like(context.times, torch.iinfo(torch.int64).min)
                if context.label_times is None
                else context.label_times
            )
            label_times = torch.cat([since, batch.timestamps])
        x_XE = torch.cat([context.vectors.detach().to(e_BE.dtype), e_BE])
        return self._attend(x_XE, Timeline(groups, timestamps, labels, label_times, self.slots), len(context.times))

    def _attend(self, x_XE: Tensor, timeline: Timeline | None, first: int = 0) -> Tensor:
        """Apply SIT to rows ``[X, E]``, each slot an entry of its own, and return those from ``first`` on."""
        assert self.sit is not None
        entries = x_XE if self.slot is None else (self._slots(x_XE) + self.slot).flatten(0, 1)
        wanted = torch.arange(first * self.slots, len(entries), device=x_XE.device) if first else None
        z: Tensor = self.sit(entries, timeline, wanted)
        return z if self.slot is None else z.reshape(-1, x_XE.shape[1])

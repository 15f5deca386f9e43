r"""IAT reader: IAT: Instance-As-Token Compression for Historical User Sequence Modeling in Industrial
Recommender Systems (downstream model).

Li, Zhang, Yang, Teng, Zhao, Yang, Shi, Chen, Wu, Wang, Hou, Qin, Yu, Tan, arXiv 2026.
https://arxiv.org/abs/2604.08933

The reader adds the stored tokens of a user (one vector per earlier impression, from the source model ``iat``) to any
ranker. A branch attends to the tokens with the current request as query, and its output enters the ranker before the
interaction.

    a_j   = act(W_a e_j + b_a)                                                      (adaptation of token e_j)
    tok_j = [a_j; embeddings of the side information of j]
    Q     = act(W [all embedded features of the request] + b)                       (compressed request)
    H     = F(proj_q(Q), proj_kv(tok_1), ..., proj_kv(tok_T))                       (F set by ``read``)
    logit = ranker([features of the request; H])

e_j gets no gradient. Histories that the branch does not use are inputs of the ranker. The branch also accepts histories
of columns, whose embeddings replace e_j, so that two arms of a comparison differ only in their input.

Departures from the paper
    - the paper names F (DIN, LONGER, Transformer); the single attention layer, the default, and all
      layers are ours (nn/token_attention.py, nn/token_layers.py);
    - the request of the branch has embeddings of its own, normalized as one vector, so that the ranker
      does not depend on the branch; the output of the branch is normalized too;
    - a row without positions gets a learned vector;
    - side information is in columns of the history: feedback, elapsed time; the version of a token enters its
      adaptation. Columns of more than 4,096 ids are embedded as content;
    - an instance of several slots is one token per slot, each with the side information of the instance and a
      vector of its slot.

Shapes: B rows, U stored positions, N positions, I width of the content, G side columns, Q width of the compressed
request, D width of the branch's output, H units of the ranker's interaction.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from longrec.config import Strict
from longrec.errors import ConfigError
from longrec.features.batch import Batch
from longrec.features.fields import TIME_GAP, Fields
from longrec.features.fields import Field as Column
from longrec.models.core.base import Model
from longrec.models.core.over import Over
from longrec.models.core.registry import BaseSection
from longrec.models.core.rules import find_reader_faults
from longrec.nn.activation import ActivationName, make_activation
from longrec.nn.embedding import Embedded, Embeddings
from longrec.nn.length_buckets import can_split, find_empty_rows, split_rows
from longrec.nn.linear import Linear
from longrec.nn.segments import Segments
from longrec.nn.token_attention import TokenAttention, TokenInput, TokenInterest
from longrec.nn.token_layers import TokenTransformer

Width = Annotated[int, Field(ge=1)]
Reader = TokenAttention | TokenInterest | TokenTransformer
_SIDE_ROWS = 4_096
"""Side columns of more ids are content: their table is not scored once per row."""
_CHUNK = 16_384
"""Positions per chunk."""


class IATReaderConfig(Strict):
    """Settings of the IAT reader."""

    rules = (find_reader_faults,)

    base: BaseSection = Field(
        {"name": "deepfm"}, description="Model section of the ranker that gets the output of the branch."
    )
    histories: tuple[str, ...] | None = Field(
        None, description="Histories of the branch; default: all token histories, or all histories if there are none."
    )
    read: Literal["attention", "din", "transformer", "longer"] = Field(
        "attention", description="F: one layer of attention, DIN's activation unit, a transformer, or LONGER."
    )
    width: Width = Field(64, description="Width of the branch's output per history.")
    heads: Width = Field(4, description="Attention heads.")
    layers: Width = Field(2, description="Layers of the transformer and of LONGER.")
    merge: Width = Field(4, description="LONGER: adjacent tokens merged into one.")
    recent: Width = Field(32, description="LONGER: newest merged tokens, the queries; later layers read them alone.")
    units: tuple[Width, ...] = Field((80, 40), min_length=1, description="Hidden units of DIN's activation unit.")
    query: Width = Field(128, description="Width of the compressed request.")
    query_from: Literal["request", "item"] = Field(
        "request", description="Features of the compressed request: all, or those of the item."
    )
    adapt: Width = Field(64, description="Width of an adapted token.")
    side_dim: Width = Field(16, description="Width of each column of side information.")
    activation: ActivationName = Field(
        "relu", description="Activation of the adaptation and of the compressed request."
    )
    embedding_dim: Width = Field(16, description="Width of the embeddings of the branch, of all fields.")
    base_dim: int | None = Field(
        None, ge=1, description="Width of the branch's output inside the ranker; by default as other features."
    )
    tokens: Literal["as_they_are", "zeroed"] = Field(
        "as_they_are", description="Zeroed: a control that reads the side information alone."
    )
    init_std: float = Field(0.01, gt=0, description="Standard deviation of the branch's initial embeddings.")


class IATReader(Over):
    """A ranker with a branch that reads instance tokens.

    Attributes:
        read: the columns of each history that the branch reads.
    """

    Config = IATReaderConfig
    reads_history = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"read": "din", "base": {"name": "dcn"}, "activation": "gelu", "query_from": "item"},
        {"read": "transformer", "width": 16, "heads": 2, "adapt": 16, "query": 16},
        {"read": "longer", "width": 16, "heads": 2, "adapt": 16, "query": 16, "merge": 2, "recent": 2},
    )

    def __init__(self, config: IATReaderConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        self.read = _columns(config, fields)
        query_features = tuple(f for f in fields.features if config.query_from == "request" or f.side == "item")
        if not query_features:
            raise ConfigError("schema", ["features: the query of iat_reader needs a feature of the item"])
        embedded = {name: columns.embedded for name, columns in self.read.items()}
        own = Fields(query_features, embedded)
        self.embeddings = Embeddings(own, width=config.embedding_dim, histories=True, std=config.init_std)
        wide = config.embedding_dim * len(query_features)
        self.request = nn.Sequential(
            nn.LayerNorm(wide), Linear(wide, config.query), make_activation(config.activation, config.query)
        )
        self.inputs, self.readers, self.norms = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.defaults = nn.ParameterList()
        for columns in self.read.values():
            sides = [*(field.rows for field in columns.sides), *([columns.slots] if columns.slots > 1 else [])]
            tokens = TokenInput(
                columns.width(config.embedding_dim), config.adapt, sides, config.side_dim, config.activation
            )
            self.inputs.append(tokens)
            self.readers.append(_reader(config, tokens))
            self.norms.append(nn.LayerNorm(config.width))
            self.defaults.append(nn.Parameter(torch.zeros(config.width)))
        self.set_base(config.base, self._base_fields())
        self.reads_history, self.reads_groups = True, False
        self.order_matters |= config.read in ("transformer", "longer")

    def embed(self, batch: Batch) -> Embedded:
        """Read the tokens, and look up the vectors of the ranker with the output of the branch among them."""
        return self.base.embed(self._add_computed(batch))

    def warm_start_prefix(self, other: Model) -> str:
        """Return an empty prefix: a run of the ranker has other inputs."""
        return ""

    def explain(self, batch: Batch) -> dict[str, Tensor]:
        """Return the attention of the branch (mean over heads), and the explanation of the ranker."""
        weights = self.base.explain(self._add_computed(batch))
        embedded = self.embeddings(batch)
        q_BQ = self._query(batch, embedded)
        for name, tokens, reader in zip(self.read, self.inputs, self.readers):
            if not isinstance(reader, TokenTransformer):
                x_UI, ids_GU, segments = self._tokens(batch, embedded, name)
                tok_UK = cast(TokenInput, tokens)(x_UI, ids_GU)
                w_NH = cast(TokenAttention | TokenInterest, reader).weights(q_BQ, tok_UK, segments)
                w_N = w_NH.mean(1).reshape(-1, self.read[name].slots).sum(1)
                weights[name] = segments.by_candidate(w_N)
        return weights

    def read_histories(self, batch: Batch) -> dict[str, Float[Tensor, "B D"]]:
        """Return H of every history that the branch reads."""
        embedded = self.embeddings(batch)
        q_BQ, outputs = self._query(batch, embedded), {}
        branches = zip(self.read, self.inputs, self.readers, self.norms, self.defaults)
        for name, tokens, reader, norm, default in branches:
            x_UI, ids_GU, segments = self._tokens(batch, embedded, name)
            h_BD = norm(_read(cast(Reader, reader), q_BQ, cast(TokenInput, tokens), x_UI, ids_GU, segments))
            outputs[name] = torch.where(find_empty_rows(segments), default, h_BD)
        return outputs

    def _query(self, batch: Batch, embedded: Embedded) -> Tensor:
        q_BQ: Tensor = self.request(torch.cat(list(embedded.features.values()), 1))
        return q_BQ

    def _tokens(self, batch: Batch, embedded: Embedded, name: str) -> tuple[Tensor, Tensor, Segments]:
        """Return content ``[U, I]``, ids of side information ``[G, U]`` and segments of one history, slot by slot."""
        columns, history = self.read[name], batch.histories[name]
        segments = Segments.of(batch, name)
        values = history.columns
        slots = columns.slots
        content = [cast(Tensor, values[f.name]).reshape(-1, f.width // slots) for f in columns.vectors]
        rest = list(embedded.histories[name].values()) if columns.embedded else []
        sides = [cast(Tensor, values[field.name]) for field in columns.sides]
        if slots > 1:
            rest = [x.repeat_interleave(slots, 0) for x in rest]
            sides = [ids.repeat_interleave(slots, 0) for ids in sides]
            sides.append(torch.arange(slots, device=history.offsets.device).repeat(segments.positions))
            segments = segments.multiply(slots)
        inputs = [*content, *rest]
        if not inputs or self.config.tokens == "zeroed":
            width = columns.width(self.config.embedding_dim)
            inputs = [torch.zeros(segments.positions, width, device=history.offsets.device)]
        x_UI = inputs[0] if len(inputs) == 1 else torch.cat(inputs, 1)
        ids_GU = torch.stack([ids.long() for ids in sides]) if sides else x_UI.new_zeros(0, len(x_UI)).long()
        return x_UI, ids_GU, segments

    def _base_fields(self) -> Fields:
        """Return the fields of the ranker: all features, one vector per history of the branch, the other histories."""
        dims = {field.dim for field in self.fields.features}
        # One width of all features in the schema applies to this one too: some rankers need it.
        dim = self.config.base_dim or (dims.pop() if len(dims) == 1 else None)
        # It differs between the candidates of a request, as fields of the item do.
        template = Column("", "computed", 0, dim, side="item", width=self.config.width)
        read = [replace(template, name=f"{name}.read") for name in self.read]
        rest = {name: columns for name, columns in self.fields.histories.items() if name not in self.read}
        return Fields((*self.fields.features, *read), rest)

    def _add_computed(self, batch: Batch) -> Batch:
        """Return the batch with the output of the branch, which the ranker embeds."""
        read = {f"{name}.read": h_BD for name, h_BD in self.read_histories(batch).items()}
        return replace(batch, computed={**batch.computed, **read})


@dataclass(frozen=True)
class _Columns:
    """Columns of one history by their use in the branch."""

    vectors: tuple[Column, ...]
    embedded: tuple[Column, ...]
    sides: tuple[Column, ...]

    @property
    def slots(self) -> int:
        return self.vectors[0].slots if self.vectors else 1

    def width(self, dim: int) -> int:
        """Return I, with embeddings of width ``dim``. 1 without content."""
        return max(sum(field.width // field.slots for field in self.vectors) + dim * len(self.embedded), 1)


def _columns(config: IATReaderConfig, fields: Fields) -> dict[str, _Columns]:
    """Return the columns of each history of the branch."""
    if not fields.histories:
        raise ConfigError("schema", ["histories: iat_reader reads a history, and the schema has none"])
    names = config.histories
    if names is None:
        tokens = [name for name, columns in fields.histories.items() if any(c.kind == "embedding" for c in columns)]
        names = tuple(tokens or fields.histories)
    choices = ", ".join(fields.histories)
    faults = [f"model.histories: no history {name!r} in the schema; it has {choices}" for name in names
              if name not in fields.histories]  # fmt: skip
    if not names or len(set(names)) < len(names):
        faults.append("model.histories: must name each history once, and one at least")
    if faults:
        raise ConfigError("config", faults)
    return {name: _sorted(fields.histories[name]) for name in names}


def _sorted(columns: tuple[Column, ...]) -> _Columns:
    vectors = tuple(column for column in columns if column.kind == "embedding")
    sides = tuple(
        column
        for column in columns
        if column.kind == "id" and (column.feedback or column.name == TIME_GAP) and column.rows <= _SIDE_ROWS
    )
    return _Columns(vectors, tuple(column for column in columns if column not in (*vectors, *sides)), sides)


def _read(reader: Reader, q_BQ: Tensor, tokens: TokenInput, x_UI: Tensor, ids_GU: Tensor, segments: Segments) -> Tensor:
    """Return the output of F, ``[B, D]``. Reads with wide tensors of all positions run chunk by chunk."""
    if isinstance(reader, TokenAttention) or not can_split(segments, _CHUNK):
        return reader(q_BQ, tokens, x_UI, ids_GU, segments)
    rows, positions, chunks = split_rows(segments, _CHUNK)
    split = torch.split
    each = zip(split(q_BQ, rows), split(x_UI, positions), split(ids_GU, positions, 1), chunks)
    return torch.cat([reader(q, tokens, x, ids, chunk) for q, x, ids, chunk in each])


def _reader(config: IATReaderConfig, tokens: TokenInput) -> Reader:
    """Build F."""
    if config.read == "attention":
        return TokenAttention(config.query, tokens, config.width, config.heads)
    if config.read == "din":
        return TokenInterest(config.query, tokens, config.width, config.units)
    longer = config.read == "longer"
    return TokenTransformer(
        config.query,
        tokens,
        config.width,
        config.heads,
        config.layers,
        merge=config.merge if longer else 1,
        recent=config.recent if longer else None,
    )

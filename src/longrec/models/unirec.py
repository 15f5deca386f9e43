r"""UniRec: Bridging the Expressive Gap between Generative and Discriminative Recommendation via Chain-of-Attribute.

Wang, Lin, Wang, Liang, Huang, Bian, Zhang, Cai, Dong, Zhang, arXiv 2026. https://arxiv.org/abs/2604.12234

A decoder writes the path of the next item: attributes, such as its category, then the codes of its semantic ID. The
attributes come first, because they narrow the codes down. With a history H, a task c and the tokens y_1 ... y_S:

    h_j = W RMSNorm([e_item; e_category; ...]),   g_j = RMSNorm(W' [e_code_1; ...])    (events; H = [h; g] + positions)
    x_1 = bos + sum_k e_{c_k},   x_t = e_{y_{t-1}}                                     (inputs, + embedding of step)
    x <- x + gamma W^O softmax(q k^T / sqrt(d_head)) v,   q = W^Q RMSNorm(x), k, v = H (gated cross-attention)
    x <- x + sum_e g_e W2_e (SiLU(W1_e z) * W3_e z),      z = RMSNorm(x)               (experts, gate per step)
    u_t = [q_t; sum_{s<t} e_{y_s}; c_t; h_agg],           q_t = RMSNorm(x_t)
    p(y_t | y_<t, H, c) = softmax(g_t(u_t)),              g_t = SENet, MaskBlock, Linear
    h_static = RMSNorm([e_user; e_context; ...]),         h_agg = RMSNorm([h_static; mean(H)])

c_t are the content summaries: hashes of pairs of tokens that are decoded before t, looked up in a small table
(nn/content_summary.py). The loss is the sum of -log p over the steps, weighted per target.

Without self-attention a decoder's output depends on the request, the step and the token before. The tokens before that
enter in the head. So the stack runs once per request and token, and not once per beam.

Ranking by p(attributes | y, user) p(y | user) is ranking by p(y | attributes, user) if p(attributes | user) is
constant. ``correction`` subtracts its logarithm, times this number: an estimate of p(attributes | user) by the same
model without a task. It is trained where ``task_dropout`` leaves the task out.

A decoder of plain semantic IDs like TIGER's is the same model without ``attributes``, ``tasks`` and ``pairs``, with
``head: linear``, ``self_attention: true`` and ``encoder_layers: 2``.

Departures from the paper
    - sizes are for one CPU: 64 units and 2 layers instead of 256 and 3, experts of 64 units instead of 4 d, hashes of
      16 numbers instead of 64, and few heads;
    - scores of attention are divided by sqrt(d_head) and not by sqrt(d), because there are several heads;
    - gamma is one number per layer and begins at ``gate``, which the paper leaves open;
    - events have positions, which count from the newest one. ``positions: 0`` drops them;
    - ``code_events: join`` puts codes and other columns of an event into one vector, which halves the positions;
    - a pair with a token that is not decoded yet has no summary, where a learned constant would be a bias of the head;
    - the sum of the prefix and the summaries are normalized, so that small initial embeddings count in the head;
    - searches can smooth codes, so that items without events are generated (``smoothing``), and can share probability
      among servable children alone (``renormalize``). Both are off by default;
    - events and paths share the table of a feature. A task is the sum of vectors of its features, which have tables of
      their own. An unseen one is zero, so that it falls back to no task;
    - the joint training with RFT and DPO is a model over this one (models/alignment.py).

Shapes: R requests, N positions of their histories, U columns (steps) of a decoder, W prefixes, T targets, S steps, D
width, V tokens of a step, A width of h_agg.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.generation.beam import Steps
from longrec.models.core.generator import Generator, GeneratorConfig, list_path
from longrec.models.core.item_history import add_all, make_empty
from longrec.models.core.path_steps import CachedSteps, leave_out
from longrec.models.core.top import Width
from longrec.nn import kernels
from longrec.nn.content_summary import ContentSummary
from longrec.nn.dropout import Dropout
from longrec.nn.embedding import Embeddings
from longrec.nn.linear import Linear
from longrec.nn.path_decoder import Cache, PathDecoder, Shape
from longrec.nn.path_heads import PathHeads
from longrec.nn.path_history import PathHistory
from longrec.nn.path_memory import Memory
from longrec.nn.rms_norm import RMSNorm
from longrec.nn.segments import Segments
from longrec.nn.target_histories import TargetHistories

_IDS = ("id", "multi_id")


class UniRecConfig(GeneratorConfig):
    """Settings of UniRec."""

    embedding_dim: Width = Field(
        64, json_schema_extra={"x-row-width": True}, description="Width of all embeddings and states."
    )
    init_std: float = Field(0.02, gt=0, description="Standard deviation of the initial embeddings.")
    layers: Width = Field(2, description="Layers of the decoder.")
    heads: Width = Field(4, description="Heads of all attention, a divisor of the width.")
    hidden: Width = Field(64, description="Hidden units of an expert.")
    experts: Width = Field(4, description="Experts of a layer. 1: a plain SwiGLU network.")
    gate: float = Field(1.0, description="Initial gamma: the weight of the attention over the history.")
    self_attention: bool = Field(False, description="Causal attention among the tokens of a path.")
    encoder_layers: int = Field(0, ge=0, description="Transformer layers over the events of a history.")
    positions: int = Field(50, ge=0, description="Distinct positions, counted from the newest event. 0: none.")
    code_events: Literal["append", "join"] = Field(
        "append", description="codes of events: entries of their own, or a vector with the other columns of an event"
    )
    static: bool = Field(True, description="Read the features of users and of the context.")
    tasks: tuple[str, ...] = Field((), description="id features of users or of the context that name the task")
    task_dropout: float = Field(0.0, ge=0, lt=1, description="Share of targets that are trained without their task.")
    correction: float = Field(
        0.0, ge=0, description="weight of log p(attributes | user), which is subtracted from scores; needs tasks"
    )
    pairs: tuple[tuple[str, str], ...] | None = Field(
        None,
        description="pairs of features of the path with a content summary; default: each attribute with the first two "
        "codes, and these codes",
    )
    summary_width: Width = Field(
        16,
        json_schema_extra={"x-hash-width": True},
        description="Width of one of the three hashes of a content summary.",
    )
    summary_rows: int | None = Field(
        None,
        ge=1,
        json_schema_extra={"x-rows": True},
        description="rows of a table of hashes; default: the paper's formula",
    )
    share_summaries: bool = Field(True, description="One table of hashes for all pairs.")
    head: Literal["mask", "linear"] = Field(
        "mask",
        description="head of a step: SENet and MaskNet over decoder, prefix, summaries and user, or a linear layer",
    )
    head_hidden: Width = Field(128, json_schema_extra={"x-row-width": True}, description="Hidden units of the head.")
    head_mask: Width = Field(64, description="Hidden units of the mask of the head.")
    dropout: float = Field(0.2, ge=0, lt=1, description="Dropout rate of inputs, branches and heads.")


class UniRec(Generator):
    """UniRec over the first history of the schema."""

    Config = UniRecConfig
    order_matters = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"attributes": ["category"], "embedding_dim": 16, "positions": 3, "tasks": ["user"], "summary_rows": 7},
        {
            **{"attributes": ["category"], "embedding_dim": 12, "heads": 2, "tasks": ["user"], "correction": 0.5},
            **{"task_dropout": 0.3, "code_events": "join", "share_summaries": False, "static": False, "experts": 1},
        },
        {
            **{"embedding_dim": 16, "pairs": [], "head": "linear", "self_attention": True, "encoder_layers": 1},
            **{"static": False, "search": "exact", "renormalize": True, "smoothing": 0.1, "layers": 1},
        },
    )

    def __init__(self, config: UniRecConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        self.width, steps = config.embedding_dim, len(self.path)
        self.history, names = next(iter(fields.histories)), [field.name for field in self.path]
        self.pairs = [(names.index(x), names.index(y)) for x, y in _choose_pairs(config, names)]
        codes = names[self.attributes :]
        columns = [field for field in fields.histories[self.history] if field.kind in _IDS]
        events = [f.name for f in columns if f.name not in codes]
        event_codes = [f.name for f in columns if f.name in codes]
        if config.code_events == "join":
            events, event_codes = events + event_codes, []
        static = tuple(field for field in fields.features if field.side != "item" and config.static)
        self.static = [field.name for field in static]
        if static or config.tasks:
            self.sampling = replace(self.sampling, requests=True)
        read = Fields((*static, *self.path[:-1]), {self.history: tuple(columns)})
        self.embeddings = Embeddings(read, width=self.width, histories=True, std=config.init_std)
        tasks = tuple(field for field in fields.features if field.name in config.tasks)
        self.tasks = Embeddings(Fields(tasks, {}), width=self.width, std=config.init_std)

        width, std = self.width, config.init_std
        self.start = nn.Parameter(torch.randn(width) * std)
        self.step_embedding = nn.Parameter(torch.randn(steps, width) * std)
        self.events = PathHistory(
            (events, event_codes),
            width,
            config.layers,
            config.heads,
            encoder_layers=config.encoder_layers,
            positions=config.positions,
            dropout=config.dropout,
            std=std,
        )
        shape = Shape(width, config.heads, config.hidden, config.experts, steps, config.gate, config.dropout)
        self.decoder = PathDecoder(shape, config.layers, config.self_attention)
        self.dropout, self.task_dropout = Dropout(config.dropout), Dropout(config.task_dropout)
        masks, aggregate = config.head == "mask", (len(static) + 1) * width
        self.static_norm = RMSNorm(aggregate - width) if static and masks else None
        self.aggregate_norm = RMSNorm(aggregate) if masks else None
        self.heads: PathHeads | None = None
        self.plain_heads = nn.ModuleList(() if masks else (Linear(width, size) for size in self.sizes))
        if masks:
            summary, sizes = None, [(self.sizes[x], self.sizes[y]) for x, y in self.pairs]
            if sizes:
                shared, rows = config.share_summaries, config.summary_rows
                summary = ContentSummary(sizes, config.summary_width, shared=shared, rows=rows, std=std)
            own = config.head_mask, config.head_hidden, config.dropout
            self.heads = PathHeads(self.sizes, width, aggregate, self.pairs, summary, *own)

    def find_faults(self, config: Any, fields: Fields) -> list[str]:
        """Return one message per setting that does not go with the fields."""
        faults, path = super().find_faults(config, fields), list_path(config, fields)
        if config.embedding_dim % config.heads:
            faults.append(f"model.heads: {config.heads} heads do not divide a width of {config.embedding_dim}")
        requests = [field.name for field in fields.features if field.side != "item" and field.kind == "id"]
        ids = ", ".join(requests) or "none"
        faults += [
            f"model.tasks: {name!r} is no id feature of the user or the context, which are: {ids}"
            for name in config.tasks
            if name not in requests
        ]
        if not config.tasks:
            faults += [f"model.{key}: needs tasks" for key in ("correction", "task_dropout") if getattr(config, key)]
        if config.correction and not config.attributes:
            faults.append("model.correction: needs attributes, whose probability it subtracts")
        for pair in config.pairs or ():
            if pair[0] == pair[1] or any(name not in path[:-1] for name in pair):
                do = f"two of {', '.join(path[:-1]) or 'none'}, which are generated before the last token"
                faults.append(f"model.pairs: [{', '.join(pair)}] must be {do}")
        if fields.histories:
            name = next(iter(fields.histories))
            if not any(field.kind in _IDS for field in fields.target_columns(name)):
                do = "add the item, or its codes, to it"
                faults.append(f"schema.histories.{name}.features: has no id of the item; {do}")
        return faults

    def encode(self, batch: Batch) -> Memory:
        """Return keys and values of the history, the input of the first step, and h_agg, of each request."""
        memory = self._encode(batch)
        if not self.config.correction:
            return memory
        return replace(memory, unconditioned=self._encode(leave_out(batch, self.config.tasks)))

    def pack_memory(self, memory: Memory) -> dict[str, Tensor]:
        """Return keys and values, the first input and h_agg, and those without a task if a score needs them."""
        return memory.pack()

    def unpack_memory(self, tensors: Mapping[str, Tensor]) -> Memory:
        """Return the memory of one request."""
        return Memory.unpack(tensors, self.config.layers, self.config.heads)

    def step(self, memory: Memory, prefix: Tensor, cache: Cache | None = None) -> Float[Tensor, "R W V"]:
        """Return the logits of the next token after each prefix.

        Args:
            cache: of self-attention, for the tokens before the last one. That of the last one is appended.
        """
        step, requests, prefixes = prefix.shape[-1], memory.start.shape[0], prefix.shape[-2]
        q_ND = self._read_states(memory, prefix, cache).reshape(-1, self.width)
        if self.heads is None:
            return self.plain_heads[step](q_ND).view(requests, prefixes, -1)

        def repeat(x: Tensor) -> Tensor:
            """``[R W, .]``, from one entry per prefix, for all requests or for each."""
            x = x.view(*prefix.shape[:-1], x.shape[-1])
            return x.expand(requests, -1, -1).reshape(requests * prefixes, -1)

        e = [self._embed_tokens(prefix[..., s], s) for s in range(step)]
        total = repeat(self.heads.add(e)) if step else None
        pairs = {pair: repeat(c) for pair, c in self.heads.summarize(prefix.flatten(0, -2).unbind(1)).items()}
        aggregate = memory.aggregate.unsqueeze(1).expand(-1, prefixes, -1).reshape(requests * prefixes, -1)
        return self.heads(step, q_ND, total, pairs, aggregate).view(requests, prefixes, -1)

    def score_tokens(
        self, memory: Memory, prefix: Tensor, caches: Sequence[Cache] | None = None
    ) -> Float[Tensor, "R W V"]:
        """Return the log-probability of each next token, minus that without a task for attributes if corrected."""
        first, second = caches or (None, None)
        log_RWV = self.step(memory, prefix, first).float().log_softmax(2)
        if memory.unconditioned is None or prefix.shape[-1] >= self.attributes:
            return log_RWV
        other = self.step(memory.unconditioned, prefix, second).float().log_softmax(2)
        return log_RWV - self.config.correction * other

    def target_logits(self, batch: Batch, detach_last: bool = False) -> list[Float[Tensor, "T V"]]:
        """Return the logits of each step for the targets of a batch, given the tokens of the target before it."""
        targets = batch.targets
        assert targets is not None
        plan = TargetHistories.of(batch, self.history)
        rows = plan.order if targets.per_position else targets.state.index_select(0, plan.order)
        if targets.requests is not None:
            batch = replace(batch, requests=targets.requests)
        if self.config.task_dropout and self.training:
            batch = leave_out(batch, self.config.tasks, self.task_dropout)
        embedded, tasks = self.embeddings(batch), list(self.tasks(batch).request.values())
        events = [x.index_select(0, plan.stored) for x in self.events.read(embedded.histories[self.history])]
        static = [embedded.request[name].index_select(0, rows) for name in self.static]
        memory = self._remember(events, plan.segments, static, [x.index_select(0, rows) for x in tasks])

        item_T = targets.item.index_select(0, plan.order)
        token_TS = self.stack_tokens(batch.candidates).index_select(0, item_T)
        tokens = [embedded.candidate[field.name].index_select(0, item_T) for field in self.path[:-1]]
        x_TSD = torch.stack([memory.start, *tokens], 1) + self.step_embedding
        q_TSD = self.decoder(self.dropout(x_TSD).unsqueeze(1), memory.keys, None).squeeze(1)
        logits = self._score_steps(q_TSD, tokens, token_TS.unbind(1), memory.aggregate, detach_last)
        return [x.index_select(0, plan.back) for x in logits]

    def open_search(self, memory: Any) -> Steps:
        """Return the steps of a beam search, with a cache of the tokens before if they attend to each other."""
        if not self.config.self_attention:
            return super().open_search(memory)
        return CachedSteps(partial(self.score_tokens, memory), 2)

    def score_paths(self, memory: Memory, token_IS: Tensor) -> Float[Tensor, " I"]:
        """Return the score of each path for one request, all steps in one pass of the decoder."""
        if memory.unconditioned is not None:
            return super().score_paths(memory, token_IS)
        tokens, paths = token_IS.unbind(1), token_IS.shape[0]
        e = [self._embed_tokens(token_I, step) for step, token_I in enumerate(tokens[:-1])]
        x_ISD = torch.stack([memory.start.expand(paths, -1), *e], 1) + self.step_embedding
        q_ISD = self.decoder(x_ISD.unsqueeze(0), memory.keys, None)[0]
        logits = self._score_steps(q_ISD, e, tokens, memory.aggregate.expand(paths, -1), False)
        logs = [x.float().log_softmax(1).gather(1, y.unsqueeze(1)) for x, y in zip(logits, tokens)]
        return torch.cat(logs, 1).sum(1)

    def _score_steps(
        self, q_TSD: Tensor, e: Sequence[Tensor], tokens: Sequence[Tensor], aggregate_TA: Tensor, detach_last: bool
    ) -> list[Tensor]:
        """Return the logits ``[T, V]`` of every step from the states, the embeddings of tokens, and the tokens."""
        states, heads, last = q_TSD.unbind(1), self.heads, len(self.path) - 1
        if heads is None:
            logits = [head(q_TD) for head, q_TD in zip(self.plain_heads, states)]
            return [*logits, self.plain_heads[last](states[last].detach())] if detach_last else logits
        pairs, totals = heads.summarize(tokens[:-1]), [None, *(heads.add(e[: step + 1]) for step in range(len(e)))]
        logits = [heads(step, q_TD, totals[step], pairs, aggregate_TA) for step, q_TD in enumerate(states)]
        if not detach_last:
            return logits
        total = totals[last]
        detached = {pair: c_TK.detach() for pair, c_TK in pairs.items()}
        before = None if total is None else total.detach()
        return [*logits, heads(last, states[last].detach(), before, detached, aggregate_TA.detach())]

    def _encode(self, batch: Batch) -> Memory:
        columns = make_empty(self.path, batch.histories[self.history].columns)
        batch = replace(batch, candidates={**batch.candidates, **columns})
        embedded, tasks = self.embeddings(batch), list(self.tasks(batch).request.values())
        events = self.events.read(embedded.histories[self.history])
        static = [embedded.request[name] for name in self.static]
        return self._remember(events, Segments.of(batch, self.history).requests, static, tasks)

    def _remember(
        self, events: Sequence[Tensor], segments: Segments, static: Sequence[Tensor], tasks: Sequence[Tensor]
    ) -> Memory:
        """Return the memory of requests from the vectors of their events, of their features and of their tasks."""
        keys, mean_RD = self.events(events, segments)
        if self.aggregate_norm is not None:
            own = [] if self.static_norm is None else [self.static_norm(torch.cat(list(static), 1))]
            mean_RD = self.aggregate_norm(torch.cat([*own, mean_RD], 1))
        return Memory(keys, add_all([self.start.expand(segments.rows, -1), *tasks]), mean_RD)

    def _read_states(self, memory: Memory, prefix: Tensor, cache: Cache | None) -> Tensor:
        """Return the states ``[R, W, D]`` that predict the next token after each prefix."""
        step, requests, prefixes = prefix.shape[-1], memory.start.shape[0], prefix.shape[-2]
        if cache is not None:
            e = self._embed_tokens(prefix[..., -1], step - 1) if step else memory.start.unsqueeze(1)
            return self.decoder((e + self.step_embedding[step]).unsqueeze(2), memory.keys, step, cache).squeeze(2)
        if self.config.self_attention:
            x = memory.start.view(requests, 1, 1, -1).expand(-1, prefixes, -1, -1)
            tokens = [self._embed_tokens(prefix[..., s], s).expand(requests, -1, -1) for s in range(step)]
            x = torch.cat([x, *(e.unsqueeze(2) for e in tokens)], 2) + self.step_embedding[: step + 1]
            return self.decoder(x, memory.keys, None)[:, :, -1]
        if not step:
            x = memory.start.view(requests, 1, 1, -1) + self.step_embedding[0]
            return self.decoder(x, memory.keys, 0).squeeze(2).expand(-1, prefixes, -1)
        last, index = prefix[..., -1], None
        if not kernels.is_traced():
            distinct, inverse = torch.unique(last, return_inverse=True)
            if last.dim() == 1 or len(distinct) < prefixes:
                last, index = distinct, inverse
        e = self._embed_tokens(last, step - 1).expand(requests, -1, -1).unsqueeze(2)
        q = self.decoder(e + self.step_embedding[step], memory.keys, step).squeeze(2)
        if index is None:
            return q
        if index.dim() == 1:
            return q.index_select(1, index)
        first = torch.arange(requests, device=index.device).unsqueeze(1) * q.shape[1]
        return q.flatten(0, 1).index_select(0, (first + index).flatten()).view(requests, prefixes, -1)

    def _embed_tokens(self, token: Tensor, step: int) -> Tensor:
        return F.embedding(token, self.embeddings.table(self.path[step].name))


def _choose_pairs(config: UniRecConfig, path: Sequence[str]) -> Sequence[tuple[str, str]]:
    """Return the pairs of content summaries."""
    if config.pairs is not None:
        return config.pairs
    codes = path[len(config.attributes) :][:2]
    pairs = [(name, code) for name in config.attributes for code in codes] + ([tuple(codes)] if len(codes) == 2 else [])
    return [(x, y) for x, y in pairs if path[-1] not in (x, y)]

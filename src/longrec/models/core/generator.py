"""Generators: retrievers that write an item token by token.

A path is the tokens of an item: attributes first, then the codes of its semantic ID. Each is an id feature of the item,
and a token is a row of its table, so that a new item needs codes and no training. Its score is

    score(item | request) = sum_t log p(token_t | tokens before t, request)

``search: exact`` computes it for all items. ``search: beam`` computes it for the paths that a beam reaches, and all
other items tie at ``FLOOR``, below every one of them. Items with equal paths (twins) have equal scores. An item with a
missing code cannot be generated: it has the score ``FLOOR``, and adds nothing to a loss.

Shapes: R requests, I items, T targets, S steps, W prefixes, t tokens of a prefix, V tokens of a step, L leaves.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from longrec.config import Strict
from longrec.errors import ConfigError
from longrec.features.batch import Batch, Column, Jagged, Layout
from longrec.features.fields import Field as FieldOf
from longrec.features.fields import Fields
from longrec.features.sampling import Sampling
from longrec.generation.beam import DeviceTrie, Steps, score_leaves, search_beams
from longrec.generation.child_rule import ChildRule
from longrec.generation.trie import Trie
from longrec.models.core.finder import name_of_class
from longrec.models.core.kinds import Retriever
from longrec.models.core.rules import find_path_faults
from longrec.models.core.top import Width
from longrec.nn import kernels

FLOOR = -1e6
"""Score of items that a search did not reach, and of those without codes."""
MISSING = 0
"""Token of a missing value."""
_NUMBERS = 4_000_000
"""Number of logits of a beam search that are in memory together."""
_EXACT_REQUESTS = 64
"""Number of requests that exact scoring encodes together."""


class GeneratorConfig(Strict):
    """Settings of a generator."""

    rules = (find_path_faults,)

    attributes: tuple[str, ...] = Field(
        (), description="id features of the item that are generated before the codes, coarse ones first"
    )
    codes: tuple[str, ...] = Field(
        (), description="id features of the item that are its codes, first level first; default: code_1, code_2, ..."
    )
    search: Literal["exact", "beam"] = Field(
        "beam", description="scores of evaluation: those of all items, or of the paths that a beam search reaches"
    )
    beam_width: Width = Field(
        256,
        description="beams of a search, or the number of wanted items (k, or the largest cut of evaluate) if that is "
        "more; exact from the number of distinct paths on",
    )
    renormalize: bool = Field(
        False, description="probabilities over the servable children of a beam, instead of all tokens of a step"
    )
    smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the probability of each code but the first that all servable ones after a prefix get "
        "alike, so that items without events are generated; read in searches alone",
    )


@dataclass(frozen=True)
class Generated:
    """Items that were generated, the best first.

    Attributes:
        items: int64 ``[R, K]``, as the trie numbers them. -1 where there are fewer.
        scores: float32 ``[R, K]``. Minus infinity where there is no item.
    """

    items: NDArray[np.int64]
    scores: NDArray[np.float32]


class Generator(Retriever):
    """A retriever that generates the tokens of an item.

    Attributes:
        path: the features whose tokens are generated, in this order.
        attributes: how many of them are attributes.
        sampling: there are no negatives.
        reads_sequences: True if batches of sequences serve training. Each target still reads a history of its own.
    """

    Config: ClassVar[type[Strict]] = GeneratorConfig
    reads_history = True
    reads_groups = True
    path: tuple[FieldOf, ...]
    attributes: int
    sampling: Sampling = Sampling("none", 0)
    reads_sequences: bool = True

    def __init__(self, config: GeneratorConfig, fields: Fields) -> None:
        """Choose the features of the path.

        Raises:
            ConfigError: settings that do not go with the fields, all together.
        """
        super().__init__(config, fields)
        if faults := self.find_faults(config, fields):
            raise ConfigError("config", faults)
        self.path = tuple(_list_items(fields)[name] for name in list_path(config, fields))
        self.attributes = len(config.attributes)
        self._recent: tuple[tuple[Tensor, ...], Trie] | None = None

    @abstractmethod
    def encode(self, batch: Batch) -> Any:
        """Return what the steps read of each request, computed once. The candidates of the batch are not read."""

    @abstractmethod
    def step(self, memory: Any, prefix: Int[Tensor, "... t"]) -> Float[Tensor, "R W V"]:
        """Return the logits of the next token after each prefix.

        Args:
            memory: result of ``encode`` for R requests.
            prefix: tokens, int64: ``[R, W, t]``, or ``[W, t]`` for prefixes that all requests have.
        """

    @abstractmethod
    def pack_memory(self, memory: Any) -> dict[str, Tensor]:
        """Return the result of ``encode`` for a shared batch as float32 tensors ``[n, width]``, by name.

        Each has one row, or the same number of rows for each event of the history. They go from one exported program to
        the others.
        """

    @abstractmethod
    def unpack_memory(self, tensors: Mapping[str, Tensor]) -> Any:
        """Return what ``step`` reads of one request from the result of ``pack_memory``."""

    @abstractmethod
    def target_logits(self, batch: Batch, detach_last: bool = False) -> list[Float[Tensor, "T V"]]:
        """Return the logits of each step for the targets of a batch, given the tokens of the target before it.

        Args:
            detach_last: append those of the last step again, by its head alone: its inputs get no gradient.
        """

    def score_tokens(self, memory: Any, prefix: Int[Tensor, "... t"]) -> Float[Tensor, "R W V"]:
        """Return what each next token adds to a score, float32. By default its log-probability."""
        return self.step(memory, prefix).float().log_softmax(2)

    def score_paths(self, memory: Any, token_IS: Int[Tensor, "I S"]) -> Float[Tensor, " I"]:
        """Return the score of each path for one request, without a search. By default by ``score_tokens``."""
        total_I = torch.zeros(1, device=token_IS.device)
        for step in range(len(self.path)):
            log_IV = self.score_tokens(memory, token_IS[:, :step])[0]
            total_I = total_I + log_IV.gather(1, token_IS[:, step : step + 1]).squeeze(1)
        return total_I

    def open_search(self, memory: Any) -> Steps:
        """Return the steps of a beam search. By default ``score_tokens`` of each prefix."""
        return _PlainSteps(self, memory)

    @property
    def rule(self) -> ChildRule:
        """Return how a search scores the children of a beam."""
        return ChildRule.of(self.config.renormalize, self.config.smoothing, self.attributes)

    @property
    def sizes(self) -> tuple[int, ...]:
        """V of each step."""
        return tuple(field.rows for field in self.path)

    def stack_tokens(self, columns: Mapping[str, Column]) -> Int[Tensor, "I S"]:
        """Return the paths of items from their features."""
        tokens = [columns[field.name] for field in self.path]
        return torch.stack([values for values in tokens if isinstance(values, Tensor)], 1).long()

    def target_tokens(self, batch: Batch) -> Int[Tensor, "T S"]:
        """Return the path of each target of a batch."""
        assert batch.targets is not None
        return self.stack_tokens(batch.candidates).index_select(0, batch.targets.item)

    def log_probabilities(self, batch: Batch) -> Float[Tensor, "T S"]:
        """Return the log-probability of each token of each target, given those before it."""
        token_TS = self.target_tokens(batch)
        logs = [
            logits.float().log_softmax(1).gather(1, token_TS[:, step : step + 1])
            for step, logits in enumerate(self.target_logits(batch))
        ]
        return torch.cat(logs, 1)

    def token_hits(self, batch: Batch, k: int = 3) -> Bool[Tensor, "T S"]:
        """Return True for each token of a target that is among the k most probable ones, given those before it.

        These are hits of tokens under teacher forcing, and no hits of items.
        """
        token_TS = self.target_tokens(batch)
        hits = []
        for step, logits in enumerate(self.target_logits(batch)):
            best_Tk = logits.topk(min(k, logits.shape[1]), 1).indices
            hits.append((best_Tk == token_TS[:, step : step + 1]).any(1))
        return torch.stack(hits, 1)

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Return the mean negative log-probability of the paths of the targets, by their weights if set, in float32.

        Raises:
            ValueError: if the batch has no targets.
        """
        if batch.targets is None:
            raise ValueError("a retriever needs a batch with targets")
        loss_T = -self.log_probabilities(batch).sum(1)
        loss_T = loss_T.masked_fill(~self._is_servable(self.target_tokens(batch)), 0)
        weight_T = batch.targets.weight
        if weight_T is None:
            return loss_T.sum() / max(len(loss_T), 1)
        total = weight_T.sum()
        return (loss_T * weight_T).sum() / total.masked_fill(total == 0, 1)

    def build_trie(self, columns: Mapping[str, Column]) -> Trie:
        """Return the trie of the items that have codes. It numbers them by their entry in the columns."""
        token_IS = self.stack_tokens(columns)
        servable = self._is_servable(token_IS).nonzero().squeeze(1)
        return Trie.build(token_IS.index_select(0, servable).cpu().numpy(), servable.cpu().numpy(), self.sizes)

    def score_catalog(self, batch: Batch, catalog: Mapping[str, Column]) -> Float[Tensor, "R I"]:
        """Return the score of every item for every request. ``FLOOR`` for items that the search did not reach.

        An exported program scores all items, and neither renormalizes nor smooths.
        """
        if kernels.is_traced():
            return self._score_traced(batch, self.stack_tokens(catalog))
        return self.score_best(batch, catalog, 1)

    def score_best(self, batch: Batch, catalog: Mapping[str, Column], count: int) -> Float[Tensor, "R I"]:
        """Return the scores of a beam as wide as ``beam_width``, or ``count`` if that is more, as in ``generate``."""
        trie, width = self._get_trie(catalog), max(self.config.beam_width, count)
        most = _EXACT_REQUESTS if self.config.search == "exact" else max(1, _NUMBERS // (width * max(self.sizes)))
        blocks = split_requests(batch, most)
        return torch.cat([self._score_items(self.encode(some), some, trie, catalog, width) for some in blocks])

    def generate(self, batch: Batch, trie: Trie, count: int, width: int | None = None) -> Generated:
        """Return the items of the best paths of a beam search. Items with equal paths come together.

        Args:
            trie: of the items that may be served.
            count: items per request.
            width: beams. None: ``beam_width``, or ``count`` if that is more.
        """
        width = max(self.config.beam_width, count) if width is None else width
        requests = count_requests(batch)
        items = np.full((requests, count), -1, np.int64)
        scores = np.full((requests, count), -np.inf, np.float32)
        at = 0
        for some in split_requests(batch, max(1, _NUMBERS // (width * max(self.sizes)))):
            leaf_RW, score_RW = self._search(self.encode(some), count_requests(some), trie, width)
            for leaf, score in zip(leaf_RW.cpu().numpy(), score_RW.cpu().numpy()):
                leaf, score = leaf[leaf >= 0], score[leaf >= 0]
                first, stop = trie.leaf_starts[leaf], trie.leaf_starts[leaf + 1]
                entry = np.concatenate([np.arange(*span) for span in zip(first, stop)] or [np.zeros(0, np.int64)])
                entry = entry[:count].astype(np.int64)
                items[at, : len(entry)] = trie.items[entry]
                scores[at, : len(entry)] = np.repeat(score, stop - first)[:count]
                at += 1
        return Generated(items, scores)

    def _search(self, memory: Any, requests: int, trie: Trie, width: int) -> tuple[Tensor, Tensor]:
        device = next(self.parameters()).device
        steps, tokens = self.open_search(memory), DeviceTrie.of(trie, device)
        beams = search_beams(steps, tokens, requests, width, self.rule)
        return beams.leaf, beams.score

    def _score_items(self, memory: Any, batch: Batch, trie: Trie, catalog: Mapping[str, Column], width: int) -> Tensor:
        requests, device = count_requests(batch), next(self.parameters()).device
        if self.config.search == "exact":
            steps = self.open_search(memory)
            score_RL = score_leaves(steps, trie, requests, device, self.rule)
        else:
            leaf_RW, score_RW = self._search(memory, requests, trie, width)
            floor = score_RW.new_full((requests, trie.leaves + 1), FLOOR)
            leaf_RW = torch.where(leaf_RW < 0, trie.leaves, leaf_RW)
            score_RL = floor.scatter(1, leaf_RW, score_RW)
        items = torch.from_numpy(trie.items).to(device)
        leaf_of_item = torch.from_numpy(trie.leaf_of_item()).to(device)
        entries = len(self.stack_tokens(catalog))
        score_RI = score_RL.new_full((requests, entries), FLOOR)
        return score_RI.index_copy(1, items, score_RL.index_select(1, leaf_of_item).clamp(min=FLOOR))

    def _score_traced(self, batch: Batch, token_IS: Tensor) -> Tensor:
        """``[1, I]`` in operators that every runtime supports: every path by itself."""
        total_I = self.score_paths(self.encode(batch), token_IS)
        return torch.where(self._is_servable(token_IS), total_I, FLOOR).unsqueeze(0)

    def _is_servable(self, token_IS: Tensor) -> Tensor:
        """Return bool ``[I]``: True for paths without a missing code."""
        return (token_IS[:, self.attributes :] != MISSING).all(1)

    def _get_trie(self, catalog: Mapping[str, Column]) -> Trie:
        """Return the trie of a catalog. That of the catalog before is used again for the same tensors."""
        columns = tuple(values for field in self.path if isinstance(values := catalog[field.name], Tensor))
        if self._recent is None or any(one is not other for one, other in zip(self._recent[0], columns)):
            self._recent = columns, self.build_trie(catalog)
        return self._recent[1]

    def find_faults(self, config: Any, fields: Fields) -> list[str]:
        """Return one message per setting that does not go with the fields. A subclass adds its own."""
        items = _list_items(fields)
        ids = ", ".join(name for name, field in items.items() if field.kind == "id") or "none"
        codes, faults = config.codes or _number_codes(items), []
        if not codes:
            do = "join the table that longrec tokenize writes to data.items, or name the codes"
            faults.append(f"model.codes: {name_of_class(type(self))} needs the codes of items as code_1, ...; {do}")
        for key, names in (("attributes", config.attributes), ("codes", codes)):
            faults += [
                f"model.{key}: {name!r} is no id feature of the item, which are: {ids}"
                for name in names
                if name not in items or items[name].kind != "id"
            ]
        if not fields.histories:
            faults.append(f"schema.histories: {name_of_class(type(self))} reads a history, and the schema has none")
        return faults


def list_path(config: GeneratorConfig, fields: Fields) -> tuple[str, ...]:
    """Return the names of the path: the attributes, then the codes."""
    return (*config.attributes, *(config.codes or _number_codes(_list_items(fields))))


def _list_items(fields: Fields) -> dict[str, FieldOf]:
    return {field.name: field for field in fields.features if field.side == "item"}


class _PlainSteps:
    """The steps of a generator without caches of its own."""

    def __init__(self, model: Generator, memory: Any) -> None:
        self.model, self.memory = model, memory

    def extend(self, prefix_RWt: Tensor, parent_RW: Tensor | None) -> Tensor:
        """Return the log-probabilities after each beam."""
        return self.model.score_tokens(self.memory, prefix_RWt)

    def score_shared(self, prefix_Wt: Tensor) -> Tensor:
        """Return the log-probabilities of every request after prefixes that all requests have."""
        return self.model.score_tokens(self.memory, prefix_Wt)


def count_requests(batch: Batch) -> int:
    """Return R."""
    return batch.layout.requests


def split_requests(batch: Batch, most: int) -> Sequence[Batch]:
    """Return batches of at most so many requests each, without candidates."""
    requests, shared = batch.layout.requests, batch.layout.kind == "shared"
    columns = batch.features if batch.layout.kind == "single" else batch.requests
    if shared or requests <= most:
        layout = Layout.shared(1) if shared else Layout.catalog(requests, 0)
        return [Batch(layout, columns, {}, batch.histories)]
    device = next(iter(batch.histories.values())).offsets.device
    every = torch.split(torch.arange(requests, device=device), most)
    return [
        Batch(
            Layout.catalog(len(rows), 0),
            {name: _select(column, rows) for name, column in columns.items()},
            {},
            {name: history.select_requests(rows) for name, history in batch.histories.items()},
        )
        for rows in every
    ]


def _select(column: Column, rows: Tensor) -> Column:
    return column.select_rows(rows) if isinstance(column, Jagged) else column.index_select(0, rows)


def _number_codes(items: Mapping[str, FieldOf]) -> tuple[str, ...]:
    """Return code_1, code_2, ... as far as items have them."""
    names: list[str] = []
    while f"code_{len(names) + 1}" in items:
        names.append(f"code_{len(names) + 1}")
    return tuple(names)

"""Retrievers that count which items belong together: lists of the neighbors of every item, with weights.

A list has a whole number of blocks of ``BLOCK`` neighbors. A request is scored by its blocks, because finding and
copying neighbors one by one takes several times as long as adding up their weights.

Shapes: R requests, N events, V rows of the item table, Z pairs of items with a weight, Y entries of all lists with
those that fill up the last blocks, H long lists, I items of the catalog, P blocks of the events.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from longrec.errors import ConfigError
from longrec.features.batch import HistoryBatch
from longrec.features.fields import Fields
from longrec.models.core.kinds import FittedRetriever
from longrec.models.core.pair_counts import MAX_DENSE
from longrec.nn import kernels
from longrec.nn.segments import Segments

BLOCK = 16
"""Neighbors of a block."""
_NEGLIGIBLE = 1e-7
"""Weight of an event below which it is skipped. The newest event has weight 1: sums in float32 are not more exact."""
_MAX_BLOCKS = 250_000
"""Number of blocks that are added up together, beside those of one item."""


class Counts(Protocol):
    """What is counted in the histories of the training window."""

    def add(self, id_N: NDArray[np.int64], offsets: NDArray[np.int64]) -> None:
        """Count the histories of some users, oldest event first."""
        ...


class NeighborRetriever(FittedRetriever):
    """A retriever whose score of an item is a sum of its weights among the neighbors of the events.

    Its histories are counted once. Each of ``setting_names`` is a key of the config with the values to choose from, and
    all combinations are made of the same counts. The first one is a whole number above 0.

    Attributes:
        settings: float32, the values in use, in the order of ``setting_names``. Zeros before ``fit_statistics``.
        offsets: int64 ``[V + 1]``, multiples of ``BLOCK``: the neighbors of item a are
            ``items[offsets[a]:offsets[a + 1]]``.
        items: int32 ``[Y + BLOCK]``. Item 0 fills up the last block of a list. One block of it follows the lists, so
            that no buffer is ever empty.
        weights: float32 ``[Y + BLOCK]``. 0 for entries that fill up.
    """

    setting_names: ClassVar[tuple[str, ...]]

    settings: Tensor
    offsets: Tensor
    items: Tensor
    weights: Tensor
    _dense: Tensor | None
    _long: tuple[Tensor, Tensor] | None

    def __init__(self, config: Any, fields: Fields, name: str) -> None:
        super().__init__(config, fields)
        self.history, self.column, self.rows = choose_item_column(fields, name)
        self.register_buffer("offsets", torch.zeros(self.rows + 1, dtype=torch.int64))
        self.register_buffer("items", torch.zeros(BLOCK, dtype=torch.int32))
        self.register_buffer("weights", torch.zeros(BLOCK))
        self.register_buffer("settings", torch.zeros(len(self.setting_names)))
        self._counts: Counts | None = None
        self._dense = self._long = None

    @abstractmethod
    def make_counts(self) -> Counts:
        """Return counts of nothing."""

    @abstractmethod
    def use_counts(self, settings: Mapping[str, Any], counts: Any) -> None:
        """Set the lists, and what else the scores read, to the counts by these settings.

        Args:
            counts: what ``make_counts`` made, after all histories.
        """

    @property
    def selected(self) -> dict[str, Any]:
        """The settings in use, by name. Empty before ``fit_statistics``."""
        first, *others = self.settings.tolist()
        return dict(zip(self.setting_names, [int(first), *(round(value, 6) for value in others)])) if first else {}

    def fit_statistics(self, chunks: Iterable[Mapping[str, HistoryBatch]]) -> None:
        """Count the histories of the training window, and select the first of the ``alternatives``."""
        counts = self.make_counts()
        for chunk in chunks:
            history = chunk[self.history]
            ids = history.columns[self.column]
            assert isinstance(ids, Tensor)
            counts.add(ids.cpu().numpy().astype(np.int64), history.host_offsets)
        self._counts = counts
        self._use(next(self.alternatives()), counts)

    def alternatives(self) -> Iterator[Mapping[str, Any]]:
        """Yield all combinations of the settings."""
        for values in itertools.product(*(getattr(self.config, name) for name in self.setting_names)):
            yield dict(zip(self.setting_names, values))

    def select(self, settings: Mapping[str, Any]) -> None:
        """Use these settings from now on, and release the counts that others need.

        Args:
            settings: a value for each of ``setting_names``.

        Raises:
            ValueError: if nothing was counted, or settings were selected before.
        """
        if self._counts is None:
            raise ValueError("select: nothing was counted, or settings were selected before; call fit_statistics")
        self._use(settings, self._counts)
        self._counts = None

    def _use(self, settings: Mapping[str, Any], counts: Any) -> None:
        self.use_counts(settings, counts)
        self.settings.copy_(torch.tensor([settings[name] for name in self.setting_names]))

    def use_neighbors(self, key_Z: NDArray[np.int64], weight_Z: NDArray[Any]) -> None:
        """Set the lists.

        Args:
            key_Z: ascending numbers ``a V + b`` of an item a and its neighbor b.
            weight_Z: their weights.
        """
        lengths_V = np.bincount(key_Z // self.rows, minlength=self.rows)
        for name, array in zip(("offsets", "items", "weights"), _fill_blocks(lengths_V, key_Z % self.rows, weight_Z)):
            setattr(self, name, torch.from_numpy(array).to(self.offsets.device))
        self._dense = self._long = None

    def score_neighbors(self, id_N: Tensor, weight_N: Tensor, segments: Segments) -> Float[Tensor, "R V"]:
        """Return the weighted sum of the lists of all events of each request.

        Args:
            id_N: the item of each event.
            weight_N: the weight of each event.
        """
        weight_N = torch.where(weight_N >= _NEGLIGIBLE, weight_N, 0.0)
        if kernels.is_traced():
            return self._score_traced(id_N, weight_N, segments)
        if self.rows**2 > MAX_DENSE:
            return self._score_lists(id_N, weight_N, segments)
        offsets = segments.offsets.new_tensor([0, len(id_N)]) if segments.shared else segments.offsets
        return F.embedding_bag(
            id_N.long(),
            self._make_dense(),
            offsets,
            mode="sum",
            per_sample_weights=weight_N,
            include_last_offset=True,
        )

    def find_cells(self, id_N: Tensor, segments: Segments) -> tuple[Tensor, int]:
        """Return the number of the request and the item of each event as ``r V + item``, and the number of requests."""
        if segments.shared:
            return id_N.long(), 1
        return id_N.long() + segments.row * self.rows, segments.rows

    def _score_lists(self, id_N: Tensor, weight_N: Tensor, segments: Segments) -> Tensor:
        """``[R, V]``: the weighted sum of the lists of neighbors of all events."""
        rows = 1 if segments.shared else segments.rows
        row_N = torch.zeros_like(id_N, dtype=torch.int64) if segments.shared else segments.row
        matrix_HV, long_V = self._make_long()
        long_N = long_V.index_select(0, id_N)
        total = self._score_long(long_N, weight_N, row_N, rows, matrix_HV).view(-1)
        kept = (weight_N > 0) & (long_N < 0)
        id_N, weight_N, row_N = id_N[kept], weight_N[kept], row_N[kept]
        first_N, length_N = self._find_blocks(id_N)
        # Some lists at a time, because all of them together may take more memory than the scores.
        sizes = torch.unique_consecutive(length_N.cumsum(0) // _MAX_BLOCKS, return_counts=True)[1].tolist()
        for first, length, weight, row in zip(*(torch.split(x, sizes) for x in (first_N, length_N, weight_N, row_N))):
            event_P = torch.arange(len(length), device=length.device).repeat_interleave(length)
            shift = first - (length.cumsum(0) - length)
            at_P = torch.arange(len(event_P), device=length.device) + shift.index_select(0, event_P)
            item_PB, value_PB = self._read_blocks(at_P, weight.index_select(0, event_P))
            cell_PB = item_PB + (row * self.rows).index_select(0, event_P).unsqueeze(1)
            total.scatter_add_(0, cell_PB.flatten(), value_PB.flatten())
        return total.view(rows, self.rows)

    def _score_long(self, long_N: Tensor, weight_N: Tensor, row_N: Tensor, rows: int, matrix_HV: Tensor) -> Tensor:
        """``[R, V]``: the weighted sum of the long lists of all events, as a product of matrices.

        Args:
            long_N: number of the long list of each event, -1 for an item with a short one.
            rows: R.
            matrix_HV: weights of the items of H long lists.
        """
        kept = (weight_N > 0) & (long_N >= 0)
        used_U, of_event = torch.unique(long_N[kept], return_inverse=True)
        sum_RU = weight_N.new_zeros(rows * len(used_U))
        sum_RU.index_add_(0, row_N[kept] * len(used_U) + of_event, weight_N[kept])
        with torch.autocast(sum_RU.device.type, enabled=False):  # weights of bfloat16 would change the order of items
            return sum_RU.view(rows, len(used_U)) @ matrix_HV.index_select(0, used_U)

    def _score_traced(self, id_N: Tensor, weight_N: Tensor, segments: Segments) -> Tensor:
        """``[R, V]`` as of ``_score_lists``, in operators that every runtime supports."""
        first_N, length_N = self._find_blocks(id_N)
        length_N = torch.where(weight_N > 0, length_N, 0)
        # One block more than the lists have, of weight 0, so that they are never empty.
        length_N = torch.cat([length_N, length_N.new_ones(1)])
        first_N = torch.cat([first_N, first_N.new_full((1,), len(self.items) // BLOCK - 1)])
        weight_N = torch.cat([weight_N, weight_N.new_zeros(1)])
        event_P = torch.repeat_interleave(length_N)
        shift_N = first_N - (length_N.cumsum(0) - length_N)
        at_P = torch.ones_like(event_P).cumsum(0) - 1 + shift_N.index_select(0, event_P)
        item_PB, value_PB = self._read_blocks(at_P, weight_N.index_select(0, event_P))
        cell_PB, rows = item_PB.long(), 1
        if not segments.shared:
            rows = segments.rows
            row_N = torch.cat([segments.row, segments.row.new_zeros(1)])
            cell_PB = cell_PB + (row_N * self.rows).index_select(0, event_P).unsqueeze(1)
        score = value_PB.new_zeros(rows * self.rows).index_add(0, cell_PB.flatten(), value_PB.flatten())
        return score.view(rows, self.rows)

    def _find_blocks(self, id_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first block of each item's neighbors and the number of blocks, int64 ``[N]`` each."""
        first_N = self.offsets.index_select(0, id_N) // BLOCK
        return first_N, self.offsets.index_select(0, id_N + 1) // BLOCK - first_N

    def _read_blocks(self, at_P: Tensor, weight_P: Tensor) -> tuple[Tensor, Tensor]:
        """Return the items of some blocks, int32 ``[P, BLOCK]``, and their weights times those of the events."""
        item_PB, value_PB = (values.view(-1, BLOCK).index_select(0, at_P) for values in (self.items, self.weights))
        return item_PB, value_PB * weight_P.unsqueeze(1)

    def _make_dense(self) -> Tensor:
        """Return the weights of all pairs as a matrix ``[V, V]``, which is made once."""
        if self._dense is None or self._dense.device != self.weights.device:
            length_V = self.offsets[1:] - self.offsets[:-1]
            item_Z = torch.arange(self.rows, device=length_V.device).repeat_interleave(length_V)
            cell_Z = item_Z * self.rows + self.items[:-BLOCK]
            self._dense = self.weights.new_zeros(self.rows**2).index_add_(0, cell_Z, self.weights[:-BLOCK])
        return self._dense.view(self.rows, self.rows)

    def _make_long(self) -> tuple[Tensor, Tensor]:
        """Return the longest lists as a matrix ``[H, V]``, and its row for each item or -1. It is made once.

        These lists have an eighth of all items or more, so that adding up rows of a matrix takes less time.
        """
        if self._long is None or self._long[0].device != self.weights.device:
            length_V = self.offsets[1:] - self.offsets[:-1]
            longest = length_V.argsort(descending=True, stable=True)[: MAX_DENSE // self.rows]
            longest = longest[length_V.index_select(0, longest) * 8 >= self.rows]
            row_V = length_V.new_full((self.rows,), -1)
            row_V[longest] = torch.arange(len(longest), device=row_V.device)
            matrix = self.weights.new_zeros(len(longest), self.rows)
            for row, item in enumerate(longest.tolist()):
                own = slice(int(self.offsets[item]), int(self.offsets[item + 1]))
                matrix[row].index_add_(0, self.items[own], self.weights[own])
            self._long = matrix, row_V
        return self._long

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """Load the buffers, whose sizes depend on the counts, and release the counts that they replace."""
        saved = [state_dict.get(f"{prefix}{name}") for name in ("offsets", "items", "weights")]
        if all(isinstance(one, Tensor) and one.ndim == 1 for one in saved):
            lists = [one.cpu().numpy() for one in saved if one is not None]
            if len(lists[1]) != lists[0][-1] + BLOCK:  # lists without blocks, as of LongRec 0.9.0
                lists = list(_fill_blocks(np.diff(lists[0]), lists[1][:-1], lists[2][:-1]))
                blocks = {name: torch.from_numpy(one) for name, one in zip(("offsets", "items", "weights"), lists)}
                state_dict = {**state_dict, **{f"{prefix}{name}": one for name, one in blocks.items()}}
            for name, one in zip(("items", "weights"), lists[1:]):
                setattr(self, name, getattr(self, name).new_zeros(len(one)))
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._counts = self._dense = self._long = None


def _fill_blocks(
    lengths_V: NDArray[np.int64], item_Z: NDArray[Any], weight_Z: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
    """Return lists whose last blocks are filled up with item 0 and weight 0: offsets, items and weights.

    Args:
        lengths_V: number of neighbors of each item.
        item_Z: neighbors of all items, in the order of the items.
        weight_Z: their weights.
    """
    offsets = np.concatenate([[0], np.cumsum(-(-lengths_V // BLOCK) * BLOCK)]).astype(np.int64)
    starts = np.cumsum(lengths_V) - lengths_V
    at_Z = np.arange(len(item_Z)) + np.repeat(offsets[:-1] - starts, lengths_V)
    items, weights = np.zeros(offsets[-1] + BLOCK, np.int32), np.zeros(offsets[-1] + BLOCK, np.float32)
    items[at_Z], weights[at_Z] = item_Z, weight_Z
    return offsets, items, weights


def choose_item_column(fields: Fields, model: str) -> tuple[str, str, int]:
    """Return the first history, the id with the largest table that events and items have in common, and its rows.

    Args:
        model: name of the model, for errors.

    Raises:
        ConfigError: without a history, or without an id that events and items have in common.
    """
    if not fields.histories:
        raise ConfigError("schema", [f"histories: {model} reads a history, and the schema has none"])
    name, columns = next(iter(fields.histories.items()))
    common = [field for field in fields.target_columns(name) if field.kind == "id"]
    if not common:
        names = ", ".join(field.name for field in columns)
        fault = f"histories.{name}.features: {model} needs an id that is a feature of the item too, got {names}"
        raise ConfigError("schema", [f"{fault}; add the item to it"])
    return name, max(common, key=lambda field: field.rows).name, max(field.rows for field in common)

r"""CoVisit: Item-to-item counts of a window, weighted by distance (a counting rule).

Sarwar, Karypis, Konstan, Riedl, WWW 2001. https://doi.org/10.1145/371920.372071

Nothing is trained. Pairs of items that follow each other in a history are counted, and an item scores by its counts
with the newest events of a request:

    C[a, b] = sum over training histories, positions s < t <= s + w with items a, b, of 1 / (t - s)              (eq. 1)
    score(i) = sum_k decay^k (C[h_k, i] + back C[i, h_k]) / popularity(i)^alpha                                  (eq. 2)

h_0 is the newest event of the request, h_1 the one before. ``back`` is the weight of pairs in the other order. With
alpha = 0 popular items win, with alpha = 1 a count is relative to the popularity of the item.

The window w, ``back``, ``alpha`` and ``decay`` are each a value or several. All combinations are compared on the rows
of validation, and the best one is saved. On short histories the rule is ahead of many trained models.

Departures from the paper
    - the paper compares items by the cosine or the correlation of their users; here the order and the distance count,
      as in session-based nearest neighbors;
    - counts are exact, without a limit on the neighbors of an item;
    - values that are missing or were unseen in training are never counted, score 0, and count as events of a distance.

Shapes: R requests, N events, V rows of the item table, Z pairs of items with a count, I items of the catalog, M
neighbors of the item with most of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field
from torch import Tensor

from longrec.config import Strict
from longrec.errors import ConfigError
from longrec.features.batch import Batch, Column, HistoryBatch
from longrec.features.fields import Fields
from longrec.models.core.kinds import FittedRetriever
from longrec.models.core.pair_counts import MAX_DENSE, PairCounts
from longrec.models.core.rules import expand_value
from longrec.models.core.top import Width
from longrec.nn import kernels
from longrec.nn.segments import Segments

_NEGLIGIBLE = 1e-7
"""Weight of an event below which it is skipped."""
_MAX_NEIGHBORS = 4_000_000
"""Number of neighbors that are added up together, beside those of one item."""
_NAMES = ("window", "back", "alpha", "decay")


Windows = Annotated[tuple[Width, ...], BeforeValidator(expand_value)]
Weights = Annotated[tuple[Annotated[float, Field(ge=0)], ...], BeforeValidator(expand_value)]
Decays = Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], BeforeValidator(expand_value)]


class CoVisitConfig(Strict):
    """Settings of CoVisit. Each is a value, or a list of values to choose from."""

    window: Windows = Field((5, 20), min_length=1, description="Maximum distance of two events of a pair.")
    back: Weights = Field((0.5, 1.0), min_length=1, description="Weight of pairs in the other order.")
    alpha: Weights = Field((0.3, 0.5), min_length=1, description="Exponent of the popularity that divides a count.")
    decay: Decays = Field((0.6, 0.8), min_length=1, description="Factor of an event for each newer one.")


class CoVisit(FittedRetriever):
    """CoVisit over the first history of the schema."""

    Config = CoVisitConfig
    reads_history = True
    reads_groups = True
    order_matters = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = ({"window": 2, "back": 0.0, "alpha": 1.0, "decay": 0.9},)

    offsets: Tensor
    items: Tensor
    weights: Tensor
    popularity: Tensor
    settings: Tensor
    _dense: Tensor | None

    def __init__(self, config: CoVisitConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        self.history, self.column, self.rows = _choose_column(fields)
        self.register_buffer("offsets", torch.zeros(self.rows + 1, dtype=torch.int64))
        # One entry of weight 0 follows those of all items, so that none of the buffers is ever empty.
        self.register_buffer("items", torch.zeros(1, dtype=torch.int32))
        self.register_buffer("weights", torch.zeros(1))
        self.register_buffer("popularity", torch.ones(self.rows))
        self.register_buffer("settings", torch.zeros(len(_NAMES)))
        self._counts: PairCounts | None = None
        self._read_buffers()

    @property
    def selected(self) -> dict[str, Any]:
        """The settings in use, by name. Empty before ``fit_statistics``."""
        values = [round(value, 6) for value in self.settings.tolist()]
        return dict(zip(_NAMES, [int(values[0]), *values[1:]])) if values[0] else {}

    def fit_statistics(self, chunks: Iterable[Mapping[str, HistoryBatch]]) -> None:
        """Count the pairs of the training window, and select the first of the ``alternatives``."""
        counts = PairCounts(self.rows, max(self.config.window))
        for chunk in chunks:
            history = chunk[self.history]
            ids = history.columns[self.column]
            assert isinstance(ids, Tensor)
            counts.add(ids.cpu().numpy().astype(np.int64), history.host_offsets)
        self._counts = counts
        self._use(next(self.alternatives()), counts)

    def alternatives(self) -> Iterator[Mapping[str, Any]]:
        """Yield all combinations of the settings."""
        for values in itertools.product(*(getattr(self.config, name) for name in _NAMES)):
            yield dict(zip(_NAMES, values))

    def select(self, settings: Mapping[str, Any]) -> None:
        """Use these settings from now on, and release the counts that others need.

        Args:
            settings: a value for each of window, back, alpha and decay.

        Raises:
            ValueError: if nothing was counted, or settings were selected before.
        """
        if self._counts is None:
            raise ValueError("select: nothing was counted, or settings were selected before; call fit_statistics")
        self._use(settings, self._counts)
        self._counts = None

    def _use(self, settings: Mapping[str, Any], counts: PairCounts) -> None:
        """Set the buffers to the counts by these settings."""
        key_Z, weight_Z = counts.sum(settings["window"], settings["back"])
        item_Z = key_Z % self.rows
        popularity_V = np.maximum(counts.popularity, 1)
        weight_Z = weight_Z / popularity_V[item_Z] ** settings["alpha"]
        lengths_V = np.bincount(key_Z // self.rows, minlength=self.rows)
        arrays: dict[str, NDArray[Any]] = {
            "offsets": np.concatenate([[0], np.cumsum(lengths_V)]),
            "items": np.append(item_Z, 0).astype(np.int32),
            "weights": np.append(weight_Z, 0).astype(np.float32),
            "popularity": popularity_V.astype(np.float32),
            "settings": np.array([settings[name] for name in _NAMES], np.float32),
        }
        for name, array in arrays.items():
            setattr(self, name, torch.from_numpy(array).to(self.offsets.device))
        self._read_buffers()

    def score_catalog(self, batch: Batch, catalog: Mapping[str, Column]) -> Float[Tensor, "R I"]:
        """Return the score of every item for every request. 0 without a count, and for requests without events."""
        segments = Segments.of(batch, self.history).requests
        id_N, item_I = batch.histories[self.history].columns[self.column], catalog[self.column]
        assert isinstance(id_N, Tensor)
        assert isinstance(item_I, Tensor)
        weight_N = self.settings[3] ** segments.count_newer().float()
        if kernels.is_traced():
            score_RV = self._score_traced(id_N, weight_N, segments)
        elif self.rows**2 <= MAX_DENSE:
            offsets = segments.offsets.new_tensor([0, len(id_N)]) if segments.shared else segments.offsets
            score_RV = F.embedding_bag(
                id_N.long(),
                self._make_dense(),
                offsets,
                mode="sum",
                per_sample_weights=weight_N,
                include_last_offset=True,
            )
        else:
            score_RV = self._score_lists(id_N, weight_N, segments)
        return score_RV.index_select(1, item_I)

    def _score_lists(self, id_N: Tensor, weight_N: Tensor, segments: Segments) -> Tensor:
        """``[R, V]``: the weighted sum of the lists of neighbors of all events."""
        rows = 1 if segments.shared else segments.rows
        row_N = torch.zeros_like(id_N, dtype=torch.int64) if segments.shared else segments.row
        kept = weight_N >= _NEGLIGIBLE
        id_N, weight_N, row_N = id_N[kept], weight_N[kept], row_N[kept]
        first_N, length_N = self._find_lists(id_N)
        total = weight_N.new_zeros(rows * self.rows)
        # Some lists at a time, because all of them together may take more memory than the scores.
        sizes = torch.unique_consecutive(length_N.cumsum(0) // _MAX_NEIGHBORS, return_counts=True)[1].tolist()
        for first, length, weight, row in zip(*(torch.split(x, sizes) for x in (first_N, length_N, weight_N, row_N))):
            event_P = torch.arange(len(length), device=length.device).repeat_interleave(length)
            shift = first - (length.cumsum(0) - length)
            at_P = torch.arange(len(event_P), device=length.device) + shift.index_select(0, event_P)
            value_P = self.weights.index_select(0, at_P) * weight.index_select(0, event_P)
            cell_P = self.items.index_select(0, at_P) + (row * self.rows).index_select(0, event_P)
            total.scatter_add_(0, cell_P, value_P)
        return total.view(rows, self.rows)

    def _score_traced(self, id_N: Tensor, weight_N: Tensor, segments: Segments) -> Tensor:
        """``[R, V]`` as of ``_score_lists``, in operators that every runtime supports: all lists have M entries."""
        first_N, length_N = self._find_lists(id_N)
        rank_M = torch.arange(self._longest, device=id_N.device)
        at_NM = (first_N.unsqueeze(1) + rank_M).clamp(max=len(self.items) - 1)
        value_NM = self.weights[at_NM] * weight_N.unsqueeze(1) * (rank_M < length_N.unsqueeze(1))
        cell_NM, rows = self.items[at_NM].long(), 1
        if not segments.shared:
            rows = segments.rows
            cell_NM = cell_NM + (segments.row * self.rows).unsqueeze(1)
        score = value_NM.new_zeros(rows * self.rows).index_add(0, cell_NM.reshape(-1), value_NM.reshape(-1))
        return score.view(rows, self.rows)

    def _find_lists(self, id_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first neighbor of each item and their number, int64 ``[N]`` each."""
        first_N = self.offsets.index_select(0, id_N)
        return first_N, self.offsets.index_select(0, id_N + 1) - first_N

    def _make_dense(self) -> Tensor:
        """Return the weights of all pairs as a matrix ``[V, V]``, which is made once."""
        if self._dense is None or self._dense.device != self.weights.device:
            length_V = self.offsets[1:] - self.offsets[:-1]
            item_Z = torch.arange(self.rows, device=length_V.device).repeat_interleave(length_V)
            cell_Z = item_Z * self.rows + self.items[:-1]
            self._dense = self.weights.new_zeros(self.rows**2).index_copy_(0, cell_Z, self.weights[:-1])
        return self._dense.view(self.rows, self.rows)

    def _read_buffers(self) -> None:
        """Set what is derived from the buffers."""
        self._dense = None
        self._longest = max(int((self.offsets[1:] - self.offsets[:-1]).max()), 1)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """Load the buffers, whose sizes depend on the counts."""
        for name in ("items", "weights"):
            saved = state_dict.get(f"{prefix}{name}")
            if isinstance(saved, Tensor) and saved.ndim == 1:
                setattr(self, name, getattr(self, name).new_zeros(len(saved)))
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._counts = None
        self._read_buffers()


def _choose_column(fields: Fields) -> tuple[str, str, int]:
    """Return the first history, the id with the largest table that events and items have in common, and its rows.

    Raises:
        ConfigError: without a history, or without an id that events and items have in common.
    """
    if not fields.histories:
        raise ConfigError("schema", ["histories: covisit reads a history, and the schema has none"])
    name, columns = next(iter(fields.histories.items()))
    common = [field for field in fields.target_columns(name) if field.kind == "id"]
    if not common:
        names = ", ".join(field.name for field in columns)
        fault = f"histories.{name}.features: covisit needs an id that is a feature of the item too, got {names}"
        raise ConfigError("schema", [f"{fault}; add the item to it"])
    return name, max(common, key=lambda field: field.rows).name, max(field.rows for field in common)

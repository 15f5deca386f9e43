"""Groups of the positions of a row that have the same id.

Ids 0 and 1 (missing, unseen) identify nothing, so each such position is a group of its own.

In a ragged batch positions are sorted by group and every operation costs O(N). For a shared history a matrix of all
pairs is used, which can be traced. Its groups remain T positions, and each position of a group of n counts as 1/n of it
(``GroupMembers``).

Shapes: B rows, N positions, U entries of a history (see ``Segments``), T positions of a shared one, G groups of all
rows, M group entries (G ragged, N shared), K width.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from longrec.errors import ConfigError
from longrec.features.fields import Fields
from longrec.nn.embedding import RESERVED
from longrec.nn.host_plans import expand_rows, fetch, invert, put, sort
from longrec.nn.segments import Pool, Segments

_LEAST = 1e-26
"""Lower bound of weights, so that even a group without weight has a mean."""


class Groups:
    """Groups of the positions of one history.

    Args:
        ids: integers ``[U]``, on the host or on the device, from which they are copied.
        segments: single or shared. Of a grouped batch pass the requests, or flatten both (see ``Segments.flatten``).
    """

    def __init__(self, ids: Tensor, segments: Segments) -> None:
        self.ids, self.segments, self._device = ids, segments, segments.offsets.device

    @cached_property
    def same(self) -> Bool[Tensor, "T T"]:
        """Mask of the position pairs of a shared history that are in one group."""
        ids, index_T = self.ids.to(self._device), torch.arange(self.segments.positions, device=self._device)
        real_T1 = (ids >= RESERVED).unsqueeze(1)
        equal_TT = ids.unsqueeze(1) == ids.unsqueeze(0)
        return (equal_TT & real_T1) | (index_T.unsqueeze(1) == index_T.unsqueeze(0))

    @cached_property
    def _plan(self) -> tuple[NDArray[np.int64], Segments, Segments]:
        segments, offsets, ids = self.segments, self.segments.host_offsets, fetch(self.ids)
        # One number per group, consecutive within a row, larger in later rows.
        ids_N = np.where(ids < RESERVED, -1 - np.arange(segments.positions), ids.astype(np.int64))
        least = -segments.positions
        span = int(ids_N.max(initial=0)) - least + 1
        row_N = expand_rows(offsets, np.arange(segments.rows))
        key_N, order_N = sort(row_N * span + ids_N - least)
        members = Segments.of_runs(key_N, self._device)
        before = np.searchsorted(members.host_offsets[:-1], offsets)
        return order_N, members, Segments.of_offsets(before, self._device)

    @cached_property
    def order(self) -> Tensor:
        """int64 ``[N]``, ragged: the positions, row by row and group by group."""
        return put(self._plan[0], self._device)

    @property
    def members(self) -> Segments:
        """Segments of the groups over the positions in that order, ragged."""
        return self._plan[1]

    @property
    def groups(self) -> Segments:
        """Segments of the rows over the groups, ragged."""
        return self._plan[2]

    @cached_property
    def sizes(self) -> Float[Tensor, " U"]:
        """Number of positions in the group of each position."""
        if self.segments.shared:
            return self.same.float().sum(1)
        edges = self.members.offsets
        sizes_N = self.members.expand_rows(edges[1:] - edges[:-1])
        return torch.empty_like(sizes_N, dtype=torch.float32).index_copy_(0, self.order, sizes_N.float())

    def shares(self, w_N: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        """Return the weight of every position over the sum of its group's weights.

        Weights are at least 0, and their sums are not far below 1.
        """
        w_N = w_N.clamp(min=_LEAST)  # also in a group of almost no weight
        if self.segments.shared:
            w_BT = w_N.reshape(self.segments.rows, self.segments.positions)
            return (w_BT / (w_BT @ self.same.to(w_BT.dtype))).reshape(-1)
        total_G = self.members.sum(w_N.index_select(0, self.order).unsqueeze(1))
        return w_N / self._expand_groups(total_G).squeeze(1)

    def means(self, share_N: Float[Tensor, " N"], k_UK: Float[Tensor, "U K"]) -> tuple[Float[Tensor, "M K"], Segments]:
        """Return the weighted sum of the events of each group, and the segments of the rows over the groups.

        Args:
            share_N: the result of ``shares``.
        """
        if self.segments.shared:
            rows, count = self.segments.rows, self.segments.positions
            x_BTK = share_N.reshape(rows, count, 1).to(k_UK.dtype) * k_UK
            c_BTK = torch.matmul(self.same.to(k_UK.dtype), x_BTK)
            return c_BTK.reshape(-1, k_UK.shape[1]), GroupMembers(self.segments, self.sizes)
        at = self.order
        return self.members.weighted_sum(share_N.index_select(0, at), k_UK.index_select(0, at)), self.groups

    def _expand_groups(self, x_GW: Tensor) -> Tensor:
        """Return ``[N, W]``, ragged: the value of its group at every position."""
        return self.members.expand(x_GW).index_select(0, self._inverse_order)

    def whole(self, w_M: Float[Tensor, " M"]) -> Float[Tensor, " N"]:
        """Return the weight of its whole group at every position, given weights over the segments from ``means``."""
        if self.segments.shared:
            return (w_M.reshape(self.segments.rows, -1) * self.sizes).reshape(-1)
        return self._expand_groups(w_M.unsqueeze(1)).squeeze(1)

    @cached_property
    def _inverse_order(self) -> Tensor:
        return put(invert(self._plan[0]), self._device)


class GroupMembers(Segments):
    """Segments over the group members of a shared history, with separate keys per candidate.

    A position of a group of n counts as 1/n of it. The weights of a softmax are those of the members.
    """

    def __init__(self, of: Segments, sizes_T: Float[Tensor, " T"]) -> None:
        super().__init__(of.offsets, of.rows, of.positions, shared=True)
        self.sizes = sizes_T

    def _by_row(self, x_NK: Tensor) -> Tensor:
        return x_NK.reshape(self.rows, self.positions, x_NK.shape[1])

    def keys(self, k_UD: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """Return the keys, which are at their positions already."""
        return k_UD

    def add(self, x_BD: Float[Tensor, "B D"], k_UD: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """Return ``expand(x) + k``."""
        return (x_BD.unsqueeze(1) + self._by_row(k_UD)).reshape(k_UD.shape)

    def mul(self, x_BD: Float[Tensor, "B D"], k_UD: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """Return ``expand(x) * k``."""
        return (x_BD.unsqueeze(1) * self._by_row(k_UD)).reshape(k_UD.shape)

    def dot(self, x_BD: Float[Tensor, "B D"], k_UD: Float[Tensor, "N D"]) -> Float[Tensor, " N"]:
        """Return ``<expand(x), k>``."""
        return self.mul(x_BD, k_UD).sum(1)

    def pool(self, k_UD: Float[Tensor, "N D"], how: Pool) -> Float[Tensor, "B D"]:
        """Raise an error: only weighted sums of group members are defined."""
        raise NotImplementedError("members of groups are summed by weights")

    def softmax(self, s_N: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        """Return the softmax of the scores of each row's groups, each weight divided equally among the members."""
        s_BT = s_N.reshape(self.rows, self.positions) - self.sizes.log()
        return s_BT.softmax(1).reshape(-1)

    def weighted_sum(self, w_N: Float[Tensor, " N"], k_UD: Float[Tensor, "N D"]) -> Float[Tensor, "B D"]:
        """Return the sum over each row's positions of ``w * k``."""
        return self.sum(w_N.unsqueeze(1) * k_UD)


def choose_group_columns(
    fields: Fields, named: str | None, key: str, in_impression: bool = False
) -> dict[str, str | None]:
    """Return the id column by which the events of each history are grouped.

    It is the named column. In a history without that column, and without a name, it is the first id column that the
    candidate has too other than the item (the id with the most values), or the item if it is the only one, or None
    without any.

    Args:
        key: config key of the setting, such as ``model.group``, for the error message.
        in_impression: require a feature of the impression with that name too.

    Raises:
        ConfigError: if no history has such an id column.
    """
    features = {field.name for field in fields.features}
    candidate = [field for field in fields.features if field.side == "item" and field.kind == "id"]
    item = max(candidate, key=lambda field: field.rows).name if candidate else ""
    grouping: dict[str, str | None] = {}
    fitting: set[str] = set()
    for history, columns in fields.histories.items():
        id_columns = [
            field.name for field in columns if field.kind == "id" and (field.name in features or not in_impression)
        ]
        fitting.update(id_columns)
        shared = [field.name for field in fields.target_columns(history) if field.kind == "id"]
        first = next((name for name in shared if name != item), item if item in shared else None)
        grouping[history] = named if named in id_columns else first
    if named is not None and named not in fitting:
        too = " and the impression too" if in_impression else ""
        choices = ", ".join(sorted(fitting)) or "none"
        raise ConfigError("config", [f"{key}: must be an id column of a history{too} ({choices}), got {named!r}"])
    return grouping

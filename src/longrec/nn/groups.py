"""Groups: which positions of a row carry the same id.

Ids 0 and 1 (missing, unseen) do not say what they stand for: such a position is a group of its own.

In a ragged batch positions are sorted by group and everything costs O(N). Of a shared history it is told by a matrix of
all pairs, which traces: its groups stay T positions, each of which stands for an n-th of a group of n
(``GroupMembers``).

Letters: B rows, N positions, U what a history brings (see ``Segments``), T positions of a shared one, G groups of all
rows, M of what tells the groups: G ragged, N shared, K width.
"""

from __future__ import annotations

from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from longrec.errors import ConfigError
from longrec.features.fields import Fields
from longrec.nn.embedding import RESERVED
from longrec.nn.segments import Pool, Segments

_LEAST = 1e-26
"""Weights below count as this, so that even a group without weight has a mean."""


class Groups:
    """The groups of the positions of one history.

    Args:
        ids: integers ``[U]``.
    """

    def __init__(self, ids: Tensor, segments: Segments) -> None:
        self.ids, self.segments = ids, segments

    @cached_property
    def same(self) -> Bool[Tensor, "T T"]:
        """Of a shared history: which two positions are of one group."""
        index_T = torch.arange(self.segments.positions, device=self.ids.device)
        real_T1 = (self.ids >= RESERVED).unsqueeze(1)
        equal_TT = self.ids.unsqueeze(1) == self.ids.unsqueeze(0)
        return (equal_TT & real_T1) | (index_T.unsqueeze(1) == index_T.unsqueeze(0))

    @cached_property
    def _layout(self) -> tuple[Tensor, Segments, Segments]:
        segments = self.segments
        index_N = torch.arange(segments.positions, device=self.ids.device)
        # One number a group: those of a row lie together, those of later rows above.
        ids_N = torch.where(self.ids < RESERVED, -1 - index_N, self.ids.long())
        least = -segments.positions
        span = (ids_N.max() if segments.positions else index_N.sum()) - least + 1
        key_N, order_N = (segments.row * span + ids_N - least).sort(stable=True)
        members = Segments.of_runs(key_N)
        before = torch.searchsorted(members.offsets[:-1], segments.offsets)
        return order_N, members, Segments(before, segments.rows, members.rows)

    @property
    def order(self) -> Tensor:
        """int64 ``[N]``, ragged: the positions, row by row and group by group."""
        return self._layout[0]

    @property
    def members(self) -> Segments:
        """Ragged: the groups over the positions in that order."""
        return self._layout[1]

    @property
    def groups(self) -> Segments:
        """Ragged: the rows over the groups."""
        return self._layout[2]

    @cached_property
    def sizes(self) -> Float[Tensor, " U"]:
        """How many positions the group of each position has."""
        if self.segments.shared:
            return self.same.float().sum(1)
        edges = self.members.offsets
        sizes_N = self.members.expand_rows(edges[1:] - edges[:-1])
        return torch.empty_like(sizes_N, dtype=torch.float32).index_copy_(0, self.order, sizes_N.float())

    def shares(self, w_N: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        """The weight of every position over the sum of its group's. Weights are at least 0, and their sums not far
        below 1.
        """
        w_N = w_N.clamp(min=_LEAST)  # of a group that has next to nothing too
        if self.segments.shared:
            w_BT = w_N.reshape(self.segments.rows, self.segments.positions)
            return (w_BT / (w_BT @ self.same.to(w_BT.dtype))).reshape(-1)
        total_G = self.members.sum(w_N.index_select(0, self.order).unsqueeze(1))
        return w_N / self._expand_groups(total_G).squeeze(1)

    def means(self, share_N: Float[Tensor, " N"], k_UK: Float[Tensor, "U K"]) -> tuple[Float[Tensor, "M K"], Segments]:
        """What the events of each group make together, and the rows over the groups.

        Args:
            share_N: what ``shares`` gave.
        """
        if self.segments.shared:
            rows, count = self.segments.rows, self.segments.positions
            x_BTK = share_N.reshape(rows, count, 1).to(k_UK.dtype) * k_UK
            c_BTK = torch.matmul(self.same.to(k_UK.dtype), x_BTK)
            return c_BTK.reshape(-1, k_UK.shape[1]), GroupMembers(self.segments, self.sizes)
        at = self.order
        return self.members.weighted_sum(share_N.index_select(0, at), k_UK.index_select(0, at)), self.groups

    def _expand_groups(self, x_GW: Tensor) -> Tensor:
        """``[N, W]``, ragged: what its group has at every position."""
        return self.members.expand(x_GW).index_select(0, self._inverse_order)

    def whole(self, w_M: Float[Tensor, " M"]) -> Float[Tensor, " N"]:
        """The weight of its whole group at every position, of weights by the segments that ``means`` gave."""
        if self.segments.shared:
            return (w_M.reshape(self.segments.rows, -1) * self.sizes).reshape(-1)
        return self._expand_groups(w_M.unsqueeze(1)).squeeze(1)

    @cached_property
    def _inverse_order(self) -> Tensor:
        return self.order.argsort()


class GroupMembers(Segments):
    """The groups of a shared history as its positions tell them: each candidate has keys of its own, and a position
    with n - 1 others of its group stands for an n-th of it. Weights of a softmax are those of the parts.
    """

    def __init__(self, of: Segments, sizes_T: Float[Tensor, " T"]) -> None:
        super().__init__(of.offsets, of.rows, of.positions, shared=True)
        self.sizes = sizes_T

    def _by_row(self, x_NK: Tensor) -> Tensor:
        return x_NK.reshape(self.rows, self.positions, x_NK.shape[1])

    def keys(self, k_UD: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """They are at their positions already."""
        return k_UD

    def add(self, x_BD: Float[Tensor, "B D"], k_UD: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """``expand(x) + k``."""
        return (x_BD.unsqueeze(1) + self._by_row(k_UD)).reshape(k_UD.shape)

    def mul(self, x_BD: Float[Tensor, "B D"], k_UD: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """``expand(x) * k``."""
        return (x_BD.unsqueeze(1) * self._by_row(k_UD)).reshape(k_UD.shape)

    def dot(self, x_BD: Float[Tensor, "B D"], k_UD: Float[Tensor, "N D"]) -> Float[Tensor, " N"]:
        """``<expand(x), k>``."""
        return self.mul(x_BD, k_UD).sum(1)

    def pool(self, k_UD: Float[Tensor, "N D"], how: Pool) -> Float[Tensor, "B D"]:
        """Of parts there are weighted sums alone."""
        raise NotImplementedError("parts of groups are summed by weights")

    def softmax(self, s_N: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        """Softmax of the scores of each row's groups, each split among its parts."""
        s_BT = s_N.reshape(self.rows, self.positions) - self.sizes.log()
        return s_BT.softmax(1).reshape(-1)

    def weighted_sum(self, w_N: Float[Tensor, " N"], k_UD: Float[Tensor, "N D"]) -> Float[Tensor, "B D"]:
        """Sum over each row's positions of ``w * k``."""
        return self.sum(w_N.unsqueeze(1) * k_UD)


def choose_group_columns(
    fields: Fields, named: str | None, key: str, in_impression: bool = False
) -> dict[str, str | None]:
    """The id column that groups the events of each history.

    It is the one that is named; in a history without that one, and where none is named, the first that the candidate
    has too other than the item, which is its id of most values; the item where it is alone, and None where not even
    that is there.

    Args:
        place: of the setting, such as ``model.group``, for a message.
        asked: whether a feature of the impression has to go by that name too.

    Raises:
        ConfigError: no history has such an id column.
    """
    features = {field.name for field in fields.features}
    candidate = [field for field in fields.features if field.table == "item" and field.kind == "id"]
    item = max(candidate, key=lambda field: field.rows).name if candidate else ""
    grouping: dict[str, str | None] = {}
    fitting: set[str] = set()
    for history, columns in fields.histories.items():
        id_columns = [
            field.name for field in columns if field.kind == "id" and (field.name in features or not in_impression)
        ]
        fitting.update(id_columns)
        shared = [field.name for field in fields.pairs(history) if field.kind == "id"]
        first = next((name for name in shared if name != item), item if item in shared else None)
        grouping[history] = named if named in id_columns else first
    if named is not None and named not in fitting:
        too = " and the impression too" if in_impression else ""
        choices = ", ".join(sorted(fitting)) or "none"
        raise ConfigError("config", [f"{key}: must be an id column of a history{too} ({choices}), got {named!r}"])
    return grouping

"""Hard bounds on the load of codes, by greedy repair (UniRec, arXiv 2604.12234, section 3).

    V_k   = sum of w_i over the items of code k             load
    C_cap = (1 / K) sum_i w_i                               load of every code if all were equal
    V_k  <= tau C_cap        for all k

The repair starts at the nearest codes. It moves items from the codes above the bound to the nearest code with room, in
increasing order of regret per unit of weight: the growth of the squared distance over the weight. It works in rounds:
in one round each overloaded code offers as many items as it must lose, and each code with room accepts offers while it
has room. No code ever rises above the bound, so that the number of overloaded codes never grows.

Choices that the paper leaves open:
    - A weight below ``floor`` counts as ``floor``. Items without exposure could else pile up on one code.
    - A weight above the bound counts as the bound: one item alone would break it wherever it is. Such items are listed.
    - Items with more than half the bound cannot share a code. Before the rounds each takes one that no other has, the
      heaviest first.
    - No code has more than ``items_factor`` N / K items.
    - An item that no code has room for stays where it is, and its code is listed as a violation.

Shapes: N items, D width, K codes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from pydantic import ConfigDict, Field, field_validator
from torch import Tensor

from longrec.config import Strict
from longrec.semantic_ids.nearest import iterate_scores

_ROUNDS = 1_000
"""Largest number of rounds of one repair. Each moves at least one item, and usually a few are enough."""


class Capacity(Strict):
    """Bound on the load of each code."""

    model_config = ConfigDict(**{**Strict.model_config, "allow_inf_nan": True})

    tau: float = Field(1.05, description="largest load of a code, as a multiple of the mean load; .inf for no bound")
    floor: float = Field(1.0, ge=0, description="smallest weight of an item; smaller ones count as this")
    items_factor: float | None = Field(
        None, description="largest number of items of a code, as a multiple of the mean number; default: twice tau"
    )

    @field_validator("tau", "items_factor")
    @classmethod
    def _check_factor(cls, value: float | None) -> float | None:
        if value is not None and not value >= 1:
            raise ValueError(f"must be 1 or more, or .inf, got {value}")
        return value

    @field_validator("floor")
    @classmethod
    def _check_floor(cls, value: float) -> float:
        if not math.isfinite(value):
            raise ValueError(f"must be a finite number, got {value}")
        return value

    @property
    def is_bounded(self) -> bool:
        """True if the capacity bounds anything."""
        return math.isfinite(self.tau) or math.isfinite(self.largest_factor)

    @property
    def largest_factor(self) -> float:
        """Largest number of items of a code, as a multiple of the mean number."""
        return 2 * self.tau if self.items_factor is None else self.items_factor


@dataclass(frozen=True)
class CapacityReport:
    """What a repair has done.

    Attributes:
        load_limit: tau C_cap.
        item_limit: largest number of items of a code.
        moved: number of items that are not in their nearest code.
        overloaded_before: number of codes above a bound before the repair.
        violations: codes above a bound after it.
        clipped: items whose weight is above the bound, which count as the bound.
        floored: number of items whose weight counts as the floor.
        loads: float64 ``[K]``, load of each code with the weights as they count.
        counts: int64 ``[K]``, number of items of each code.
    """

    load_limit: float
    item_limit: int
    moved: int
    overloaded_before: int
    violations: tuple[int, ...]
    clipped: tuple[int, ...]
    floored: int
    loads: Float[Tensor, " K"]
    counts: Int[Tensor, " K"]

    def to_dict(self) -> dict[str, Any]:
        """Return the report for a file: numbers, and the codes of the first 100 violations."""
        return {
            "load_limit": self.load_limit,
            "item_limit": self.item_limit,
            "moved": self.moved,
            "overloaded_before": self.overloaded_before,
            "violations": len(self.violations),
            "violating_codes": list(self.violations[:100]),
            "clipped": len(self.clipped),
            "floored": self.floored,
            "largest_load": float(self.loads.max()),
            "largest_count": int(self.counts.max()),
        }


def clip_weights(
    weights: Float[Tensor, " N"] | None, items: int, size: int, capacity: Capacity
) -> tuple[Float[Tensor, " N"], float, Bool[Tensor, " N"], int]:
    """Return the weights as they count, float64, the bound of a load, which items are clipped, and how many floored."""
    raw_N = torch.ones(items, dtype=torch.float64) if weights is None else weights.double()
    weight_N = raw_N.clamp(min=capacity.floor)
    limit = capacity.tau * float(weight_N.sum()) / size
    return weight_N.clamp(max=limit), limit, weight_N > limit, int((raw_N < capacity.floor).sum())


class _Loads:
    """Loads and numbers of items of all codes, with their bounds."""

    def __init__(self, weight_N: Tensor, code_N: Tensor, size: int, load_limit: float, item_limit: int) -> None:
        self.load_limit, self.item_limit, self.size = load_limit, item_limit, size
        self.slack = 1e-9 * load_limit if math.isfinite(load_limit) else 0.0
        self.refresh(weight_N, code_N)

    def refresh(self, weight_N: Tensor, code_N: Tensor) -> None:
        """Add up again."""
        self.load_K = torch.bincount(code_N, weight_N, minlength=self.size)
        self.count_K = torch.bincount(code_N, minlength=self.size)

    def find_overloaded(self) -> Tensor:
        """Return bool ``[K]``: codes above a bound."""
        return (self.load_K > self.load_limit + self.slack) | (self.count_K > self.item_limit)


def repair(
    x_ND: Float[Tensor, "N D"],
    centroid_KD: Float[Tensor, "K D"],
    code_N: Int[Tensor, " N"],
    weights: Float[Tensor, " N"] | None,
    capacity: Capacity,
) -> tuple[Int[Tensor, " N"], CapacityReport]:
    """Move items from overloaded codes to codes with room.

    Args:
        code_N: the nearest code of each item, int64. It is not changed.
        weights: weight of each item, 0 or more. Default: 1 each.

    Returns:
        The codes, int64 ``[N]``, and a report.
    """
    items, size = len(x_ND), len(centroid_KD)
    weight_N, limit, clipped_N, floored = clip_weights(weights, items, size, capacity)
    factor = capacity.largest_factor
    item_limit = max(math.ceil(factor * items / size), 1) if math.isfinite(factor) else items
    loads = _Loads(weight_N, code_N, size, limit, item_limit)
    before, first_N = int(loads.find_overloaded().sum()), code_N
    if before:
        spread_N = _spread(x_ND, centroid_KD, code_N, _list_heavy(weight_N, limit, size))
        code_N = _move_all(x_ND, centroid_KD, spread_N, weight_N, loads)
        if int(loads.find_overloaded().sum()) > before:  # items of a code that a heavy one took fit nowhere else
            code_N = _move_all(x_ND, centroid_KD, first_N, weight_N, loads)
    return code_N, CapacityReport(
        load_limit=limit,
        item_limit=item_limit,
        moved=int((code_N != first_N).sum()),
        overloaded_before=before,
        violations=tuple(loads.find_overloaded().nonzero().squeeze(1).tolist()),
        clipped=tuple(clipped_N.nonzero().squeeze(1).tolist()),
        floored=floored,
        loads=loads.load_K,
        counts=loads.count_K,
    )


def _list_heavy(weight_N: Tensor, limit: float, size: int) -> Tensor:
    """Return the items with more than half the bound, of which no two fit into one code: at most K, heaviest first."""
    row_G = (weight_N > limit / 2 * (1 + 1e-9)).nonzero().squeeze(1)
    return row_G[weight_N[row_G].argsort(descending=True, stable=True)][:size]


def _spread(x_ND: Tensor, centroid_KD: Tensor, code_N: Tensor, row_G: Tensor) -> Tensor:
    """Return the codes with each heavy item in another code: the nearest that no earlier one has."""
    if not len(row_G):
        return code_N
    code_N = code_N.clone()
    taken_K = torch.zeros(len(centroid_KD), dtype=torch.bool)
    score_GK = torch.cat([score_BK.clone() for _, score_BK in iterate_scores(x_ND[row_G], centroid_KD)])
    for row, score_K in zip(row_G.tolist(), score_GK):
        code = int(score_K.masked_fill(taken_K, -torch.inf).argmax())
        code_N[row], taken_K[code] = code, True
    return code_N


def _move_all(x_ND: Tensor, centroid_KD: Tensor, code_N: Tensor, weight_N: Tensor, loads: _Loads) -> Tensor:
    """Return the codes after rounds of moves, until none is left to do. The loads are those of the codes."""
    code_N = code_N.clone()
    loads.refresh(weight_N, code_N)
    for _ in range(_ROUNDS):
        if not _move_some(x_ND, centroid_KD, code_N, weight_N, loads):
            break
        loads.refresh(weight_N, code_N)
    return code_N


def _move_some(x_ND: Tensor, centroid_KD: Tensor, code_N: Tensor, weight_N: Tensor, loads: _Loads) -> int:
    """Do one round. Return the number of items that moved."""
    over_K = loads.find_overloaded()
    row_R = over_K[code_N].nonzero().squeeze(1)
    if not len(row_R):
        return 0
    target_R, regret_R = _find_open_code(x_ND, centroid_KD, code_N, weight_N, loads, row_R, over_K)
    can = torch.isfinite(regret_R)
    row_R, target_R, regret_R = row_R[can], target_R[can], regret_R[can]
    if not len(row_R):
        return 0
    own_R, own_weight_R = code_N[row_R], weight_N[row_R]
    # A code that has only too many items loses those with the least regret, whatever their weight.
    by_load_R = loads.load_K[own_R] > loads.load_limit + loads.slack
    price_R = torch.where(by_load_R, regret_R / own_weight_R.clamp(min=1e-300), regret_R)
    order_R = price_R.argsort(stable=True)
    row_R, target_R, own_R, own_weight_R = row_R[order_R], target_R[order_R], own_R[order_R], own_weight_R[order_R]
    # Each overloaded code offers items until it would be within its bounds.
    load_before_R, count_before_R = _add_up_before(own_R, own_weight_R, loads.size)
    still_load_R = loads.load_K[own_R] - load_before_R > loads.load_limit + loads.slack
    offered_R = still_load_R | (loads.count_K[own_R] - count_before_R > loads.item_limit)
    row_R, target_R, own_weight_R = row_R[offered_R], target_R[offered_R], own_weight_R[offered_R]
    # Each code accepts offers, best first, while it has room. What one rejects is offered again in the next round.
    load_before_R, count_before_R = _add_up_before(target_R, own_weight_R, loads.size)
    fits_R = loads.load_K[target_R] + load_before_R + own_weight_R <= loads.load_limit + loads.slack
    fits_R &= loads.count_K[target_R] + count_before_R + 1 <= loads.item_limit
    code_N[row_R[fits_R]] = target_R[fits_R]
    return int(fits_R.sum())


def _find_open_code(
    x_ND: Tensor, centroid_KD: Tensor, code_N: Tensor, weight_N: Tensor, loads: _Loads, row_R: Tensor, over_K: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the nearest code with room for each item, and how much farther it is. Infinite if there is none."""
    target_R = torch.zeros_like(row_R)
    regret_R = torch.full(row_R.shape, torch.inf, dtype=torch.float64)
    free_K = loads.load_limit + loads.slack - loads.load_K
    open_k = (~over_K & (loads.count_K < loads.item_limit)).nonzero().squeeze(1)
    if not len(open_k):
        return target_R, regret_R
    for rows, score_BK in iterate_scores(x_ND[row_R], centroid_KD):
        own_B1 = code_N[row_R[rows]].unsqueeze(1)
        score_Bk = score_BK[:, open_k]
        score_Bk.masked_fill_(weight_N[row_R[rows]].unsqueeze(1) > free_K[open_k], -torch.inf)
        best_B, at_B = score_Bk.max(1)
        target_R[rows] = open_k[at_B]
        regret_R[rows] = 2 * (score_BK.gather(1, own_B1).squeeze(1) - best_B).double()
    return target_R, regret_R


def _add_up_before(code_R: Tensor, weight_R: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the weight, and the number, of the earlier items of the same code."""
    order_R = code_R.argsort(stable=True)
    sorted_R, sorted_weight_R = code_R[order_R], weight_R[order_R]
    before_R = sorted_weight_R.cumsum(0) - sorted_weight_R
    first_K = torch.bincount(code_R, minlength=size).cumsum(0) - torch.bincount(code_R, minlength=size)
    at_R = torch.arange(len(code_R))
    load_R, count_R = torch.empty_like(weight_R), torch.empty_like(code_R)
    load_R[order_R] = before_R - before_R[first_K[sorted_R].clamp(max=max(len(code_R) - 1, 0))]
    count_R[order_R] = at_R - first_K[sorted_R]
    return load_R, count_R

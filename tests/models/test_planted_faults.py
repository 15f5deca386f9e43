"""Faults planted in DIN and its layers: the conformance suite must detect each of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from longrec.models.core.registry import build
from longrec.nn.activation import BatchNorm
from longrec.nn.attention import TargetAttention
from longrec.nn.queries import Queries
from longrec.nn.segments import Segments
from longrec.testing.batches import FIELDS
from longrec.testing.case import Case
from longrec.testing.expect import ConformanceError
from longrec.testing.pretend_device import DeviceMixError
from longrec.testing.suite import ALL, Check, cases_of

Patch = pytest.MonkeyPatch
Padded = Callable[..., Tensor]


def padded(masked: bool) -> Padded:
    """DIN's attention on padded keys; without its mask, or with one that a row without events divides by zero."""

    def forward(self: TargetAttention, q_BQ: Tensor, k_UK: Tensor, segments: Segments) -> Tensor:
        if segments.shared:
            return segments.weighted_sum(self.weights(q_BQ, k_UK, segments), k_UK)
        lengths = segments.offsets.diff()
        longest = max(int(lengths.max()), 1)
        k_BTK = k_UK.new_zeros(segments.rows, longest, k_UK.shape[1])
        real = torch.arange(longest) < lengths.unsqueeze(1)
        k_BTK[real] = k_UK
        every = Segments(torch.arange(segments.rows + 1) * longest, segments.rows, segments.rows * longest)
        h_NH = self.first(q_BQ, k_BTK.flatten(0, 1), every, relu=self.fused)
        h_NH = h_NH if self.activation is None else self.activation(h_NH)
        s_BT = self.rest(h_NH).reshape(segments.rows, longest)
        if masked:
            s_BT = s_BT.masked_fill(~real, -torch.inf if self.softmax else 0.0)
        w_BT = s_BT.softmax(1) if self.softmax else s_BT
        return torch.einsum("bt,btk->bk", w_BT, k_BTK)

    return forward


def no_mask(patch: Patch) -> None:
    patch.setattr(TargetAttention, "forward", padded(masked=False))


def empty_row_is_nan(patch: Patch) -> None:
    patch.setattr(TargetAttention, "forward", padded(masked=True))


def softmax_over_the_batch(patch: Patch) -> None:
    patch.setattr(Segments, "softmax", lambda self, s_N: s_N.softmax(0))


def query_of_the_next_row(patch: Patch) -> None:
    right = TargetAttention.weights

    def wrong(self: TargetAttention, q_BQ: Tensor, k_UK: Tensor, segments: Segments) -> Tensor:
        return right(self, q_BQ.roll(1, 0), k_UK, segments)

    patch.setattr(TargetAttention, "weights", wrong)


def last_event_is_dropped(patch: Patch) -> None:
    right = Segments.weighted_sum

    def wrong(self: Segments, w_N: Tensor, k_UD: Tensor) -> Tensor:
        if self.shared:
            return right(self, w_N, k_UD)
        last = torch.zeros_like(w_N).index_fill(0, self.offsets[1:][self.offsets.diff() > 0] - 1, 1.0)
        return right(self, w_N * (1 - last), k_UD)

    patch.setattr(Segments, "weighted_sum", wrong)


def sum_over_the_segment_of_a_neighbor(patch: Patch) -> None:
    right = Segments.weighted_sum

    def wrong(self: Segments, w_N: Tensor, k_UD: Tensor) -> Tensor:
        shift = 0 if self.shared else 1
        return right(self, w_N.roll(shift), k_UD.roll(shift, 0))

    patch.setattr(Segments, "weighted_sum", wrong)


def a_column_is_ignored(patch: Patch) -> None:
    right = Queries.forward

    def wrong(self: Queries, *args: Any) -> tuple[Tensor, Tensor, Segments]:
        q_BQ, k_UK, segments = right(self, *args)
        return q_BQ, torch.cat([k_UK[:, :-16], torch.zeros_like(k_UK[:, -16:])], 1), segments

    patch.setattr(Queries, "forward", wrong)


def dice_looks_at_the_batch(patch: Patch) -> None:
    def wrong(self: BatchNorm, x_NH: Tensor) -> Tensor:
        if len(x_NH) < 2:
            return x_NH
        return (x_NH - x_NH.mean(0)) / (x_NH.var(0, unbiased=False) + self.eps).sqrt()

    patch.setattr(BatchNorm, "forward", wrong)


def a_tensor_is_created_on_the_cpu(patch: Patch) -> None:
    right = TargetAttention.weights

    def wrong(self: TargetAttention, q_BQ: Tensor, k_UK: Tensor, segments: Segments) -> Tensor:
        w_N = right(self, q_BQ, k_UK, segments)
        return w_N * torch.ones(len(w_N))

    patch.setattr(TargetAttention, "weights", wrong)


def values_are_read_in_a_step(patch: Patch) -> None:
    right = TargetAttention.weights

    def wrong(self: TargetAttention, q_BQ: Tensor, k_UK: Tensor, segments: Segments) -> Tensor:
        w_N = right(self, q_BQ, k_UK, segments)
        return w_N if bool(w_N.isfinite().all()) else w_N.nan_to_num()

    patch.setattr(TargetAttention, "weights", wrong)


FAULTS = {
    no_mask: {"rows_do_not_see_each_other"},  # hidden by raw scores (0 times 0), shown by the softmax variants
    empty_row_is_nan: {"one_finite_score_a_row", "an_empty_history_is_scored"},
    softmax_over_the_batch: {"rows_do_not_see_each_other", "many_rows_score_as_few"},
    query_of_the_next_row: {"rows_do_not_see_each_other", "many_rows_score_as_few"},
    last_event_is_dropped: {"every_event_counts_for_its_row_only", "shared_batch_scores_as_ragged"},
    sum_over_the_segment_of_a_neighbor: {"rows_do_not_see_each_other", "every_event_counts_for_its_row_only"},
    a_column_is_ignored: {"every_input_is_read", "every_parameter_gets_a_gradient"},
    dice_looks_at_the_batch: {"rows_do_not_see_each_other", "many_rows_score_as_few"},
    a_tensor_is_created_on_the_cpu: {"a_step_on_another_device"},
    values_are_read_in_a_step: {"a_step_on_another_device"},
}
"""Each fault, and the checks that must find it in one variant of DIN at least."""


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_detected(fault: Callable[[Patch], None], monkeypatch: Patch) -> None:
    fault(monkeypatch)
    cases = cases_of("din")
    for name in FAULTS[fault]:
        assert any(fails(ALL[name], case) for case in cases), f"{name} does not detect it"


def fails(check: Check, case: Case) -> bool:
    try:
        check(case)
    except (ConformanceError, DeviceMixError):
        return True
    return False


def test_the_padded_attention_is_right_but_for_its_mask() -> None:
    """The planted form with a full history in every row is DIN, so what is found is the mask."""
    torch.manual_seed(0)
    model = build({"name": "din"}, FIELDS)
    unit = model.units[0]
    q_BQ, k_UK = torch.randn(4, unit.first.query), torch.randn(12, unit.first.key)
    segments = Segments(torch.arange(5) * 3, 4, 12)
    expected = unit(q_BQ, k_UK, segments)
    torch.testing.assert_close(padded(masked=False)(unit, q_BQ, k_UK, segments), expected)

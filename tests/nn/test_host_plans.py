"""Tests of plans that are made on the host."""

from __future__ import annotations

import numpy as np
import torch

from longrec.features.batch import HistoryBatch
from longrec.nn.host_plans import expand_rows, fetch, invert, put, put_all, sort
from longrec.nn.length_buckets import Buckets
from longrec.nn.segments import Segments
from longrec.nn.steps import Steps, find_followed
from longrec.testing.pretend_device import DEVICE, PretendDevice

CPU = torch.device("cpu")


def test_plans_arrive_as_they_are_with_one_copy_per_type() -> None:
    plans = [np.arange(6).reshape(2, 3), np.array([True, False]), np.zeros(0, np.int64), np.array([7, 8])]
    here = put_all(plans, CPU)
    assert here[0].data_ptr() == plans[0].ctypes.data
    with PretendDevice() as device:
        there = put_all(plans, DEVICE)
        assert not device.waits
        for plan, one, other in zip(plans, here, there, strict=True):
            assert torch.equal(one, other.cpu())
            assert one.shape == other.shape == plan.shape
            assert one.dtype == other.dtype
        assert put(plans[3], DEVICE).device == DEVICE


def test_orders() -> None:
    keys = np.array([3, 1, 2, 1])
    ordered, order = sort(keys)
    assert ordered.tolist() == [1, 1, 2, 3]
    assert order.tolist() == [1, 3, 2, 0]
    assert invert(order)[order].tolist() == [0, 1, 2, 3]
    assert expand_rows(np.array([0, 2, 2, 5]), np.array([7, 8, 9])).tolist() == [7, 7, 9, 9, 9]
    assert fetch(torch.tensor([1, 2], requires_grad=False)).tolist() == [1, 2]


def test_plans_are_created_once_per_history_without_waiting() -> None:
    offsets = torch.tensor([0, 2, 2, 7, 8])
    history = HistoryBatch({"item": torch.arange(8)}, offsets)
    with PretendDevice() as device:
        moved = history.to(DEVICE, non_blocking=True)
        there = Segments(moved.offsets, 4, 8, host=moved.host_offsets)
        buckets, steps, followed = Buckets.of(there, 4), Steps.of(there), find_followed(there)
        assert Buckets.of(there, 4) is buckets
        assert Steps.of(there) is steps
        assert find_followed(there) is followed
        assert Steps.of(there, reverse=True) is not steps
        here = Segments(offsets, 4, 8)
        assert there.on_host.offsets.tolist() == offsets.tolist()
        assert here.on_host is here
        assert not device.waits
        assert followed.tolist() == find_followed(here).tolist() == [0, 2, 3, 4, 5]
        assert steps.positions.tolist() == Steps.of(here).positions.tolist()
        assert buckets.positions.tolist() == Buckets.of(here, 4).positions.tolist()
        assert moved.on_host is history

"""Ids that a step reads from each table, in each of its lookups."""

from __future__ import annotations

import pytest
from torch import nn

from longrec.nn import lookup


def record_reads(patch: pytest.MonkeyPatch) -> dict[int, list[int]]:
    """Return a dictionary that lookups on the CPU fill: the number of ids of each lookup, by ``id`` of the table."""
    reads: dict[int, list[int]] = {}
    look_up = lookup.look_up

    def record(weight: nn.Parameter, uses: list[lookup.Use]) -> object:
        reads.setdefault(id(weight), []).append(sum(len(use.ids) for use in uses))
        return look_up(weight, uses)

    patch.setattr(lookup, "look_up", record)
    return reads

"""Parser of packed cells such as ``name:value#name:value;name:value#...`` into list columns.

A whole chunk of cells is parsed with Arrow kernels. Single rows and steps are parsed only to locate an error.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from longrec.data.file_format import PackedCells
from longrec.errors import nearest


class InvalidCell(Exception):
    """Error for a packed cell that cannot be parsed.

    Attributes:
        row: index of the cell in the chunk.
        step: number of the step in the cell, from 1, including empty steps.
        actual: invalid content, for the error message.
        expected: expected content, for the error message.
    """

    def __init__(self, row: int, step: int, actual: str, expected: str) -> None:
        super().__init__(f"row {row}, step {step}: {actual}; expected {expected}")
        self.row, self.step, self.actual, self.expected = row, step, actual, expected


def unpack(cells: pa.Array, packed: PackedCells, fill: Mapping[str, str]) -> dict[str, pa.ListArray]:
    """Return the list columns of a chunk of cells: one list of text per row, with one value per step.

    A null or empty cell has no steps. A name or value that is missing in a step becomes the default in ``fill``, else
    null. Spaces in values are kept.

    Args:
        cells: text cells, ``[n]``.
        packed: separators and names.
        fill: list column -> default of missing values.

    Raises:
        InvalidCell: the first invalid cell of the chunk. It has a feature without a name or with two separators, an
            unknown name, or a name twice in a step.
    """
    segments, of_row = _split(pc.fill_null(cells, ""), packed.step)
    real = pc.not_equal(segments, "")
    kept = np.concatenate([[0], np.cumsum(real.to_numpy(zero_copy_only=False))])
    steps, offsets = segments.filter(real), pa.array(kept[of_row].astype(np.int32))
    features, of_step = _split(steps, packed.feature)
    owner = np.repeat(np.arange(len(steps)), np.diff(of_step))
    pairs, of_pair = _split(features, packed.name)
    if (np.diff(of_pair) != 2).any():
        raise _find_first_invalid(cells, packed)
    names, values = pairs.take(np.arange(0, len(pairs), 2)), pairs.take(np.arange(1, len(pairs), 2))
    codes_array = pc.index_in(names, value_set=pa.array([*packed.into, *packed.ignore], names.type))
    if codes_array.null_count:
        raise _find_first_invalid(cells, packed)
    codes = codes_array.to_numpy(zero_copy_only=False)
    columns = {}
    for code, (_, column) in enumerate(packed.into.items()):
        own = np.flatnonzero(codes == code)
        if not np.diff(owner[own]).all():
            raise _find_first_invalid(cells, packed)
        step_values = _align_to_steps(values, own, owner, len(steps))
        step_values = pc.if_else(pc.equal(step_values, ""), pa.scalar(None, step_values.type), step_values)
        columns[column] = pa.ListArray.from_arrays(
            offsets, pc.fill_null(step_values, fill[column]) if column in fill else step_values
        )
    return columns


def _split(text: pa.Array, separator: str) -> tuple[pa.Array, NDArray[np.int64]]:
    """Return the concatenated segments of all texts, and their offsets, int64 ``[n + 1]``.

    An empty text has one empty segment.
    """
    lists = pc.split_pattern(text, separator)
    return lists.flatten(), lists.offsets.to_numpy(zero_copy_only=False).astype(np.int64)


def _align_to_steps(values: pa.Array, own: NDArray[np.int64], owner: NDArray[np.int64], steps: int) -> pa.Array:
    """Return the value of one name in every step, or null if the step has none.

    Args:
        values: values of all names.
        own: indices in ``values`` of the name, in the order of the steps.
        owner: index of the step of every value.
        steps: number of steps.
    """
    if len(own) == steps:
        return values.take(pa.array(own))
    positions = np.full(steps, -1, np.int64)
    positions[owner[own]] = own
    return values.take(pa.array(positions, mask=positions < 0))


def _find_first_invalid(cells: pa.Array, packed: PackedCells) -> InvalidCell:
    """Return the error for the first invalid cell of a chunk that has one."""
    for row, cell in enumerate(cells.to_pylist()):
        for number, step in enumerate((cell or "").split(packed.step), 1):
            seen: set[str] = set()
            for feature in step.split(packed.feature) if step else ():
                name = feature.partition(packed.name)[0]
                fault = _fault(feature, name, packed, seen)
                if fault is not None:
                    return InvalidCell(row, number, *fault)
                seen.add(name)
    raise AssertionError("the chunk reads as packed")


def _fault(feature: str, name: str, packed: PackedCells, seen: set[str]) -> tuple[str, str] | None:
    """Return the error of one feature of a step as (found, expected), or None."""
    count, valid_names = feature.count(packed.name), [*packed.into, *packed.ignore]
    if count != 1:
        shown = repr(feature if len(feature) <= 60 else feature[:57] + "...")
        actual = f"{shown}, with {f'{count} separators' if count else 'no separator'} {packed.name!r}"
        if not feature:
            actual = f"an empty feature next to a separator {packed.feature!r}"
        return actual, f"name{packed.name}value between separators {packed.feature!r}"
    if name not in valid_names:
        near = nearest(name, valid_names)
        hint = f" (did you mean {near!r}?)" if near else ""
        return f"the name {name!r}{hint}", f"one of {', '.join(valid_names)}, or the name in ignore"
    return (f"{name!r} twice in one step", "each name once per step") if name in seen and name in packed.into else None

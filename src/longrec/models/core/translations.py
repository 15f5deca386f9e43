"""Translations of operators of traced graphs to ONNX, of those that torch translates otherwise or not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset18

from longrec.nn.first_top import OPERATOR

op: Any = opset18


def list_translations() -> dict[Any, Callable[..., Any]]:
    """Return the translation of each operator, as ``torch.onnx.export`` takes them."""
    return {
        torch.ops.aten.repeat_interleave.Tensor: _repeat_interleave,
        OPERATOR: _find_first_top,
    }


def _repeat_interleave(repeats: Any, output_size: Any = None) -> Any:
    """Translate aten::repeat_interleave.Tensor to ONNX: the row of each value, in linear time.

    One mark is added at the start of every row but the first (marks of empty rows add up at one position), and a
    cumulative sum counts the marks. The exporter's own translation takes no ``output_size``.
    """
    zero, one, minus_one = (op.Constant(value_ints=[number]) for number in (0, 1, -1))
    ends = op.CumSum(repeats, op.Constant(value_int=0))
    total = op.ReduceSum(repeats, keepdims=1) if output_size is None else op.Reshape(output_size, one)
    starts = op.Slice(ends, zero, minus_one, zero)
    marks = op.ScatterElements(
        op.Expand(zero, op.Add(total, one)), starts, op.Expand(one, op.Shape(starts)), axis=0, reduction="add"
    )
    return op.Slice(op.CumSum(marks, op.Constant(value_int=0)), zero, total, zero)


def _find_first_top(values: Any, count: Any) -> Any:
    """Translate ``longrec::first_top``: of equal values ONNX's TopK returns the first."""
    size = op.Reshape(op.Constant(value_int=count) if isinstance(count, int) else count, op.Constant(value_ints=[1]))
    return op.TopK(values, size)[1]

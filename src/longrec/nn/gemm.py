"""Matrix products of a layer over many rows, float32 on CPU through the faster library of the processor.

torch sends a float32 product to MKL. On processors of Intel that is the faster one (measured: 117 against 74 GFLOP/s
per core on ``[74000, 160] x [160, 80]``), and the plain product is used. On those of other makers MKL runs at half the
speed of oneDNN (58 against 189 GFLOP/s on ``[24600, 64] x [64, 80]``). There oneDNN is called by the operator that
torch.compile itself emits for a linear layer, and for weight gradients by a 1 x 1 convolution. If either is missing,
and for other types and devices, all functions here are the plain product.

oneDNN builds a kernel for each new shape, which costs about a millisecond, and ragged batches almost never repeat a
number of positions. So the rows of a product are rounded up to a multiple of ``GRAIN``. ``allocate_rows`` makes tensors
whose memory has room for that many rows. The rows past the end are computed and never read.

Shapes: N rows, I inputs, O outputs.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

GRAIN = 256
"""Rows of a product are rounded up to a multiple of this."""
_CLASSES = 8
"""Sizes of memory per power of two, of many rows."""
_MIN_ROWS = 512
"""Below this number of rows the plain product is as fast."""
_IMAGES = 16
"""torch sends a 1 x 1 convolution on one thread to oneDNN from this number of images on."""


def _find_pointwise() -> Any:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def _is_mkl_faster(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return True if torch has MKL and the processor is one of Intel.

    The maker decides, not a measurement: equal runs on one machine give equal bits.
    """
    if not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        return False
    maker = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.exists() else platform.processor()
    return "GenuineIntel" in maker


_POINTWISE: Any = None if _is_mkl_faster() else _find_pointwise()


def _fits_onednn(x: Tensor) -> bool:
    fits = x.device.type == "cpu" and x.dtype is torch.float32 and x.shape[0] >= _MIN_ROWS
    return fits and _POINTWISE is not None and bool(torch.backends.mkldnn.enabled)


def allocate_rows(like: Tensor, rows: int, width: int) -> Tensor:
    """Return an uninitialized ``[rows, width]``. On the CPU its memory has room for whole grains of rows.

    Many rows are rounded up to one of ``_CLASSES`` sizes per power of two. So a batch of a few more positions fits into
    the memory of one before it, where it would take new memory beside it.
    """
    if like.device.type != "cpu":
        return like.new_empty(rows, width)
    grain = max(GRAIN, (1 << rows.bit_length() - 1) // _CLASSES if rows else 0)
    whole = -(-rows // grain) * grain
    return like.new_empty(whole, width).resize_(rows, width)


def _round_up_rows(x_NI: Tensor) -> Tensor:
    """Return ``x_NI`` with its rows rounded up to a grain: a view if its memory has room, else a copy."""
    rows, width = x_NI.shape
    whole = -(-rows // GRAIN) * GRAIN
    if rows == whole and x_NI.is_contiguous():
        return x_NI
    bytes_needed = (x_NI.storage_offset() + whole * width) * x_NI.element_size()
    if x_NI.is_contiguous() and x_NI.untyped_storage().nbytes() >= bytes_needed:
        return x_NI.as_strided((whole, width), (width, 1))
    copy = x_NI.new_empty(whole, width)
    copy[:rows] = x_NI
    return copy


def affine(x_NI: Tensor, w_OI: Tensor, b_O: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """Return ``x w^T + b`` as ``[N, O]``, or its ReLU with ``relu``. Not differentiable (no autograd)."""
    if _fits_onednn(x_NI) and w_OI.shape[0] > 1:
        y_NO: Tensor = _POINTWISE(_round_up_rows(x_NI), w_OI, b_O, "relu" if relu else "none", [], "")
        return y_NO.resize_(x_NI.shape[0], w_OI.shape[0])
    y_NO = torch.nn.functional.linear(x_NI, w_OI, b_O)
    return y_NO.relu_() if relu else y_NO


def input_gradient(g_NO: Tensor, w_OI: Tensor) -> Tensor:
    """Return ``g w`` as ``[N, I]``: the gradient of ``x w^T`` with respect to x."""
    if _fits_onednn(g_NO) and w_OI.shape[0] > 1:
        return affine(g_NO, w_OI.t().contiguous())
    return g_NO @ w_OI


def weight_gradient(g_NO: Tensor, x_NI: Tensor) -> Tensor:
    """Return ``g^T x`` as ``[O, I]``: the gradient of ``x w^T`` with respect to w."""
    side = 16 if x_NI.shape[0] >= _IMAGES * 256 else 8
    images, inputs, outputs = x_NI.shape[0] // (side * side), x_NI.shape[1], g_NO.shape[1]
    if images < _IMAGES or outputs == 1 or not _fits_onednn(x_NI):
        return g_NO.t() @ x_NI
    rows = images * side * side
    # [rows, C] is already a batch of square images in channels-last order, so nothing is copied.
    x = x_NI[:rows].view(images, side, side, inputs).permute(0, 3, 1, 2)
    g = g_NO[:rows].view(images, side, side, outputs).permute(0, 3, 1, 2)
    w = x_NI.new_empty(outputs, inputs, 1, 1)
    back = torch.ops.aten.convolution_backward
    grad: Tensor = back(g, x, w, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, False])[1]
    grad = grad.reshape(outputs, inputs)
    if rows < x_NI.shape[0]:
        grad = grad + g_NO[rows:].t() @ x_NI[rows:]
    return grad


def add_product(y_NO: Tensor, x_NI: Tensor, w_OI: Tensor) -> Tensor:
    """Add ``x w^T`` to ``y`` in place, and return it."""
    return y_NO.add_(affine(x_NI, w_OI)) if _fits_onednn(x_NI) else y_NO.addmm_(x_NI, w_OI.t())


def write_input_gradient(out_NI: Tensor, g_NO: Tensor, w_OI: Tensor) -> Tensor:
    """Write ``g w`` into existing memory, and return it."""
    if _fits_onednn(g_NO) and w_OI.shape[0] > 1:
        return out_NI.copy_(input_gradient(g_NO, w_OI))
    return torch.mm(g_NO, w_OI, out=out_NI)


def add_weight_gradient(total_OI: Tensor, g_NO: Tensor, x_NI: Tensor) -> None:
    """Add ``g^T x`` to ``total`` in place."""
    if _fits_onednn(x_NI):
        total_OI.add_(weight_gradient(g_NO, x_NI))
    else:
        total_OI.addmm_(g_NO.t(), x_NI)

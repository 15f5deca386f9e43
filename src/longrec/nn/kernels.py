"""Choice of the implementation of a formula. All files ask here, and none tests the device or the tracer itself.

- ``traced``: a program is captured. Only operators that every runtime supports, and no size that depends on data.
- ``plain``: the formula as written, differentiated by torch: few rows, autocast.
- ``cpu``: many float32 rows on the CPU, on oneDNN and with hand-written gradients.
- ``cuda``: any other device. Plain operators, attention and recurrences of torch, plans from the host.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Literal

import torch
from torch import Tensor

Kernel = Literal["traced", "plain", "cpu", "cuda"]


_captured: ContextVar[bool] = ContextVar("captured", default=False)


def is_traced() -> bool:
    """Return True while torch captures a program."""
    return torch.compiler.is_compiling() or _captured.get()


def is_vectorized() -> bool:
    """Return True while a capture takes gradients and runs functions over a further dimension (``vmap``).

    Not all operators allow these.
    """
    return _captured.get()


@contextmanager
def capture() -> Iterator[None]:
    """Return the context of a capture that takes gradients or runs functions over a further dimension."""
    before = _captured.set(True)
    try:
        yield
    finally:
        _captured.reset(before)


def disable_autocast() -> ExitStack:
    """Return the context in which autocast is off, on every device where it is on."""
    stack = ExitStack()
    for device in ("cpu", "cuda"):
        if torch.is_autocast_enabled(device):
            stack.enter_context(torch.autocast(device, enabled=False))
    return stack


def choose(x: Tensor, min_rows: int = 0, *, casts: bool = True) -> Kernel:
    """Return the kernel for a formula over the rows of ``x``.

    Args:
        min_rows: number of rows from which hand-written code is faster on the CPU.
        casts: the formula follows autocast, which hand-written code does not.
    """
    if is_traced():
        return "traced"
    if x.device.type != "cpu":
        return "cuda"
    if x.shape[0] < min_rows or (casts and torch.is_autocast_enabled("cpu")):
        return "plain"
    return "cpu"

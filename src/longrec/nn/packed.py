"""GRU and LSTM of torch (cuDNN on a GPU) over ragged rows, with the weights of nn/recurrent.py and nn/lstm.py.

The positions in the order of time steps are what torch calls a packed sequence. The gates of torch have another order,
and its GRU updates by ``1 - u``, so that the terms of u change sign.

Shapes: N positions, I inputs, H hidden units, G inputs of a step (GRU 3 H: u, r, n; LSTM 4 H: i, f, o, g).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from longrec.nn.steps import Steps


def run_gru(
    x_NI: Float[Tensor, "N I"],
    w_GI: Float[Tensor, "G I"],
    w_GH: Float[Tensor, "G H"],
    b_G: Float[Tensor, " G"],
    steps: Steps,
) -> Float[Tensor, "N H"]:
    """Return the state of a GRU after every position, in float32. A row begins at zero."""

    def reorder(w: Tensor) -> Tensor:
        u, r, n = w.chunk(3)
        return torch.cat([r, -u, n])

    with _quiet(x_NI):
        x_NI, batch_sizes, start, bias = _pack(x_NI, w_GH, steps)
        weights = [reorder(w_GI), reorder(w_GH), reorder(b_G), bias]
        outputs = torch._VF.gru(x_NI, batch_sizes, start, weights, True, 1, 0.0, torch.is_grad_enabled(), False)
        return _unpack(outputs[0], steps)


def run_lstm(
    x_NI: Float[Tensor, "N I"],
    w_GI: Float[Tensor, "G I"],
    w_GH: Float[Tensor, "G H"],
    b_G: Float[Tensor, " G"],
    steps: Steps,
) -> Float[Tensor, "N H"]:
    """Return the output of an LSTM after every position, in float32. A row begins at zero."""

    def reorder(w: Tensor) -> Tensor:
        i, f, o, g = w.chunk(4)
        return torch.cat([i, f, g, o])

    with _quiet(x_NI):
        x_NI, batch_sizes, start, bias = _pack(x_NI, w_GH, steps)
        weights = [reorder(w_GI), reorder(w_GH), reorder(b_G), bias]
        state = (start, start)
        outputs = torch._VF.lstm(x_NI, batch_sizes, state, weights, True, 1, 0.0, torch.is_grad_enabled(), False)
        return _unpack(outputs[0], steps)


@contextmanager
def _quiet(x: Tensor) -> Iterator[None]:
    """Compute without autocast, and without cuDNN's advice to store the weights in one block: they are reordered."""
    with warnings.catch_warnings(), torch.autocast(x.device.type, enabled=False):
        warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous chunk")
        yield


def _pack(x_NI: Tensor, w_GH: Tensor, steps: Steps) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the inputs by time step, the number of rows of each step, the first state, and a second bias of zero."""
    inputs = x_NI.float().index_select(0, steps.positions)
    start = inputs.new_zeros(1, steps.counts[0], w_GH.shape[1])
    # The sizes are read on the host, on every device.
    return inputs, torch.tensor(steps.counts), start, torch.zeros_like(w_GH[:, 0])


def _unpack(h_NH: Tensor, steps: Steps) -> Tensor:
    return torch.empty_like(h_NH).index_copy(0, steps.positions, h_NH)

"""Graphs of histories: which pairs of events of a row are similar, as dense matrices.

    M_ij = mean_h cos(w_h * x_i, w_h * x_j)                                         (learned metric)
    S_ij = (M_ij - min_j M_ij) / (1 - min_j M_ij)                                   (``scale``; 1 in a constant row)
    A_ij = 1 if S_ij > v_{K + 1}, or i = j, else 0      K = ceil(share n^2)         (edges)

v_k is the k-th largest similarity among the n^2 pairs of a history of n events. Only pairs of its own events count, so
that a graph does not depend on the rows beside it. Similarities that equal v_{K + 1} up to rounding are no edges: at
most K + n are. The step has no gradient, so A has that of S (straight through), which reaches w alone.

Rows of similar length form rectangles (``nn/rectangles.py``). All candidates of a shared history read one graph.

Shapes: U stored positions (see nn/segments.py), N positions that rows read, R rows of a rectangle, T events of its
longest row, B rows, H heads, K width of an event, D any width.
"""

from __future__ import annotations

from fractions import Fraction

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from longrec.nn import kernels
from longrec.nn.rectangles import Rectangles
from longrec.nn.segments import Segments

_EQUAL = 1e-5
"""Similarities that differ by less are equal: rounding must not decide on an edge."""


class InterestGraph:
    """The graphs of the histories of a batch.

    Args:
        x_UK: events.
        w_HK: factors of the metric.
        segments: single rows, or one shared history. Not grouped.
        share: share of all pairs that are edges, in (0, 1].
        scale: stretch the similarities of each event to 0 ... 1.

    Attributes:
        edges: A of each rectangle, float32 ``[R, T, T]``. A row of padding has an edge to itself alone.
        real: bool ``[R, T]`` of each rectangle: slots without padding.
    """

    def __init__(
        self, x_UK: Float[Tensor, "U K"], w_HK: Float[Tensor, "H K"], segments: Segments, share: float, scale: bool
    ) -> None:
        self.segments = segments
        self._plan = None if segments.shared else Rectangles.of(segments)
        self.edges: list[Tensor] = []
        self.real = self._find_real(x_UK.device)
        with kernels.disable_autocast():
            for x_RTK, real_RT in zip(self.fill(x_UK.detach().float(), 1), self.real):
                similarity_RTT = measure_similarity(x_RTK, w_HK.float())
                if scale:
                    similarity_RTT = scale_rows(similarity_RTT, real_RT)
                self.edges.append(choose_edges(similarity_RTT, real_RT, share))
            self._hops = [_square(edges_RTT) for edges_RTT in self.edges]

    def fill(self, v_ND: Float[Tensor, "N D"], rows: int) -> list[Tensor]:
        """Return the values of positions as rectangles, ``[R, T, D]``; of a shared history ``[rows, T, D]``.

        Args:
            rows: how often the positions of a shared history are listed: B, or 1 for values of the history alone.
        """
        if self._plan is None:
            return [v_ND.reshape(rows, self.segments.positions, v_ND.shape[1])]
        return self._plan.fill(v_ND) if self._plan.shapes else []

    def add_neighbors(self, v_ND: Float[Tensor, "N D"], rows: int) -> Float[Tensor, "N D"]:
        """Return ``sum_j A_ij v_j`` at every position, for ``rows`` as in ``fill``."""
        return self._multiply(self.edges, v_ND, rows)

    def average_two_hops(self, v_ND: Float[Tensor, "N D"], rows: int) -> Float[Tensor, "N D"]:
        """Return ``Â Â v`` at every position. ``Â = D^-1/2 A D^-1/2``, where D are the sums of the rows of A."""
        return self._multiply(self._hops, v_ND, rows)

    def _find_real(self, device: torch.device) -> list[Tensor]:
        if self._plan is None:
            return [torch.ones(1, self.segments.positions, dtype=torch.bool, device=device)]
        sizes = [rows * longest for rows, longest in self._plan.shapes]
        real_S = torch.ones(sum(sizes), dtype=torch.bool, device=device)
        if self._plan.to_flat is not None:
            real_S = torch.zeros_like(real_S).index_fill(0, self._plan.to_flat, True)
        chunks = torch.split(real_S, sizes) if sizes else ()
        return [chunk.view(shape) for chunk, shape in zip(chunks, self._plan.shapes)]

    def _multiply(self, matrices: list[Tensor], v_ND: Tensor, rows: int) -> Tensor:
        with kernels.disable_autocast():
            v_ND = v_ND.float()
            if self._plan is not None:
                products = [torch.bmm(a_RTT, v_RTD) for a_RTT, v_RTD in zip(matrices, self.fill(v_ND, rows))]
                return self._plan.restore(products) if products else v_ND
            length, width = self.segments.positions, v_ND.shape[1]
            # One product for all candidates.
            v_TX = v_ND.reshape(rows, length, width).transpose(0, 1).reshape(length, rows * width)
            y_TX = torch.matmul(matrices[0][0], v_TX)
            return y_TX.reshape(length, rows, width).transpose(0, 1).reshape(rows * length, width)


def measure_similarity(x_RTK: Float[Tensor, "R T K"], w_HK: Float[Tensor, "H K"]) -> Float[Tensor, "R T T"]:
    """Return M, the mean over the heads of the cosine of weighted events."""
    heads = w_HK.shape[0]
    x_RTHK = F.normalize(x_RTK.unsqueeze(2) * w_HK, dim=3)
    x_RTX = x_RTHK.reshape(x_RTK.shape[0], x_RTK.shape[1], heads * x_RTK.shape[2])
    return torch.bmm(x_RTX, x_RTX.transpose(1, 2)) / heads


def scale_rows(m_RTT: Float[Tensor, "R T T"], real_RT: Bool[Tensor, "R T"]) -> Float[Tensor, "R T T"]:
    """Return S: similarities from the lowest of each row to that of the event with itself, as 0 to 1."""
    other_RTT = m_RTT.masked_fill(~real_RT.unsqueeze(1), torch.inf)
    # With a column, so that the minimum of no event is defined.
    low_RT1 = F.pad(other_RTT, (0, 1), value=1.0).amin(2, keepdim=True)
    span_RT1 = 1 - low_RT1
    constant_RT1 = span_RT1 < _EQUAL
    scaled_RTT = (m_RTT - low_RT1) / torch.where(constant_RT1, torch.ones_like(span_RT1), span_RT1)
    return torch.where(constant_RT1, torch.ones_like(scaled_RTT), scaled_RTT)


def choose_edges(s_RTT: Float[Tensor, "R T T"], real_RT: Bool[Tensor, "R T"], share: float) -> Float[Tensor, "R T T"]:
    """Return A, with the gradient of S for pairs of events."""
    pair_RTT = real_RT.unsqueeze(1) & real_RT.unsqueeze(2)
    index_T = torch.arange(s_RTT.shape[1], device=s_RTT.device)
    own_TT = index_T.unsqueeze(0) == index_T.unsqueeze(1)
    detached_RTT = s_RTT.detach()
    least_R = _find_threshold(detached_RTT.masked_fill(~pair_RTT, -torch.inf), real_RT.long().sum(1), share)
    edge_RTT = ((detached_RTT > least_R.view(-1, 1, 1) + _EQUAL) & pair_RTT) | own_TT
    a_RTT = edge_RTT.to(s_RTT.dtype)
    return a_RTT + (s_RTT - detached_RTT) * pair_RTT if s_RTT.requires_grad else a_RTT


def count_edges(events: int, share: float) -> int:
    """Return K, the number of edges among the pairs of a history of some events, without those from events to itself.

    >>> count_edges(3, 0.5)
    5
    """
    exact = Fraction(str(share))
    return -(-events * events * exact.numerator // exact.denominator)


def _find_threshold(s_RTT: Tensor, events_R: Int[Tensor, " R"], share: float) -> Float[Tensor, " R"]:
    """Return v_{K + 1} of each row, -inf if all pairs are edges. S of other pairs is -inf."""
    exact = Fraction(str(share))
    count_R = (events_R * events_R * exact.numerator + (exact.denominator - 1)) // exact.denominator
    s_RX = s_RTT.flatten(1)
    if kernels.is_traced():
        ordered_RX = F.pad(s_RX, (0, 1), value=-torch.inf).sort(1, descending=True)[0]
        return ordered_RX.gather(1, count_R.unsqueeze(1)).squeeze(1)
    # A shorter row has less edges. Infinite entries in front of its similarities make the rank the same for all rows.
    most = count_edges(s_RTT.shape[1], share)
    above_RY = torch.arange(most + 1, device=s_RX.device) < (most - count_R).unsqueeze(1)
    fill_RY = torch.where(above_RY, torch.inf, -torch.inf)
    s_RX = torch.cat([s_RX, fill_RY], 1)
    return s_RX.kthvalue(s_RX.shape[1] - most, 1)[0]


def _square(a_RTT: Float[Tensor, "R T T"]) -> Float[Tensor, "R T T"]:
    """Return ``Â Â``."""
    root_RT = a_RTT.sum(2).rsqrt()
    step_RTT = a_RTT * root_RT.unsqueeze(1) * root_RT.unsqueeze(2)
    return torch.bmm(step_RTT, step_RTT)

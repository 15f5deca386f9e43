"""Residual vector quantization: a vector becomes the sum of a few codewords, one per level.

    r^1 = x;   q^m = argmin_v |r^m - c^m_v|;   r^(m+1) = r^m - c^m_(q^m);   e = sum_m c^m_(q^m)

Each slot and level has its own codebook. Codebooks follow the vectors assigned to them by moving averages (van den
Oord et al. 2017, appendix A.1) and get no gradient, or they are parameters and learn from a loss of their own,
``|sg(r) - c|^2``. The gradient of e passes to x unchanged (straight-through), and the commitment term pulls x toward
its code. A code without assigned vectors is dead and is restarted at a residual of the batch.

Shapes: B rows, S slots, M levels, V codes of a codebook, D width of a slot.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from longrec.nn import kernels

_MOST_CODES = 65_536
_DEAD_SHARE = 0.1
"""A code chosen less often than this share of the mean usage is restarted."""


class ResidualQuantizer(nn.Module):
    """Codebooks of S slots and M levels, with the statistics they learn from.

    Args:
        size: V, at most 65,536.
        width: D.
        decay: of the moving averages, per batch.
        commitment: weight of ``|x - sg(c)|^2``, a mean over rows and numbers, summed over levels.
        entropy: weight of the regularizer ``1 - H(mean_b p(v | r_b)) / log V``, where p is a softmax of the distances.
        learn: how codebooks learn: by moving averages, or by the gradient of their loss as parameters.
        revive: restart dead codes.
    """

    codebooks: Tensor
    usage: Tensor
    sums: Tensor
    begun: Tensor
    _has_begun: bool = False
    """What the buffer ``begun`` holds. On a GPU every read of the buffer would wait for the device."""

    def __init__(
        self,
        slots: int,
        levels: int,
        size: int,
        width: int,
        *,
        decay: float = 0.99,
        commitment: float = 0.25,
        entropy: float = 0.0,
        learn: Literal["average", "gradient"] = "average",
        revive: bool = True,
    ) -> None:
        super().__init__()
        if not 2 <= size <= _MOST_CODES:
            raise ValueError(f"a codebook has 2 to {_MOST_CODES:,} codes, got {size:,}")
        self.decay, self.commitment, self.entropy = decay, commitment, entropy
        self.averages, self.revive = learn == "average", revive
        codebooks = torch.randn(slots, levels, size, width) * 0.1
        if self.averages:
            self.register_buffer("codebooks", codebooks)
        else:
            self.codebooks = nn.Parameter(codebooks)
        self.register_buffer("usage", torch.zeros(slots, levels, size))
        self.register_buffer("sums", torch.zeros_like(codebooks))
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool))

    def forward(self, x_BSD: Float[Tensor, "B S D"]) -> tuple[Float[Tensor, "B S D"], Float[Tensor, ""]]:
        """Return the quantized vectors and their loss. In training, also update the codebooks.

        Runs in float32 throughout, because narrow distances would choose other codes.
        """
        with torch.autocast(x_BSD.device.type, enabled=False):
            x_BSD = x_BSD.float()
            if self.training and len(x_BSD):
                with torch.no_grad():
                    self._update_codebooks(x_BSD)
            rest_BSD, e_BSD, loss = x_BSD, torch.zeros_like(x_BSD), x_BSD.new_zeros(())
            for level in range(self.codebooks.shape[1]):
                book_SVD = self.codebooks[:, level]
                with torch.no_grad():
                    code_BS = _find_nearest(rest_BSD, book_SVD)
                learned_BSD = _gather_codewords(book_SVD, code_BS)
                c_BSD = learned_BSD.detach()
                if self.training and len(x_BSD):
                    loss = loss + self.commitment * (rest_BSD - c_BSD).square().mean()
                    if not self.averages:
                        loss = loss + (rest_BSD.detach() - learned_BSD).square().mean()
                    if self.entropy:
                        loss = loss + self.entropy * _compute_unevenness(rest_BSD, book_SVD)
                e_BSD, rest_BSD = e_BSD + c_BSD, rest_BSD - c_BSD
            return x_BSD + (e_BSD - x_BSD).detach(), loss

    @torch.no_grad()
    def start(self, codebooks_SMVD: Float[Tensor, "S M V D"], rows: int) -> None:
        """Begin with these codebooks, all codes in equal use, and not with vectors of the first batch.

        Args:
            rows: number of rows of a batch.
        """
        self.codebooks.copy_(codebooks_SMVD)
        self.usage.fill_(rows / self.codebooks.shape[2])
        self.sums.copy_(codebooks_SMVD * self.usage.unsqueeze(3))
        self.begun.fill_(True)
        self._has_begun = True

    def codes(self, x_BSD: Float[Tensor, "B S D"]) -> Integer[Tensor, "B S M"]:
        """Return the codes of vectors: uint8, or int32 of codebooks with more than 256 codes."""
        with torch.autocast(x_BSD.device.type, enabled=False):
            rest_BSD, codes = x_BSD.detach().float(), []
            for book_SVD in self.codebooks.unbind(1):
                codes.append(_find_nearest(rest_BSD, book_SVD))
                rest_BSD = rest_BSD - _gather_codewords(book_SVD, codes[-1])
            return torch.stack(codes, 2).to(torch.uint8 if self.codebooks.shape[2] <= 256 else torch.int32)

    def decode(self, codes_BSM: Integer[Tensor, "B S M"]) -> Float[Tensor, "B S D"]:
        """Return the vectors of codes."""
        codewords = [
            _gather_codewords(book, code) for book, code in zip(self.codebooks.unbind(1), codes_BSM.long().unbind(2))
        ]
        return torch.stack(codewords).sum(0)

    def perplexity(self) -> Float[Tensor, "S M"]:
        """Return the effective number of codes of each codebook: the exponential of the entropy of its moving usage."""
        p = self.usage / self.usage.sum(2, keepdim=True).clamp(min=1e-12)
        return torch.exp(-torch.special.xlogy(p, p).sum(2))

    def _update_codebooks(self, x_BSD: Tensor) -> None:
        """Move every codebook toward the vectors assigned to it, and restart dead codes."""
        rest_BSD, size, rows = x_BSD, self.codebooks.shape[2], len(x_BSD)
        fresh, even = not self._has_begun, rows / size
        for level in range(self.codebooks.shape[1]):
            book_SVD, usage_SV, sums_SVD = self.codebooks[:, level], self.usage[:, level], self.sums[:, level]
            if fresh:
                self._restart(torch.ones_like(usage_SV, dtype=torch.bool), rest_BSD, book_SVD, usage_SV, sums_SVD, even)
            code_BS = _find_nearest(rest_BSD, book_SVD)
            chosen = code_BS.t() + size * torch.arange(len(book_SVD), device=code_BS.device).unsqueeze(1)
            count = torch.zeros_like(usage_SV, dtype=torch.int64).flatten()
            count = count.index_add_(0, chosen.flatten(), torch.ones_like(chosen).flatten()).view_as(usage_SV)
            usage_SV.lerp_(count.to(usage_SV.dtype), 1 - self.decay)
            if self.averages:
                total = torch.zeros_like(book_SVD).flatten(0, 1)
                total.index_add_(0, chosen.flatten(), rest_BSD.transpose(0, 1).flatten(0, 1))
                sums_SVD.lerp_(total.view_as(sums_SVD), 1 - self.decay)
                book_SVD.copy_(torch.where(usage_SV.unsqueeze(2) > 0, sums_SVD / usage_SV.unsqueeze(2), book_SVD))
            if self.revive:
                dead_SV = usage_SV < _DEAD_SHARE * usage_SV.mean(1, keepdim=True)
                self._restart(dead_SV, rest_BSD, book_SVD, usage_SV, sums_SVD, even)
            rest_BSD = rest_BSD - _gather_codewords(book_SVD, _find_nearest(rest_BSD, book_SVD))
        self.begun.fill_(True)
        self._has_begun = True

    def _restart(
        self, dead_SV: Tensor, rest_BSD: Tensor, book_SVD: Tensor, usage_SV: Tensor, sums_SVD: Tensor, even: float
    ) -> None:
        if kernels.choose(rest_BSD) == "cuda":
            self._restart_masked(dead_SV, rest_BSD, book_SVD, usage_SV, sums_SVD, even)
            return
        slot, code = dead_SV.nonzero(as_tuple=True)
        if not len(slot):
            return
        row = torch.randint(len(rest_BSD), slot.shape, device=slot.device)
        fresh_RD = rest_BSD[row, slot]
        # A little noise separates equal codewords, of which only the first would be assigned any rows.
        fresh_RD = fresh_RD + torch.randn_like(fresh_RD) * 0.01 * rest_BSD.std(0, unbiased=False).index_select(0, slot)
        book_SVD[slot, code] = fresh_RD
        usage_SV[slot, code] = even
        sums_SVD[slot, code] = fresh_RD * even

    def _restart_masked(
        self, dead_SV: Tensor, rest_BSD: Tensor, book_SVD: Tensor, usage_SV: Tensor, sums_SVD: Tensor, even: float
    ) -> None:
        """Draw for all codes and keep what the dead ones drew: their number is known only after the device is done."""
        slot_S1 = torch.arange(len(dead_SV), device=dead_SV.device).unsqueeze(1)
        fresh_SVD = rest_BSD[torch.randint(len(rest_BSD), dead_SV.shape, device=dead_SV.device), slot_S1]
        fresh_SVD = fresh_SVD + torch.randn_like(fresh_SVD) * 0.01 * rest_BSD.std(0, unbiased=False).unsqueeze(1)
        dead_SV1 = dead_SV.unsqueeze(2)
        book_SVD.copy_(torch.where(dead_SV1, fresh_SVD, book_SVD))
        usage_SV.masked_fill_(dead_SV, even)
        sums_SVD.copy_(torch.where(dead_SV1, fresh_SVD * even, sums_SVD))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        begun = state_dict.get(f"{prefix}begun")
        self._has_begun = self._has_begun if begun is None else bool(begun)


def _find_nearest(x_BSD: Tensor, book_SVD: Tensor) -> Tensor:
    """Return int64 ``[B, S]``: the nearest code of each slot."""
    return _compute_distances(x_BSD, book_SVD).argmin(2).t()


def _compute_distances(x_BSD: Tensor, book_SVD: Tensor) -> Tensor:
    """Return ``[S, B, V]``: squared distances, without the term ``|x|^2`` that all codes share."""
    return book_SVD.square().sum(2).unsqueeze(1) - 2 * torch.bmm(x_BSD.transpose(0, 1), book_SVD.transpose(1, 2))


def _gather_codewords(book_SVD: Tensor, code_BS: Tensor) -> Tensor:
    """Return ``[B, S, D]``: the codewords of codes."""
    slots, size, _ = book_SVD.shape
    flat = code_BS + size * torch.arange(slots, device=code_BS.device)
    return book_SVD.flatten(0, 1)[flat]


def _compute_unevenness(x_BSD: Tensor, book_SVD: Tensor) -> Tensor:
    """Return ``1 - H / log V`` of the mean over rows of a softmax of the negative distances, mean over slots."""
    distance = _compute_distances(x_BSD, book_SVD)
    spread = (distance - distance.amin(2, keepdim=True)).detach().mean((1, 2), keepdim=True).clamp(min=1e-12)
    p_SV = torch.softmax(-4 * distance / spread, 2).mean(1)
    return 1 + torch.special.xlogy(p_SV, p_SV).sum(1).mean() / torch.log(torch.tensor(float(book_SVD.shape[1])))

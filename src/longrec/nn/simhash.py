"""SimHash: bits of vectors, of which two vectors share more the smaller the angle between them.

    h(x) = [x r_1 > 0, ..., x r_M > 0]        with fixed random directions r

For vectors at an angle a, each bit is equal with probability 1 - a / pi (Goemans and Williamson 1995). A bit does not
depend on the length of a vector. That of a zero vector is 0.

Shapes: N vectors, D width, M bits, W words of 64 bits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from longrec.nn import kernels

_WORD = 64
_BLOCK = 16
"""Bits that are encoded at once, in 32-bit integers."""


class SimHash(nn.Module):
    """Signs of random projections.

    The directions are drawn once, from torch's random generator. They are a buffer, which is saved with the model and
    gets no gradient. Neither do the vectors.

    Args:
        width: D.
        bits: M.
    """

    directions: Tensor

    def __init__(self, width: int, bits: int) -> None:
        super().__init__()
        self.register_buffer("directions", torch.randn(width, bits))

    def forward(self, x_ND: Float[Tensor, "N D"]) -> Bool[Tensor, "N M"]:
        """Return the bits of each vector. They are computed in float32 in any precision mode."""
        with kernels.disable_autocast():
            return x_ND.detach().float() @ self.directions > 0

    def of_columns(self, x_ND: Float[Tensor, "N D"]) -> Bool[Tensor, "M N"]:
        """Return the bits with those of one direction next to each other."""
        with kernels.disable_autocast():
            return self.directions.t() @ x_ND.detach().float().t() > 0


def pack_bits(bits_NM: Bool[Tensor, "N M"]) -> Int[Tensor, "N W"]:
    """Return the bits as words, int64. Unused bits of the last word are 0."""
    count = -(-bits_NM.shape[1] // _WORD)  # W
    blocks = count * (_WORD // _BLOCK)
    block_NJ = compute_codes(F.pad(bits_NM, (0, blocks * _BLOCK - bits_NM.shape[1])), blocks).long()
    shift_4 = torch.arange(0, _WORD, _BLOCK, device=bits_NM.device)
    return (block_NJ.view(-1, count, _WORD // _BLOCK) << shift_4).sum(2)


def count_different_bits(a_NW: Int[Tensor, "N W"], b_NW: Int[Tensor, "N W"]) -> Int[Tensor, " N"]:
    """Return the Hamming distance of packed bits.

    There is no operator that counts bits. They are added in pairs, in fours and in bytes (Warren, Hacker's Delight).
    """
    x_NW = a_NW ^ b_NW
    x_NW -= (x_NW >> 1) & 0x5555555555555555
    x_NW = (x_NW & 0x3333333333333333) + ((x_NW >> 2) & 0x3333333333333333)
    x_NW = (x_NW + (x_NW >> 4)) & 0x0F0F0F0F0F0F0F0F
    return ((x_NW * 0x0101010101010101) >> 56).sum(1)


def to_signs(bits_NM: Bool[Tensor, "N M"]) -> Float[Tensor, "N M"]:
    """Return 1 and -1 for set and unset bits. The inner product of two vectors of signs is M - 2 Hamming distances."""
    return bits_NM.float() * 2 - 1


def compute_codes(bits_NM: Bool[Tensor, "N M"], groups: int) -> Int[Tensor, "N G"]:
    """Return the number that each of G groups of M / G adjacent bits encodes, int32, its first bit the lowest.

    A group has at most 31 bits. Integers are exact where floats would not be.
    """
    number_NG = bits_NM.new_zeros(bits_NM.shape[0], groups, dtype=torch.int32)
    for bit_NG in reversed(bits_NM.view(bits_NM.shape[0], groups, bits_NM.shape[1] // groups).unbind(2)):
        number_NG = number_NG * 2 + bit_NG
    return number_NG


def find_members(bits_MN: Bool[Tensor, "M N"], groups: int) -> Bool[Tensor, "X N"]:
    """Return for each number of each group which vectors have it, X = C G: those of ``compute_codes``, from 0.

    Numbers are not compared: each bit divides the members of every number so far in two.

    Args:
        bits_MN: bits with those of one direction next to each other.
    """
    member_CGN = bits_MN.new_ones(1, groups, bits_MN.shape[1])
    for at, bit_GN in enumerate(bits_MN.view(groups, bits_MN.shape[0] // groups, bits_MN.shape[1]).unbind(1)):
        side_2GN = torch.stack([~bit_GN, bit_GN])
        member_CGN = (side_2GN.unsqueeze(1) & member_CGN).flatten(0, 1) if at else side_2GN
    return member_CGN.flatten(0, 1)

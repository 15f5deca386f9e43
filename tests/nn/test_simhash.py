"""SimHash: what its bits do not depend on, the packed distance against the bits, and how often bits agree."""

from __future__ import annotations

import math

import pytest
import torch

from longrec.nn.simhash import (
    SimHash,
    compute_codes,
    count_different_bits,
    find_members,
    pack_bits,
    to_signs,
)


def test_a_bit_is_the_sign_of_a_projection() -> None:
    hashed = SimHash(2, 3)
    hashed.directions.copy_(torch.tensor([[1.0, 0.0, -1.0], [0.0, 1.0, 0.5]]))
    vectors = torch.tensor([[1.0, 2.0], [3.0, -1.0], [-2.0, 1.0], [0.0, 0.0]])
    # projections: 1 2 0, 3 -1 -3.5, -2 1 2.5, 0 0 0
    assert hashed(vectors).int().tolist() == [[1, 1, 0], [1, 0, 0], [0, 1, 1], [0, 0, 0]]


@pytest.mark.parametrize("bits", [1, 5, 32, 64, 65, 200])
def test_identical_vectors_have_distance_0_and_opposite_ones_all_bits(bits: int) -> None:
    hashed, vectors = SimHash(7, bits), torch.randn(50, 7)
    packed = pack_bits(hashed(vectors))
    assert count_different_bits(packed, packed).tolist() == [0] * 50
    assert count_different_bits(packed, pack_bits(hashed(-vectors))).tolist() == [bits] * 50


def test_the_length_of_a_vector_does_not_matter() -> None:
    hashed, vectors = SimHash(7, 64), torch.randn(50, 7)
    for scale in (1e-3, 0.5, 1024.0):
        assert torch.equal(hashed(vectors * scale), hashed(vectors))


@pytest.mark.parametrize("bits", [1, 15, 16, 17, 63, 64, 65, 130])
def test_the_packed_distance_is_that_of_the_bits_and_of_the_signs(bits: int) -> None:
    one, other = torch.rand(200, bits) < 0.5, torch.rand(200, bits) < 0.5
    one[0], other[0] = True, False
    one[1], other[1] = True, True
    before = pack_bits(one)
    packed = before.clone()
    actual = count_different_bits(packed, pack_bits(other))
    assert actual.tolist() == (one != other).sum(1).tolist()
    assert torch.equal(packed, before)  # the arguments are not written to
    by_signs = (bits - (to_signs(one) * to_signs(other)).sum(1)) / 2
    assert actual.tolist() == by_signs.tolist()


def test_codes_count_in_binary() -> None:
    bits = torch.tensor([[0, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 1]], dtype=torch.bool)
    assert compute_codes(bits, 2).tolist() == [[6, 1], [3, 4]]
    assert compute_codes(bits, 6).tolist() == bits.int().tolist()
    assert compute_codes(torch.ones(1, 62, dtype=torch.bool), 2).tolist() == [[2**31 - 1] * 2]
    assert compute_codes(bits[:, :0], 3).tolist() == [[0, 0, 0]] * 2


@pytest.mark.parametrize(("groups", "bits"), [(3, 4), (5, 1), (2, 0)])
def test_the_members_of_each_number(groups: int, bits: int) -> None:
    hashed, vectors = SimHash(6, groups * bits), torch.randn(20, 6)
    assert torch.equal(hashed.of_columns(vectors), hashed(vectors).t())
    member = find_members(hashed.of_columns(vectors), groups).view(2**bits, groups, 20)
    expected = [compute_codes(hashed(vectors), groups).t() == number for number in range(2**bits)]
    assert torch.equal(member, torch.stack(expected))


def test_bits_agree_as_often_as_the_angle_says() -> None:
    """Of 40,000 independent bits, the share that agrees is within 4 standard deviations."""
    torch.manual_seed(5)
    bits = 40_000
    for degrees in (0, 30, 90, 150):
        angle = math.radians(degrees)
        pair = torch.tensor([[1.0, 0.0, 0.0], [math.cos(angle), math.sin(angle), 0.0]])
        one, other = SimHash(3, bits)(pair)
        expected = 1 - degrees / 180
        deviation = math.sqrt(expected * (1 - expected) / bits)
        assert abs((one == other).float().mean().item() - expected) <= 4 * deviation


def test_the_directions_are_saved_and_learn_nothing() -> None:
    torch.manual_seed(1)
    one = SimHash(4, 9)
    other = SimHash(4, 9)
    assert not list(one.parameters())
    assert not torch.equal(one.directions, other.directions)
    other.load_state_dict(one.state_dict())
    vectors = torch.randn(30, 4, requires_grad=True)
    assert torch.equal(one(vectors), other(vectors))
    assert not one(vectors).requires_grad


def test_autocast_changes_no_bit() -> None:
    hashed, vectors = SimHash(16, 64), torch.randn(500, 16)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = hashed(vectors)
        codes = compute_codes(narrow, 4)
    assert torch.equal(narrow, hashed(vectors))
    assert torch.equal(codes, compute_codes(narrow, 4))

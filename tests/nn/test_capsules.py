"""Dynamic routing: its formula in loops, prefixes as histories of their own, numbers of capsules, and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from longrec.nn.capsules import route, route_prefixes, squash
from longrec.nn.segments import Segments
from longrec.testing.batches import offsets

LENGTHS = [5, 0, 9, 1, 4]


def draw(votes: int, capsules: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    count = sum(LENGTHS)
    return torch.randn(count, votes, 6, generator=generator), torch.randn(count, capsules, generator=generator)


def segments_of(lengths: list[int]) -> Segments:
    return Segments(offsets(lengths), len(lengths), sum(lengths))


def by_hand(votes: Tensor, logit: Tensor, iterations: int, active: int) -> Tensor:
    """The capsules of one history, event by event and capsule by capsule."""
    b = logit[:, :active].clone().tolist()
    for _ in range(iterations):
        capsules = []
        for j in range(active):
            z = torch.zeros(votes.shape[2])
            for i, row in enumerate(b):
                z += math.exp(row[j]) / sum(math.exp(x) for x in row) * votes[i, j % votes.shape[1]]
            norm = float(z.norm())
            capsules.append(z / norm * norm**2 / (1 + norm**2) if norm else z)
        for i, row in enumerate(b):
            for j in range(active):
                row[j] += float(capsules[j] @ votes[i, j % votes.shape[1]])
    return torch.stack([*capsules, *[capsules[0]] * (logit.shape[1] - active)])


@pytest.mark.parametrize(("votes", "adaptive"), [(1, True), (3, False)])
def test_the_equations_of_every_history_and_prefix(votes: int, adaptive: bool) -> None:
    v, b = draw(votes)
    whole = route(v, b, segments_of(LENGTHS), 3, adaptive)
    prefixes = route_prefixes(v, b, segments_of(LENGTHS), 3, adaptive)
    assert not whole[1].any()
    first = 0
    for row, length in enumerate(LENGTHS):
        for n in range(1, length + 1):
            active = max(1, min(3, int(math.log2(n)))) if adaptive else 3
            expected = by_hand(v[first : first + n], b[first : first + n], 3, active)
            torch.testing.assert_close(prefixes[first + n - 1], expected, rtol=1e-4, atol=1e-5)
        if length:
            torch.testing.assert_close(whole[row], prefixes[first + length - 1], rtol=1e-4, atol=1e-5)
        first += length


def test_a_shared_history_has_the_capsules_of_a_row() -> None:
    v, b = draw(1)
    alone = route(v[:9], b[:9], segments_of([9]), 3, adaptive=True)
    one = Segments(offsets([9]), 1, 9, shared=True)
    torch.testing.assert_close(route(v[:9], b[:9], one, 3, adaptive=True), alone)
    torch.testing.assert_close(route_prefixes(v[:9], b[:9], one, 3, adaptive=True)[8], alone[0])
    none = Segments(offsets([0]), 1, 0, shared=True)
    assert not route(v[:0], b[:0], none, 3, adaptive=True).any()
    assert route_prefixes(v[:0], b[:0], none, 3).shape == (0, 3, 6)


@pytest.mark.parametrize("prefixes", [False, True])
def test_the_gradient_is_that_of_the_last_iteration_with_constant_weights(prefixes: bool) -> None:
    """Three iterations have the gradient of one that starts with the weights which they arrive at."""
    v, b = draw(1)
    v, b = v[:5].requires_grad_(), b[:5]
    segments, run = segments_of([5]), route_prefixes if prefixes else route
    direction = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    (grad,) = torch.autograd.grad((run(v, b, segments, 3)[-1] * direction).sum(), v)
    still, logit = v.detach(), b
    for _ in range(2):
        logit = logit + torch.einsum("jd,ijd->ij", route(still, logit, segments, 1)[0], still)
    (expected,) = torch.autograd.grad((route(v, logit, segments, 1)[0] * direction).sum(), v)
    torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-6)


def test_squash_keeps_the_direction_and_has_a_gradient_at_zero() -> None:
    z = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    u = squash(z)
    torch.testing.assert_close(u[0], torch.tensor([0.6, 0.8]) * 25 / 26)
    assert not u[1].any()
    u.sum().backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None
    assert z.grad.isfinite().all()

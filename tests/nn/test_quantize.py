from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longrec.nn.quantize import ResidualQuantizer


def trained(
    points_NSD: Tensor, levels: int = 2, size: int = 16, steps: int = 60, **settings: float
) -> ResidualQuantizer:
    """Codebooks after some batches of these points, in evaluation."""
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(points_NSD.shape[1], levels, size, points_NSD.shape[2], decay=0.8, **settings)
    for _ in range(steps):
        quantizer(points_NSD[torch.randint(len(points_NSD), (256,))])
    return quantizer.eval()


def cloud(rows: int = 2_000, slots: int = 2, width: int = 4, seed: int = 1) -> Tensor:
    return torch.randn(rows, slots, width, generator=torch.Generator().manual_seed(seed))


def begin(quantizer: ResidualQuantizer) -> None:
    """Let a quantizer have seen its first batch."""
    quantizer.load_state_dict({**quantizer.state_dict(), "begun": torch.tensor(True)})


def test_levels_by_hand() -> None:
    """One slot of width 1: 5.2 is nearest to 4, what is left to 1; 0.2 stays."""
    quantizer = ResidualQuantizer(1, 2, 2, 1).eval()
    quantizer.codebooks.copy_(torch.tensor([[[[0.0], [4.0]], [[1.0], [-1.0]]]]))
    x_BSD = torch.tensor([[[5.2]], [[-0.8]]])
    e_BSD, loss = quantizer(x_BSD)
    assert e_BSD.flatten().tolist() == pytest.approx([5.0, -1.0])
    assert quantizer.codes(x_BSD).tolist() == [[[1, 0]], [[0, 1]]]
    assert loss == 0
    quantizer.train()
    begin(quantizer)
    quantizer.usage.fill_(1e9)  # so many earlier rows that this batch changes nothing
    quantizer.sums.copy_(quantizer.codebooks * 1e9)
    _, loss = quantizer(x_BSD)
    # level 1: 1.2^2 and 0.8^2, level 2: 0.2^2 and 0.2^2; means over two rows
    assert float(loss) == pytest.approx(0.25 * ((1.44 + 0.64) / 2 + (0.04 + 0.04) / 2), rel=1e-4)


def test_codes_decode_to_the_quantized_vectors() -> None:
    quantizer, x_BSD = trained(cloud(), levels=3), cloud(seed=2)[:300]
    e_BSD, _ = quantizer(x_BSD)
    codes = quantizer.codes(x_BSD)
    assert codes.dtype == torch.uint8
    assert codes.shape == (300, 2, 3)
    torch.testing.assert_close(quantizer.decode(codes), e_BSD)
    by_hand = sum(quantizer.codebooks[1, level][codes[:, 1, level].long()] for level in range(3))
    torch.testing.assert_close(by_hand, e_BSD[:, 1])


def test_every_level_brings_the_sum_nearer() -> None:
    points = cloud()
    errors = [(trained(points, levels)(points)[0] - points).square().mean().item() for levels in (1, 2, 3)]
    assert errors[1] < 0.8 * errors[0]
    assert errors[2] < 0.8 * errors[1]
    assert errors[0] < 0.6 * points.square().mean()


def test_codes_are_deterministic_in_evaluation() -> None:
    """SIF S4: the same vector gets the same codes whatever else is in the batch, and evaluation changes no codebook."""
    quantizer, x_BSD = trained(cloud()), cloud(seed=3)[:200]
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    codes = quantizer.codes(x_BSD)
    quantizer(x_BSD)
    assert torch.equal(codes, quantizer.codes(x_BSD))
    assert torch.equal(codes[[7]], quantizer.codes(x_BSD[[7]]))
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


def test_the_straight_through_gradient_reaches_the_layer_below() -> None:
    quantizer = trained(cloud()).train()
    layer = torch.nn.Linear(5, 8)
    e_BSD, _ = quantizer(layer(torch.randn(64, 5)).view(64, 2, 4))
    wanted = torch.randn(64, 2, 4)
    (e_BSD * wanted).sum().backward()
    assert layer.weight.grad is not None
    x_BSD = torch.randn(64, 2, 4, requires_grad=True)
    e_BSD, loss = quantizer(x_BSD)
    (e_BSD * wanted).sum().backward(retain_graph=True)
    assert torch.equal(x_BSD.grad, wanted)  # as without quantization
    x_BSD.grad = None
    loss.backward()
    assert x_BSD.grad.abs().sum() > 0
    assert (-(x_BSD.grad) * (e_BSD - x_BSD)).sum() > 0, "the commitment draws a vector to its code"
    assert not any(parameter.requires_grad for parameter in quantizer.parameters())


def test_dead_codes_start_again_so_that_most_are_used() -> None:
    """SIF S4: codebooks that begin far from every vector still come to use more than half of their codes."""
    points = cloud()
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(2, 2, 64, 4, decay=0.8)
    begin(quantizer)  # no codebook from the first batch
    quantizer.codebooks.fill_(50.0)
    quantizer.codebooks[:, :, 0] = 0.0  # every vector is assigned to one code
    quantizer.usage.fill_(1.0)
    quantizer.sums.copy_(quantizer.codebooks)
    for _ in range(60):
        quantizer(points[torch.randint(len(points), (512,))])
    assert (quantizer.perplexity() > 32).all(), quantizer.perplexity()
    used = [len(codes.unique()) for codes in quantizer.eval().codes(points).flatten(1).unbind(1)]
    assert min(used) > 32, used


def test_the_entropy_term_spreads_vectors_over_the_codes() -> None:
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(1, 1, 8, 2, entropy=1.0, commitment=0.0, decay=0.999999)
    begin(quantizer)
    quantizer.codebooks.copy_(torch.randn(1, 1, 8, 2))
    quantizer.usage.fill_(1e6)
    quantizer.sums.copy_(quantizer.codebooks * 1e6)
    x_BSD = (torch.randn(64, 1, 2) * 0.05).requires_grad_()
    optimizer = torch.optim.Adam([x_BSD], lr=0.05)
    losses = []
    for _ in range(60):
        _, loss = quantizer(x_BSD)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert 0 <= losses[-1] < 0.5 * losses[0] <= 0.5
    assert len(quantizer.eval().codes(x_BSD).unique()) >= 6


def test_an_empty_batch_and_a_batch_of_one() -> None:
    quantizer = ResidualQuantizer(2, 2, 16, 4)
    for rows in (0, 1):
        e_BSD, loss = quantizer(torch.randn(rows, 2, 4))
        assert e_BSD.shape == (rows, 2, 4)
        assert loss.isfinite()
    assert quantizer.codebooks.isfinite().all()


def test_narrow_floats_choose_the_codes_of_wide_ones() -> None:
    quantizer, x_BSD = trained(cloud()), cloud(seed=4)[:500]
    expected = quantizer.codes(x_BSD)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.codes(x_BSD), expected)
        assert quantizer(x_BSD)[0].dtype == torch.float32


def test_codes_that_no_byte_can_name_are_wider() -> None:
    x_BSD = torch.randn(500, 1, 2, generator=torch.Generator().manual_seed(0))
    for size, kind in ((256, torch.uint8), (300, torch.int32)):
        quantizer = ResidualQuantizer(1, 1, size, 2).eval()
        codes = quantizer.codes(x_BSD)
        assert codes.dtype == kind
        nearest = torch.cdist(x_BSD[:, 0], quantizer.codebooks[0, 0]).argmin(1)
        assert torch.equal(codes.flatten().long(), nearest)
    with pytest.raises(ValueError, match="2 to 65,536 codes, got 65,537"):
        ResidualQuantizer(1, 1, 65_537, 2)


def test_codebooks_that_learn_by_gradient() -> None:
    """A codeword is pulled to its vectors by ``|sg(r) - c|^2``, and x to its codeword by the commitment alone."""
    quantizer = ResidualQuantizer(1, 1, 2, 1, commitment=0.25, learn="gradient", revive=False)
    quantizer.start(torch.tensor([[[[0.0], [4.0]]]]), rows=2)
    x_BSD = torch.tensor([[[5.0]], [[1.0]]], requires_grad=True)
    e_BSD, loss = quantizer(x_BSD)
    loss.backward()
    assert loss.item() == pytest.approx(1.25)
    assert quantizer.codebooks.grad.flatten().tolist() == [-1.0, -1.0]
    assert x_BSD.grad.flatten().tolist() == [0.25, 0.25]
    assert quantizer.codebooks.flatten().tolist() == [0.0, 4.0]
    x_BSD.grad = None
    e_BSD.sum().backward()
    assert x_BSD.grad.flatten().tolist() == [1.0, 1.0]

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from longrec.nn import activation_unit, gemm
from longrec.nn.activation import ActivationName
from longrec.nn.attention import FirstLayer, TargetAttention, _FirstLayerFunction
from longrec.nn.segments import Segments

LENGTHS = [0, 3, 1, 5]


def segments(lengths: list[int]) -> Segments:
    return Segments(torch.tensor([0, *lengths]).cumsum(0), len(lengths), sum(lengths))


def concatenated(layer: FirstLayer, q_ND: Tensor, k_ND: Tensor) -> Tensor:
    """The first layer over [q, k, q - k', q * k'], with weights that fold into those of the split one."""
    shared_ND = k_ND[:, : layer.query]
    w_d = torch.randn(layer.bias.shape[0], layer.query)
    w_q = layer.weight_q - w_d
    w_k = layer.weight_k + F.pad(w_d, (0, layer.key - layer.query))
    whole = torch.cat([q_ND, k_ND, q_ND - shared_ND, q_ND * shared_ND], 1)
    return F.linear(whole, torch.cat([w_q, w_k, w_d, layer.weight_m], 1), layer.bias)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("lengths", [LENGTHS, [30] * 20, [0, 5000, 3]])
def test_the_split_layer_equals_the_concatenated_one(lengths: list[int], relu: bool) -> None:
    torch.manual_seed(0)
    layer, own = FirstLayer(3, 5, 7), segments(lengths)
    q_BQ, k_NK = torch.randn(len(lengths), 3), torch.randn(sum(lengths), 5)
    expected = concatenated(layer, q_BQ[own.row], k_NK)
    torch.testing.assert_close(
        layer(q_BQ, k_NK, own, relu=relu), expected.relu() if relu else expected, rtol=1e-4, atol=1e-4
    )


def test_the_fast_form_has_the_gradients_of_the_plain_one() -> None:
    torch.manual_seed(0)
    lengths = [0, 900, 41, 700]
    layer, own = FirstLayer(3, 5, 7), segments(lengths)
    q_BQ = torch.randn(4, 3, requires_grad=True)
    k_NK = torch.randn(sum(lengths), 5, requires_grad=True)
    leaves = [q_BQ, k_NK, *layer.parameters()]
    upstream = torch.randn(sum(lengths), 7)
    gradients = torch.autograd.grad(layer(q_BQ, k_NK, own, relu=True), leaves, upstream)
    q_NQ = q_BQ[own.row]
    plain = F.linear(q_NQ, layer.weight_q, layer.bias) + F.linear(k_NK, layer.weight_k)
    plain = (plain + F.linear(q_NQ * k_NK[:, :3], layer.weight_m)).relu()
    for a, e in zip(gradients, torch.autograd.grad(plain, leaves, upstream), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("relu", [False, True])
def test_gradients_of_the_fast_form(relu: bool) -> None:
    own = segments(LENGTHS)
    sizes = [(4, 3), (4, 2), (9, 3), (3, 5)]  # hq, q, k, weight: H = 3, Q = 2, K = 3
    leaves = [torch.randn(*size, dtype=torch.float64, requires_grad=True) for size in sizes]
    assert torch.autograd.gradcheck(lambda *inputs: _FirstLayerFunction.apply(*inputs, own, relu), leaves)


def test_it_starts_as_a_layer_over_the_concatenation_starts() -> None:
    torch.manual_seed(0)
    layer = FirstLayer(20, 30, 400)
    bound = 90**-0.5
    assert layer.weight_m.abs().max() <= bound
    assert layer.weight_m.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert layer.weight_q.std().item() == pytest.approx(bound * (2 / 3) ** 0.5, rel=0.05)  # two draws folded
    assert layer.weight_k[:, 20:].std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("activation", ["relu", "dice", "prelu", "sigmoid"])
def test_the_unit_equals_a_loop_over_rows_and_positions(activation: ActivationName, softmax: bool) -> None:
    torch.manual_seed(0)
    unit, own = TargetAttention(3, 5, [6, 4], activation, softmax).eval(), segments(LENGTHS)
    q_BQ, k_NK = torch.randn(4, 3), torch.randn(9, 5)
    act = torch.relu if unit.activation is None else unit.activation
    expected = []
    for row, (start, stop) in enumerate(zip(own.offsets.tolist(), own.offsets.tolist()[1:])):
        score = []
        for at in range(start, stop):
            h = concatenated(unit.first, q_BQ[row : row + 1], k_NK[at : at + 1])
            score.append(unit.rest(act(h)).squeeze())
        weights = torch.stack(score) if score else torch.zeros(0)
        weights = weights.softmax(0) if softmax else weights
        expected.append(weights @ k_NK[start:stop])
    torch.testing.assert_close(unit(q_BQ, k_NK, own), torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_a_shared_history_builds_nothing_of_all_rows_and_positions_before_the_candidate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unit, own = TargetAttention(3, 5, [6]), Segments(torch.tensor([0, 7]), 4, 7, shared=True)
    seen: list[tuple[torch.Size, torch.Size]] = []
    right = F.linear

    def watched(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        seen.append((x.shape, w.shape))
        return right(x, w, b)

    monkeypatch.setattr(F, "linear", watched)
    unit(torch.randn(4, 3), torch.randn(7, 5), own)
    # once per row, once per position of the history, and only the product of both at 4 x 7
    assert [size for size, _ in seen[:3]] == [(4, 3), (7, 5), (28, 3)]


def test_raw_scores_double_with_a_doubled_history_and_softmax_does_not_see_it() -> None:
    torch.manual_seed(0)
    q_BQ, k_NK, lengths = torch.randn(4, 3), torch.randn(9, 5), LENGTHS
    twice = torch.cat([copy for chunk in k_NK.split(lengths) for copy in (chunk, chunk)])
    for softmax, factor in ((False, 2), (True, 1)):
        unit = TargetAttention(3, 5, [6, 4], softmax=softmax)
        once = unit(q_BQ, k_NK, segments(lengths))
        torch.testing.assert_close(unit(q_BQ, twice, segments([2 * n for n in lengths])), factor * once)


def test_no_weight_of_the_unit_is_idle_under_softmax() -> None:
    assert TargetAttention(3, 5, [6], softmax=True).rest.last.bias is None
    assert TargetAttention(3, 5, [6]).rest.last.bias is not None


def test_a_normalized_unit_is_its_layers_one_after_the_other() -> None:
    torch.manual_seed(0)
    unit, own = TargetAttention(3, 5, [7, 4], softmax=True, batch_norm=True, dropout=[0.2, 0.1]), segments([3, 0, 6])
    assert [name for name, _ in unit.named_parameters() if "bias" in name] == ["norm.bias", "rest.layers.0.norm.bias"]
    q_BQ, k_NK = torch.randn(3, 3), torch.randn(9, 5)
    for _ in range(20):
        unit.train()(q_BQ, k_NK, own)
    unit.eval()
    q_NQ = q_BQ[own.row]
    h_NH = (
        q_NQ @ unit.first.weight_q.t() + k_NK @ unit.first.weight_k.t() + (q_NQ * k_NK[:, :3]) @ unit.first.weight_m.t()
    )
    norm = unit.norm
    h_NH = (h_NH - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    s_N = unit.rest(h_NH.relu()).squeeze(1)
    expected = torch.stack([s_N[:3].softmax(0) @ k_NK[:3], torch.zeros(5), s_N[3:].softmax(0) @ k_NK[3:]])
    torch.testing.assert_close(unit(q_BQ, k_NK, own), expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(unit.train()(q_BQ, k_NK, own), unit(q_BQ, k_NK, own))


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize(("activation", "widths"), [("relu", [6, 4]), ("relu", [5]), ("sigmoid", [6, 4, 3])])
@pytest.mark.parametrize("library", ["plain", "onednn"])
def test_the_unit_in_chunks_has_the_output_and_the_gradients_of_the_unit_by_layers(
    activation: ActivationName, widths: list[int], softmax: bool, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activation_unit, "_CHUNK", 600)
    monkeypatch.setattr(gemm, "_POINTWISE", gemm._find_pointwise() if library == "onednn" else None)
    torch.manual_seed(0)
    lengths = [0, 700, 41, 0, 900, 3, 0]
    unit, own = TargetAttention(3, 5, widths, activation, softmax), segments(lengths)
    assert len(activation_unit._split(own)) > 2
    q_BQ = torch.randn(len(lengths), 3, requires_grad=True)
    k_NK = torch.randn(sum(lengths), 5, requires_grad=True)
    leaves, upstream = [q_BQ, k_NK, *unit.parameters()], torch.randn(len(lengths), 5)
    pooled = unit(q_BQ, k_NK, own)
    gradients = torch.autograd.grad(pooled, leaves, upstream)
    unit.chunked = None
    expected = unit(q_BQ, k_NK, own)
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-4)
    for a, e in zip(gradients, torch.autograd.grad(expected, leaves, upstream), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-3, atol=1e-3 * max(1, e.abs().max().item()))


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_gradients_of_the_unit_in_chunks(activation: str, softmax: bool) -> None:
    torch.manual_seed(0)
    own = segments(LENGTHS)
    # hq, q, k, both weights of the first layer, then weight and bias of the others: H = 3, Q = 2, K = 4
    sizes = [(4, 3), (4, 2), (9, 4), (3, 4), (3, 2), (2, 3), (2,), (1, 2), (1,)]
    leaves = [torch.randn(*size, dtype=torch.float64, requires_grad=True) for size in sizes]

    def pool(*inputs: Tensor) -> Tensor:
        hq_BH, q_BQ, k_NK, *weights = inputs
        first, layers = (weights[0], weights[1]), list(weights[2:])
        return activation_unit.pool(hq_BH, q_BQ, k_NK, first, layers, own, activation, softmax)

    assert torch.autograd.gradcheck(pool, leaves)

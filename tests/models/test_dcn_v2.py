from __future__ import annotations

from pathlib import Path

import pytest
import torch
from synthetic_runs import aucs_of, run_in, solves
from torch import Tensor, nn

from longrec.data.synthetic import generate_dataset
from longrec.models.dcn_v2 import DCNV2, Cross, CrossMixture
from longrec.nn.cross import CrossNetwork
from longrec.nn.linear import Linear
from longrec.testing.batches import ragged
from longrec.testing.case import Case


def dcn_v2(settings: dict[str, object]) -> DCNV2:
    model = Case("dcn_v2", settings).lively()
    assert isinstance(model, DCNV2)
    return model


def full(w: Tensor, b: Tensor) -> Cross:
    layer = Cross(Linear(w.shape[1], w.shape[0]))
    with torch.no_grad():
        layer.matrix.weight.copy_(w)
        layer.matrix.bias.copy_(b)
    return layer


def mixture(width: int, rank: int, experts: int, gate: str = "softmax", activation: str = "tanh") -> CrossMixture:
    layer = CrossMixture(width, rank, experts, gate, activation)  # type: ignore[arg-type]
    with torch.no_grad():
        layer.bias.normal_()
    return layer


@pytest.mark.parametrize("settings", [{}, *DCNV2.variants], ids=str)
def test_both_structures_from_the_layers(settings: dict[str, object]) -> None:
    model, batch = dcn_v2(settings), ragged(9)
    x0 = torch.cat(list(model.embeddings(batch).features.values()), 1)
    x = x0
    for layer in model.cross:
        x = layer(x0, x)
    stacked = model.config.structure == "stacked"
    h = model.deep(x) if stacked else torch.cat([x, model.deep(x0)], 1)
    expected = h @ model.last.weight[0] + model.last.bias
    torch.testing.assert_close(model(batch), expected, rtol=1e-4, atol=1e-4)


def test_equation_1_number_by_number() -> None:
    w, b, x0, x = torch.randn(3, 3), torch.randn(3), torch.randn(2, 3), torch.randn(2, 3)
    actual = full(w, b)(x0, x)
    for row in range(2):
        for at in range(3):
            inner = sum(w[at, other] * x[row, other] for other in range(3)) + b[at]
            assert actual[row, at].item() == pytest.approx(float(x0[row, at] * inner + x[row, at]), abs=1e-5)


@pytest.mark.parametrize(("experts", "gate"), [(1, "softmax"), (3, "softmax"), (3, "sigmoid")])
def test_equations_3_and_4_expert_by_expert(experts: int, gate: str) -> None:
    layer, x0, x = mixture(6, 2, experts, gate), torch.randn(4, 6), torch.randn(4, 6)
    expected = x.clone()
    for i in range(experts):
        v, u = layer.down.weight[2 * i : 2 * i + 2], layer.up[:, 2 * i : 2 * i + 2]
        e = x0 * (torch.tanh(torch.tanh(x @ v.t()) @ layer.inside[i].t()) @ u.t() + layer.bias)
        if layer.gate is not None:
            g = layer.gate(x)  # of x_l, not of x_0
            e = e * (g.softmax(1) if gate == "softmax" else g.sigmoid())[:, i : i + 1]
        expected = expected + e
    torch.testing.assert_close(layer(x0, x), expected)


def test_a_one_vector_in_every_row_of_the_matrix_is_version_1() -> None:
    v1, x0 = CrossNetwork(5, 3), torch.randn(7, 5)
    x = x0
    for w in v1.weight:
        x = full(w.expand(5, -1), torch.zeros(5))(x0, x)
    torch.testing.assert_close(x, v1(x0))
    with torch.no_grad():
        v1.bias.normal_()
    one = torch.rand(1, 5) + 0.5  # the bias of version 1 is not multiplied by x_0, so b' is b / x_0
    x = one
    for w, b in zip(v1.weight, v1.bias):
        x = full(w.expand(5, -1), b / one[0])(one, x)
    torch.testing.assert_close(x, v1(one))


def test_b_one_linear_expert_is_the_low_rank_form() -> None:
    layer, x0, x = mixture(6, 2, 1, activation="linear"), torch.randn(4, 6), torch.randn(4, 6)
    low = Cross(nn.Sequential(Linear(6, 2, bias=False), Linear(2, 6)))
    with torch.no_grad():
        layer.inside.copy_(torch.eye(2).unsqueeze(0))
        low.matrix[0].weight.copy_(layer.down.weight)
        low.matrix[1].weight.copy_(layer.up)
        low.matrix[1].bias.copy_(layer.bias)
    torch.testing.assert_close(layer(x0, x), low(x0, x))


def test_c_the_low_rank_form_of_whole_rank_is_the_full_form() -> None:
    low = Cross(nn.Sequential(Linear(6, 6, bias=False), Linear(6, 6)))
    w = low.matrix[1].weight @ low.matrix[0].weight
    x0, x = torch.randn(4, 6), torch.randn(4, 6)
    torch.testing.assert_close(full(w, low.matrix[1].bias)(x0, x), low(x0, x))


def test_the_low_rank_form_has_no_activation() -> None:
    """But for the outer factor it is linear in x_l."""
    layer = dcn_v2({"cross": "low_rank", "rank": 3}).cross[0]
    width = layer.matrix[0].weight.shape[1]
    x0, a, b = torch.randn(2, width), torch.randn(2, width), torch.randn(2, width)
    zero = layer(x0, torch.zeros_like(a))
    torch.testing.assert_close(layer(x0, a + b) - zero, layer(x0, a) - zero + layer(x0, b) - zero, rtol=1e-4, atol=1e-4)


def test_parameters_of_a_layer() -> None:
    def count(**settings: object) -> int:
        model = Case("dcn_v2", {"cross_layers": 1, **settings}).build()
        assert isinstance(model, DCNV2)
        return sum(parameter.numel() for parameter in model.cross.parameters())

    width = sum(parameter.numel() for parameter in Case("dcn", {"cross_layers": 1}).build().cross.parameters()) // 2
    assert count() == width * width + width
    assert count(cross="low_rank", rank=3) == 2 * 3 * width + width
    assert count(cross="mixture", rank=3, experts=2) == 2 * (2 * 3 * width + 9) + width + 2 * (width + 1)


def test_triples_of_fields_are_learned_and_pairs_alone_are_not_enough(tmp_path: Path) -> None:
    dataset = generate_dataset("co_action", users=400, side="field", order=3, kinds=6)
    for cross in ("full", "mixture"):
        assert solves(dataset, {"name": "dcn_v2", "cross": cross, "embedding_dim": 8}, tmp_path, cross, epochs=4)
    actual, _ = aucs_of(dataset, run_in(dataset, {"name": "fm"}, tmp_path, "fm", epochs=4))
    assert abs(actual - 0.5) < 0.1

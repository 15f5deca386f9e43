from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from longrec.nn.activation import ActivationName
from longrec.nn.experts import CGC, Form, Gates, MLPs, MMoELayer, PLELevels, SharedBottom, Towers
from longrec.nn.mlp import MLP


def one_of(many: MLPs, index: int, x_BI: Tensor, act: nn.Module) -> Tensor:
    """Return the output of one of several networks, layer by layer."""
    for layer in [*many.layers, *([] if many.last is None else [many.last])]:
        product = layer if layer is many.last else layer.product
        last, weight, bias = layer is many.last, product.weight, product.bias
        if weight.ndim == 2:  # all in one
            out = weight.shape[0] // many.count
            w_OI = weight[index * out : (index + 1) * out]
        else:
            w_OI, out = weight[index].t(), weight.shape[2]
        x_BI = x_BI @ w_OI.t() + bias[index * out : (index + 1) * out]
        x_BI = x_BI if last else act(x_BI)
    return x_BI


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("rows", [4, 700])
def test_networks_side_by_side_are_networks_apart(apart: bool, rows: int) -> None:
    torch.manual_seed(0)
    many = MLPs(5, [7, 3], 4, apart=apart, outputs=2)
    x = torch.randn(rows, 4, 5) if apart else torch.randn(rows, 5)
    outputs = many(x)
    assert outputs.shape == (rows, 4, 2)
    for index in range(4):
        expected = one_of(many, index, x[:, index] if apart else x, nn.ReLU())
        torch.testing.assert_close(outputs[:, index], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", ["tanh", "dice", "prelu"])
def test_units_are_normalized_each_for_itself(activation: ActivationName) -> None:
    torch.manual_seed(0)
    many, one = MLPs(5, [7], 2, Form(activation, batch_norm=True)), MLP(5, [7], activation, batch_norm=True)
    x = torch.randn(64, 5)
    with torch.no_grad():
        one.layers[0].linear.weight.copy_(many.layers[0].product.weight[7:])
    torch.testing.assert_close(many(x)[:, 1], one(x))
    torch.testing.assert_close(many.eval()(x)[:, 1], one.eval()(x))


def test_they_start_as_linear_layers_do() -> None:
    torch.manual_seed(0)
    tower = Towers(400, [300], 2)
    weight, bias = tower.layers[0].product.weight, tower.layers[0].product.bias
    for values in (weight, bias):
        assert values.abs().max() <= 1 / 20
        assert values.std().item() == pytest.approx(1 / 20 / 3**0.5, rel=0.1)


def test_gates_weigh_experts_with_a_softmax() -> None:
    torch.manual_seed(0)
    x, e = torch.randn(6, 5), torch.randn(6, 3, 4)
    gates = Gates(5, 2, 3)
    assert gates.linear is not None
    for task in range(2):
        w_BE = (x @ gates.linear.weight[task * 3 : task * 3 + 3].t()).softmax(1)
        torch.testing.assert_close(gates.weights(x)[:, task], w_BE)
        expected = sum(w_BE[:, index : index + 1] * e[:, index] for index in range(3))
        torch.testing.assert_close(gates.mix(x, e)[:, task], expected)
    assert torch.equal(Gates(5, 2, 1).weights(x), torch.ones(6, 2, 1))
    assert not list(Gates(5, 2, 1).parameters())


def test_one_expert_makes_mmoe_a_shared_bottom() -> None:
    torch.manual_seed(0)
    mmoe, shared, x = MMoELayer(5, 3, 1, [7, 4]), SharedBottom(5, 3, [7, 4]), torch.randn(9, 5)
    with torch.no_grad():
        for mine, other in zip(shared.bottom.layers, mmoe.experts.layers, strict=True):
            weight = other.product.weight
            mine.linear.weight.copy_(weight if weight.ndim == 2 else weight[0].t())
            mine.linear.bias.copy_(other.product.bias)
    torch.testing.assert_close(mmoe(x), shared(x))
    assert shared(x).shape == (9, 3, 4)
    assert shared.width == mmoe.width == 4


def test_gates_mix_after_the_experts_and_not_before() -> None:
    """An average of experts' weights, or of their inputs, would be another model."""
    torch.manual_seed(0)
    mmoe, x = MMoELayer(5, 2, 3, [4]), torch.randn(8, 5)
    outputs = torch.stack([one_of(mmoe.experts, index, x, nn.ReLU()) for index in range(3)], 1)
    weights = mmoe.gates.weights(x)
    expected = torch.einsum("bke,beh->bkh", weights, outputs)
    torch.testing.assert_close(mmoe(x), expected)


@pytest.mark.parametrize("first", [True, False])
def test_a_level_of_ple_by_hand(first: bool) -> None:
    torch.manual_seed(0)
    own, shared = 2, 3
    cgc = CGC(5, 2, own, shared, [4], first=first, last=False)
    x = torch.randn(8, 5) if first else torch.randn(8, 3, 5)
    reads = [x] * 3 if first else list(x.unbind(1))
    groups = [0, 0, 1, 1, 2, 2, 2]
    expert_outputs = [one_of(cgc.experts, index, reads[group], nn.ReLU()) for index, group in enumerate(groups)]
    mixed = cgc(x)
    assert mixed.shape == (8, 3, 4)
    for task in range(2):
        weight = cgc.gates.weight
        w_EI = weight[task * 5 : task * 5 + 5] if first else weight[task].t()
        w_BE = (reads[task] @ w_EI.t()).softmax(1)
        seen = torch.stack([*expert_outputs[task * own : task * own + own], *expert_outputs[-shared:]], 1)
        torch.testing.assert_close(mixed[:, task], (w_BE.unsqueeze(2) * seen).sum(1))
    assert cgc.shared_gate is not None
    w_BE = (reads[2] @ cgc.shared_gate.weight.t()).softmax(1)
    torch.testing.assert_close(mixed[:, 2], (w_BE.unsqueeze(2) * torch.stack(expert_outputs, 1)).sum(1))


def test_levels_of_ple_follow_each_other() -> None:
    torch.manual_seed(0)
    ple, x = PLELevels(5, 2, 2, 3, [6, 4], levels=3), torch.randn(8, 5)
    h = x
    for level in ple.levels:
        h = level(h)
    assert torch.equal(ple(x), h)
    assert h.shape == (8, 2, 4)
    assert [level.weights(torch.randn(1, *shape)).shape[1] for level, shape in zip(
        ple.levels, [(5,), (3, 4), (3, 4)])] == [3, 3, 2]  # fmt: skip


def test_experts_of_a_task_hear_nothing_of_another_in_one_level() -> None:
    torch.manual_seed(0)
    ple = PLELevels(5, 2, 2, 1, [4], levels=1)
    ple(torch.randn(8, 5))[:, 0].sum().backward()
    heard = ple.levels[0].experts.layers[0].product.weight.grad.abs().sum(1).view(5, 4).sum(1) > 0
    assert heard.tolist() == [True, True, False, False, True]
    deep = PLELevels(5, 2, 2, 1, [4], levels=2)
    deep(torch.randn(8, 5))[:, 0].sum().backward()
    heard = deep.levels[0].experts.layers[0].product.weight.grad.abs().sum(1).view(5, 4).sum(1) > 0
    assert heard.tolist() == [True] * 5, "through the gate of the shared experts"
    heard = deep.levels[1].experts.layers[0].product.weight.grad.abs().sum((1, 2)) > 0
    assert heard.tolist() == [True, True, False, False, True]


@pytest.mark.parametrize("tasks", [1, 3])
def test_towers_see_the_vector_of_their_task_alone(tasks: int) -> None:
    torch.manual_seed(0)
    towers, h = Towers(4, [6], tasks), torch.randn(7, tasks, 4)
    before = towers(h)
    assert before.shape == (7, tasks)
    for task in range(tasks):
        other = h.clone()
        other[:, task] += 1
        moved = (towers(other) - before).abs().sum(0) > 0
        assert moved.tolist() == [index == task for index in range(tasks)]

from __future__ import annotations

import pytest
import torch

from longrec.nn.activation import ActivationName
from longrec.nn.mlp import MLP


@pytest.mark.parametrize("rows", [5, 800])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_layers_follow_each_other(rows: int, activation: ActivationName, batch_norm: bool) -> None:
    torch.manual_seed(0)
    mlp, x = MLP(6, [8, 4], activation, batch_norm=batch_norm, outputs=2).train(), torch.randn(rows, 6)
    h = x
    for layer in mlp.layers:
        h = h @ layer.linear.weight.t()
        if batch_norm:
            h = (h - h.mean(0)) / (h.var(0, unbiased=False) + 1e-5).sqrt()
        else:
            h = h + layer.linear.bias
        h = h.relu() if activation == "relu" else h.tanh()
    expected = h @ mlp.last.weight.t() + mlp.last.bias
    torch.testing.assert_close(mlp(x), expected, rtol=1e-4, atol=1e-4)


def test_a_normalized_layer_has_no_bias_of_its_own() -> None:
    names = [name for name, _ in MLP(3, [2], batch_norm=True).named_parameters()]
    assert names == ["layers.0.linear.weight", "layers.0.norm.weight", "layers.0.norm.bias"]


def test_without_outputs_the_last_hidden_layer_ends_it() -> None:
    mlp = MLP(3, [5, 4])
    assert (mlp.outputs, mlp(torch.randn(2, 3)).shape) == (4, (2, 4))
    assert MLP(3, [], outputs=1)(torch.randn(2, 3)).shape == (2, 1)
    assert MLP(3, [2], outputs=1, last_bias=False).last.bias is None


def test_dropout_acts_in_training_only() -> None:
    mlp, x = MLP(4, [64], dropout=0.5), torch.randn(10, 4)
    assert not torch.equal(mlp.train()(x), mlp(x))
    assert torch.equal(mlp.eval()(x), mlp(x))
    assert 0.3 < (mlp.train()(x).count_nonzero() / mlp.eval()(x).count_nonzero()) < 0.7


def test_every_layer_may_have_a_dropout_of_its_own() -> None:
    layers = MLP(4, [3, 2], dropout=[0.0, 0.25]).layers
    assert [layer.dropout and layer.dropout.p for layer in layers] == [None, 0.25]
    with pytest.raises(ValueError, match="zip"):
        MLP(4, [3, 2], dropout=[0.1])


def test_a_small_gain_starts_the_outputs_close_to_the_bias() -> None:
    torch.manual_seed(0)
    plain = MLP(5, [4], outputs=1)
    torch.manual_seed(0)
    small = MLP(5, [4], outputs=1, last_gain=0.1)
    assert plain.last is not None
    assert small.last is not None
    assert torch.equal(small.last.weight, plain.last.weight * 0.1)
    assert torch.equal(small.layers[0].linear.weight, plain.layers[0].linear.weight)

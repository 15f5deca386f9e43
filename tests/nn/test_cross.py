from __future__ import annotations

import numpy as np
import torch

from longrec.nn.cross import CrossNetwork


def lively(width: int, layers: int) -> CrossNetwork:
    network = CrossNetwork(width, layers)
    with torch.no_grad():
        network.bias.normal_()
    return network


def test_no_layer_is_the_identity() -> None:
    x = torch.randn(3, 5)
    assert torch.equal(CrossNetwork(5, 0)(x), x)


def test_a_layer_equals_the_explicit_outer_product() -> None:
    network, x0 = lively(4, 3), torch.randn(6, 4)
    x = x0
    for w, b in zip(network.weight, network.bias):
        x = torch.einsum("bi,bj,j->bi", x0, x, w) + b + x
    torch.testing.assert_close(network(x0), x)


def test_without_bias_it_is_a_polynomial_of_one_degree_more_than_layers() -> None:
    network, x0 = CrossNetwork(3, 2).double(), torch.randn(1, 3, dtype=torch.float64)
    scales = np.linspace(0.5, 2.0, 8)
    values = np.array([network(x0 * scale)[0, 0].item() for scale in scales])
    for degree, fits in ((3, True), (2, False)):
        off = np.abs(np.polyval(np.polyfit(scales, values, degree), scales) - values).max()
        assert (off < 1e-9) == fits


def test_a_layer_has_two_vectors() -> None:
    assert sum(parameter.numel() for parameter in CrossNetwork(7, 1).parameters()) == 14

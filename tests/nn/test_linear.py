from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from longrec.nn import gemm
from longrec.nn.linear import Linear, _LinearFunction, linear, relu_gradient, use_plain_formula

SIZES = [(512, 3, 5), (1024, 7, 4), (1500, 16, 1), (5000, 24, 9), (4097, 5, 3)]
"""Rows, inputs, outputs: below, at and above the sizes at which other operators are used."""


@pytest.fixture(autouse=True)
def onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products through oneDNN on every processor. Without it they are those of torch."""
    monkeypatch.setattr(gemm, "_POINTWISE", gemm._find_pointwise())


def reference(x: Tensor, w: Tensor, b: Tensor | None, relu: bool) -> Tensor:
    y = F.linear(x, w, b)
    return y.relu() if relu else y


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SIZES)
def test_the_fast_layer_equals_the_plain_one(rows: int, inputs: int, outputs: int, bias: bool, relu: bool) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(rows, inputs, requires_grad=True), torch.randn(outputs, inputs, requires_grad=True)
    b = torch.randn(outputs, requires_grad=True) if bias else None
    leaves = [leaf for leaf in (x, w, b) if leaf is not None]
    assert not use_plain_formula(x)
    product, expected = linear(x, w, b, relu), reference(x, w, b, relu)
    torch.testing.assert_close(product, expected, rtol=1e-5, atol=1e-5)
    upstream = torch.randn(rows, outputs)
    for a, e in zip(torch.autograd.grad(product, leaves, upstream), torch.autograd.grad(expected, leaves, upstream)):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=2e-4)


def test_gradients_of_the_fast_layer() -> None:
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    w = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    b = torch.randn(4, dtype=torch.float64, requires_grad=True)
    for relu in (False, True):
        assert torch.autograd.gradcheck(lambda *leaves, r=relu: _LinearFunction.apply(*leaves, r), (x, w, b))
    assert torch.autograd.gradcheck(lambda x, w: _LinearFunction.apply(x, w, None, False), (x, w))


def test_a_layer_of_a_fixed_input_computes_no_gradient_of_it() -> None:
    x, w = torch.randn(600, 3), torch.randn(2, 3, requires_grad=True)
    linear(x, w).sum().backward()
    torch.testing.assert_close(w.grad, x.sum(0).expand(2, 3), rtol=1e-4, atol=1e-4)


def test_products_where_the_fast_operator_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm, "_POINTWISE", None)
    x, w, g = torch.randn(5000, 4), torch.randn(3, 4), torch.randn(5000, 3)
    torch.testing.assert_close(gemm.affine(x, w, relu=True), (x @ w.t()).relu())
    torch.testing.assert_close(gemm.input_gradient(g, w), g @ w)
    torch.testing.assert_close(gemm.weight_gradient(g, x), g.t() @ x)


def test_products_of_views_of_a_larger_tensor() -> None:
    big, w = torch.randn(700, 10), torch.randn(3, 4)
    for x in (big[:, :4], big[50:650, 3:7], big[:600, :4].contiguous(), big.flatten()[8:].reshape(-1, 4)[:513]):
        torch.testing.assert_close(gemm.affine(x, w), x @ w.t(), rtol=1e-5, atol=1e-5)


def test_allocated_rows_fill_whole_grains() -> None:
    for rows in (1, gemm.GRAIN, gemm.GRAIN + 1):
        rows_of_grains = gemm.allocate_rows(torch.zeros(1), rows, 3)
        assert rows_of_grains.shape == (rows, 3)
        assert rows_of_grains.is_contiguous()
        assert rows_of_grains.untyped_storage().nbytes() == -(-rows // gemm.GRAIN) * gemm.GRAIN * 3 * 4
    y = gemm.affine(torch.randn(700, 5), torch.randn(4, 5))
    assert gemm._round_up_rows(y).data_ptr() == y.data_ptr()  # the next layer copies nothing


def test_the_gradient_of_a_relu_is_the_upstream_where_it_is_open() -> None:
    g, y = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0.0, 5.0], [1.0, 0.0]])
    assert relu_gradient(g, y).tolist() == [[0.0, 2.0], [3.0, 0.0]]


def test_the_plain_form_is_kept_for_tracing_autocast_and_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    assert use_plain_formula(torch.zeros(511, 1))
    assert not use_plain_formula(torch.zeros(512, 1))
    with torch.autocast("cpu", torch.bfloat16):
        assert use_plain_formula(torch.zeros(512, 1))
        assert Linear(3, 2)(torch.randn(600, 3)).dtype == torch.bfloat16
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert use_plain_formula(torch.zeros(512, 1))


@pytest.mark.parametrize(("vendor", "faster"), [("GenuineIntel", True), ("AuthenticAMD", False)])
def test_the_maker_of_the_processor_chooses_the_library(vendor: str, faster: bool, tmp_path: Path) -> None:
    if not torch.backends.mkl.is_available():
        faster = False
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    assert gemm._is_mkl_faster(tmp_path / "cpuinfo") is faster

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from synthetic_runs import aucs_of, run_in, solves
from torch import Tensor

from longrec.data.synthetic import generate_dataset
from longrec.errors import ConfigError
from longrec.features.fields import Field, Fields
from longrec.models.core.registry import build
from longrec.models.pnn import PNN, Inner, Outer, RankOne, _Triangle
from longrec.testing.batches import FIELDS, ragged
from longrec.testing.case import Case


def pnn(settings: dict[str, object]) -> PNN:
    model = Case("pnn", settings).lively()
    assert isinstance(model, PNN)
    return model


def whole(triangle: _Triangle, n: int) -> Tensor:
    """``[units, n, n]``: the symmetric W_p that says the same."""
    matrix = torch.zeros(triangle.weight.out_features, n, n)
    for index, (i, j) in enumerate(itertools.combinations_with_replacement(range(n), 2)):
        matrix[:, i, j] += triangle.weight.weight[:, index].detach() / 2
        matrix[:, j, i] += triangle.weight.weight[:, index].detach() / 2
    return matrix


@pytest.mark.parametrize("settings", [{}, *PNN.variants], ids=str)
def test_equations_1_and_2(settings: dict[str, object]) -> None:
    model, batch = pnn(settings), ragged(9)
    v = torch.stack(list(model.embeddings(batch).features.values()), 1)
    signal = torch.einsum("bfd,nfd->bn", v, model.signal.weight.unflatten(1, v.shape[1:]))
    signal = signal if model.signal.bias is None else signal + model.signal.bias
    l_1 = signal + sum(product(v) for product in model.products)
    l_1 = l_1 if model.norm is None else model.norm(l_1)
    torch.testing.assert_close(model(batch), model.top(l_1.relu()).squeeze(1), rtol=1e-4, atol=1e-4)
    kinds = {"inner": [Inner], "outer": [Outer], "both": [RankOne, Outer]}[model.config.product]
    assert [type(product) for product in model.products] == kinds


def test_a_inner_products_equal_the_full_einsum() -> None:
    inner, v = Inner(5, 7), torch.randn(3, 5, 4)
    p = torch.einsum("bid,bjd->bij", v, v)
    torch.testing.assert_close(inner(v), torch.einsum("nij,bij->bn", whole(inner.of, 5), p))


def test_b_the_superposition_equals_the_sum_of_outer_products() -> None:
    outer, v = Outer(4, 7), torch.randn(3, 5, 4)
    p = sum(torch.einsum("bk,bl->bkl", v[:, i], v[:, j]) for i in range(5) for j in range(5))
    torch.testing.assert_close(outer(v), torch.einsum("nkl,bkl->bn", whole(outer.of, 4), p), rtol=1e-4, atol=1e-4)


def test_c_swapping_two_fields_leaves_the_same_products() -> None:
    inner, outer, v = Inner(5, 7), Outer(4, 7), torch.randn(3, 5, 4)
    turned = v[:, [0, 3, 2, 1, 4]]
    seen: list[Tensor] = []
    hook = inner.of.weight.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    inner(v), inner(turned)
    hook.remove()
    assert not torch.allclose(*seen)
    torch.testing.assert_close(seen[0].sort(1).values, seen[1].sort(1).values)
    assert seen[0].shape == (3, 15)
    torch.testing.assert_close(outer(v), outer(turned))


def test_d_rank_one_is_the_full_form_of_theta_theta_t() -> None:
    one, inner, v = RankOne(5, 7), Inner(5, 7), torch.randn(3, 5, 4)
    with torch.no_grad():
        for index, (i, j) in enumerate(itertools.combinations_with_replacement(range(5), 2)):
            w = one.theta[:, i] * one.theta[:, j]
            inner.of.weight.weight[:, index] = w if i == j else 2 * w
    torch.testing.assert_close(one(v), inner(v))


def test_settings_and_schemas_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="rank_one needs inner products, and product: outer has none"):
        build({"name": "pnn", "product": "outer", "kernel": "rank_one"}, FIELDS)
    fields = Fields((Field("user", "id", 5, dim=8), Field("item", "id", 5)), {})
    with pytest.raises(ConfigError, match="pnn multiplies fields"):
        build({"name": "pnn"}, fields)


def test_pairs_without_a_pattern_are_learned_and_sums_are_not_enough(tmp_path: Path) -> None:
    dataset = generate_dataset("co_action", users=400, side="field", kinds=6)
    for product in ("inner", "outer"):
        assert solves(dataset, {"name": "pnn", "product": product, "embedding_dim": 8}, tmp_path, product, epochs=4)
    actual, _ = aucs_of(dataset, run_in(dataset, {"name": "lr"}, tmp_path, "lr", epochs=4))
    assert abs(actual - 0.5) < 0.1

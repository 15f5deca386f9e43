from __future__ import annotations

import pytest
import torch

from longrec.errors import ConfigError
from longrec.models.core.registry import build
from longrec.models.wide_deep import WideDeep, cross
from longrec.testing.batches import FIELDS, ragged
from longrec.testing.case import Case
from longrec.testing.suite import check_case

CROSSED = Case("wide_deep", {"crosses": [["user", "item"], ["user", "hour"]], "cross_buckets": 50})


def test_without_the_deep_network_it_is_logistic_regression() -> None:
    model, batch = Case("wide_deep").lively(), ragged(9)
    assert isinstance(model, WideDeep)
    lr = build({"name": "lr"}, FIELDS)
    weights = model.wide.state_dict()
    lr.load_state_dict({"bias": model.bias, **{f"first_order.{name}": value for name, value in weights.items()}})
    with torch.no_grad():
        model.deep.last.weight.zero_()
    torch.testing.assert_close(model(batch), lr(batch))


def test_a_cross_has_a_weight_of_its_own_for_a_pair() -> None:
    model, batch = CROSSED.lively(), ragged(9)
    assert isinstance(model, WideDeep)
    before = model(batch)
    user, item = batch.features["user"][4], batch.features["item"][4]
    with torch.no_grad():
        model.crosses.table("user x item")[2 + cross(user, item, 50)] += 10
    after = model(batch)
    assert (after - before)[4].item() == pytest.approx(10, rel=1e-5)
    assert (after - before).abs().sum() < 10 * 9


def test_crosses_pass_the_conformance_suite() -> None:
    check_case(
        CROSSED,
        only=(
            "rows_do_not_see_each_other",
            "shared_batch_scores_as_ragged",
            "grouped_batch_is_learned_as_single",
            "every_parameter_gets_a_gradient",
            "saved_and_loaded",
        ),
    )


def test_wide_parameters_are_of_the_linear_model_only_and_sparse_where_tables() -> None:
    model = CROSSED.build()
    assert isinstance(model, WideDeep)
    wide = {id(parameter) for parameter in model.wide_parameters()}
    names = {name.split(".")[0] for name, parameter in model.named_parameters() if id(parameter) in wide}
    others = {name.split(".")[0] for name, parameter in model.named_parameters() if id(parameter) not in wide}
    assert (names, others) == ({"wide", "crosses", "bias"}, {"embeddings", "deep"})
    assert {id(table) for table in model.crosses.embedding_parameters()} <= {
        id(table) for table in model.embedding_parameters()
    }


def test_the_hash_is_the_same_in_every_process_and_spreads() -> None:
    a, b = torch.arange(200).repeat_interleave(200), torch.arange(200).repeat(200)
    actual = cross(a, b, 1000)
    assert actual[7 * 200 + 9] == (7 * 1_103_515_245 + 9 * 214_013_741) % (2**31 - 1) % 1000
    counts = torch.bincount(actual, minlength=1000)
    assert counts.min() > 0
    assert counts.max() < 3 * counts.float().mean()
    assert (cross(torch.tensor([2**31 - 2]), torch.tensor([2**31 - 2]), 10) >= 0).all()  # no overflow


def test_crosses_of_what_is_no_id_are_refused() -> None:
    with pytest.raises(ConfigError, match="'price' is not an id feature; id features: user, hour, item"):
        build({"name": "wide_deep", "crosses": [["user", "price"]]}, FIELDS)
    with pytest.raises(ConfigError, match="names a pair twice"):
        build({"name": "wide_deep", "crosses": [["user", "item"], ["user", "item"]]}, FIELDS)
